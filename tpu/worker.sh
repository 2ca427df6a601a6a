#!/usr/bin/env bash
# Runs on each TPU VM; tpu.sh copies it there and calls it.
#
#   worker.sh copy gs://B/FOLDER...       those folders of a bucket, as copies/FOLDER
#   worker.sh setup SOURCE [CONSTRAINTS]  Python and jaxgen[tpu,gcs] into venv/ beside this file
#   worker.sh launch WORKDIR OPTION...    starts training apart from this shell; no-op while it runs
#   worker.sh status                      one line: @ HOST STATE VERSION LAST-LINE-OF-LOG
#   worker.sh log | stop                  the end of the log | SIGTERM, and SIGKILL after a while
#
# STATE: new, idle, running, exit:CODE, or lost (it ended and could not say how: reboot, SIGKILL).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python_version=3.11              # what jaxgen's own tests run on; the TPU image's is older
stop_seconds=${STOP_SECONDS:-60} # to save in, before SIGKILL
mirror_seconds=${MIRROR_SECONDS:-60}
mkdir -p logs

# The supervisor and its training hold this lock, so a stale process id can never look alive.
running() { ! flock --shared --nonblock lock true; }

state() {
  if running; then echo running
  elif [[ -s ended ]]; then echo "exit:$(cat ended)"
  elif [[ -e launched ]]; then echo lost
  elif [[ -s version ]]; then echo idle
  else echo new; fi
}

# Before what may not happen while training runs, nor be half done and trained on.
unready() {
  if running; then echo "jaxgen: training runs on $HOSTNAME; 'tpu.sh stop' first" >&2 && exit 2; fi
  rm -f version
}

copy() { # done again, it copies only what is not there yet
  unready
  local folder
  for folder; do
    mkdir -p "copies/${folder##*/}"
    gcloud storage rsync --recursive "$folder" "copies/${folder##*/}"
  done
}

setup() {
  unready
  rm -f launched ended wheel.sum
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  uv venv --quiet --allow-existing --python "$python_version" venv
  local wanted="jaxgen[tpu,gcs] @ $1" constraints=()
  [[ $1 == git+* ]] || wanted="jaxgen[tpu,gcs] @ file://$PWD/$1"
  [[ -z ${2:-} ]] || constraints=(--constraints "$2")
  uv pip install --quiet --python venv/bin/python --reinstall-package jaxgen \
    "${constraints[@]}" "$wanted"
  uv pip freeze --python venv/bin/python >requirements.txt
  grep -q '^libtpu==' requirements.txt || {
    echo "jaxgen: $1 has no extra [tpu] (uv only warns): it would train on the CPU" >&2
    exit 2
  }
  # one number for code, Python and dependencies: they agree where it does
  [[ $1 == git+* ]] || sha256sum "$1" >wheel.sum
  cat requirements.txt <(venv/bin/python --version) wheel.sum 2>/dev/null \
    | sha256sum | cut -c 1-12 >version
}

launch() {
  if running; then return; fi
  rm -f ended
  touch launched
  local log
  log="logs/$(date -u +%Y%m%dT%H%M%SZ).log"
  ln -sfn "$log" log
  # setsid and nohup: neither the end of this ssh connection nor its SIGHUP reaches the training
  setsid nohup bash ./worker.sh supervise "$@" >>"$log" 2>&1 </dev/null &
  until running || [[ -s ended ]]; do sleep 0.02; done
}

supervise() {
  exec 9>lock
  flock --wait 5 9 || exit 0
  echo $$ >pid
  local workdir=$1 log code signalled
  log=$(readlink log)
  shift
  mirror() { # to the bucket: this disk goes when the slice is pre-empted
    timeout 30 gcloud storage cp --quiet "$log" "$workdir/worker-logs/$HOSTNAME/${log#logs/}" || true
  } >/dev/null 2>&1
  (
    exec 9>&-
    trap 'kill "$!" 2>/dev/null; exit' TERM
    while sleep "$mirror_seconds" & wait "$!"; do mirror; done
  ) &
  local mirroring=$!
  venv/bin/python -u -m jaxgen.train "--workdir=$workdir" "$@" &
  local training=$!
  trap 'signalled=1; kill -TERM "$training" 2>/dev/null' TERM # it saves, and says so by its code
  while signalled='' code=0; do # a signal cuts the wait short
    wait "$training" || code=$?
    [[ -n $signalled ]] || break
  done
  kill "$mirroring" 2>/dev/null || true
  mirror
  echo "$code" >ended
}

stop() {
  local tries=$((stop_seconds * 5))
  running || return 0
  kill -TERM "$(cat pid)" 2>/dev/null || true
  while running && ((tries-- > 0)); do sleep 0.2; done
  if running; then kill -KILL -- "-$(cat pid)"; fi
}

last_line() { tail -c 500 log 2>/dev/null | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 || true; }

command=${1:?copy, setup, launch, status, log or stop}
shift
case $command in
copy | setup | launch | supervise | stop) "$command" "$@" ;;
status) echo "@ $HOSTNAME $(state) $(cat version 2>/dev/null || echo -) $(last_line)" ;;
log) echo "== $HOSTNAME" && tail -n 30 log ;;
*) echo "jaxgen: worker.sh $command: no such command" >&2 && exit 2 ;;
esac
