#!/usr/bin/env bash
# Trains jaxgen on Cloud TPU VMs; `tpu.sh help` says how. Bash 3.2, macOS's, is enough.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
patience=5 # looks at a slice of which a part is silent or has ended, before something is done
look_seconds=${LOOK_SECONDS:-120} # until a call of gcloud that only looks is ended
seconds=${CALL_SECONDS:-1800}     # and any other but fetch's

usage() {
  cat <<'HELP'
tpu.sh COMMAND NAME --zone=ZONE [OPTION...] [-- TRAINING OPTION...]

Commands; NAME is a name that you choose for the slice:
  watch    create, setup and launch, each where it is still missing, then looks on until training
           is done; starts it again after a pre-emption (exit code 75), a lost node or a suspended
           request, and up to --tries times after any other code but 0 and 2. End it with Ctrl-C
           and start it again at will: training goes on without it.
  create   asks for the slice (queued; spot unless --on-demand)
  setup    Python and jaxgen[tpu,gcs] on all workers; checks that all have the same versions
  launch   python -m jaxgen.train on all workers; goes on when this connection ends
  status   the request's state; a line per worker: training, version, end of its log
  logs     the end of every worker's log
  stop     SIGTERM to the training on all workers: it saves and ends
  fetch    the runs from the bucket, without checkpoints unless --checkpoints
  delete   slice and request; nothing in the bucket

Options, as --key=value or --key value:
  --zone=ZONE          all commands but fetch
  --project=ID         default: gcloud's own
  --type=v5e-8         create, watch: v5e-N or v6e-N (N chips: 1, 4, 8, 16 ... 256), v5p-N or v4-N (N / 2)
  --on-demand          create, watch: dearer than spot and not pre-empted
  --runtime=IMAGE      create, watch: TPU VM image, where the default for the type is not it
  --source=S           setup, watch: a wheel, or git+URL@COMMIT with all 40 digits
  --constraints=FILE   setup, watch: versions of the dependencies, in pip's format
  --copy=gs://B/P/F    setup, watch: has every worker copy this folder, of pictures or weights, to
                       its disk; training finds it as copies/F. May be given more than once
  --workdir=gs://B/P   launch, watch, fetch: where runs and checkpoints live
  --to=FOLDER          fetch: default runs
  --tries=3            watch: failed trainings or requests that it stands, in all
  --poll=30            watch: seconds between looks
  --delete             watch: delete the slice when training is done or given up
  --dry-run            print the commands, ready to be pasted, and run none
Environment: a call of gcloud is ended after CALL_SECONDS (1800), after LOOK_SECONDS (120) where it
only looks; fetch takes what it takes.
Exit codes: 0 done, 1 given up, 2 bad input; else that of the gcloud command that failed.
HELP
}

fail() { warn "$1" && exit "${2:-2}"; }
warn() { echo "jaxgen: $1" >&2; }
note() { echo "$(date +%H:%M:%S) $*" >&2; }

# Runs a command, or prints it for --dry-run.
run() {
  local line
  if [[ -z $dry ]]; then
    "$@"
    return
  fi
  [[ $1 != limited ]] || shift
  printf -v line ' %q' "$@"
  echo "${line# }"
}

# Runs a command for $seconds at most; then ends it and all that it started: code 124. Without
# `timeout`, which macOS lacks, and in this process group: ssh may ask the terminal for a passphrase.
limited() (
  "$@" &
  called=$!
  (
    trap 'kill "$!"; exit 1' TERM
    sleep "$seconds" &
    wait "$!"
    trap '' TERM
    end "$called"
  ) >/dev/null 2>&1 &
  clock=$!
  trap 'end "$called"; kill "$clock"; exit 130' INT TERM
  code=0
  wait "$called" || code=$?
  kill "$clock" 2>/dev/null || true
  if wait "$clock"; then
    warn "${*:4:2} did not end within $seconds s"
    code=124
  fi
  return "$code"
)

# Ends a process and all that it started.
end() {
  local child
  for child in $(pgrep -P "$1"); do end "$child"; done
  kill "$1" 2>/dev/null || true
}

tpus() { run limited gcloud compute tpus "$@" "${place[@]}" --quiet; }

on_workers() {
  tpus tpu-vm ssh "$name" --worker=all --ssh-flag=-oConnectTimeout=20 \
    --ssh-flag=-oServerAliveInterval=15 --command="$1"
}

# worker.sh with these arguments: quoted here, once, for the shell at the far end.
worker() { on_workers "bash jaxgen-tpu/worker.sh$(printf ' %q' "$@")"; }

create() {
  note "asking for $chips chips ($type); an hour costs $chips x the price of its chip-hour in $zone"
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" --scopes=https://www.googleapis.com/auth/cloud-platform \
    ${spot[@]+"${spot[@]}"}
}

setup() {
  local files=("$here/worker.sh") what=("$source")
  [[ $source == git+* ]] || files+=("$source") what=("${source##*/}")
  [[ -z $constraints ]] || files+=("$constraints") what+=("${constraints##*/}")
  on_workers 'mkdir -p jaxgen-tpu' || return
  tpus tpu-vm scp "${files[@]}" "$name:jaxgen-tpu/" --worker=all || return
  [[ -z ${copies[*]-} ]] || worker copy "${copies[@]}" || return
  worker setup "${what[@]}" || return
  look || { warn "$name: $answered of $hosts workers answer; run setup again" && return 1; }
  [[ $(versions) -eq 1 ]] || {
    echo "$workers" >&2
    warn "$name: workers differ in code or dependencies (4th column); setup with --constraints"
    return 1
  }
}

launch() {
  worker launch "$workdir" "${training[@]}" || return
  launched=1
}

# Sets $workers to a line for each worker, as worker.sh status prints it; false where one is silent.
look() {
  # shellcheck disable=SC2016  # for the far end
  local line='bash jaxgen-tpu/worker.sh status 2>/dev/null || echo "@ $HOSTNAME new -"'
  local seconds=$look_seconds
  if [[ -n $dry ]]; then
    [[ -n $hosts ]] || node 'networkEndpoints.len()'
    on_workers "$line"
    hosts=1 workers="@ $name ${launched:+exit:0}"
    [[ -n $launched ]] || workers+="new -"
    return
  fi
  answered=0
  [[ -n $hosts ]] || hosts=$(node 'networkEndpoints.len()' 2>/dev/null) || return
  [[ $hosts =~ ^[1-9][0-9]*$ ]] || { hosts='' && return 1; }
  workers=$(on_workers "$line" 2>/dev/null | grep '^@ ') || true
  [[ -z $workers ]] || answered=$(wc -l <<<"$workers")
  ((answered == hosts))
}

node() { tpus tpu-vm describe "$name" --format="value($1)"; }
states() { cut -d ' ' -f 3 <<<"$workers" | sort -u | tr '\n' ' '; }
versions() { cut -d ' ' -f 4 <<<"$workers" | sort -u | wc -l; }

# Sets $answer to what a command prints, to MISSING, or to UNKNOWN with gcloud's words in $trouble.
ask() {
  local errors seconds=$look_seconds
  errors=$(mktemp)
  trouble=''
  if ! answer=$("$@" 2>"$errors"); then
    ! grep -q core/project "$errors" || {
      rm -f "$errors"
      fail 'gcloud has no project; give --project=ID, or run: gcloud config set project ID'
    }
    trouble=$(grep -v '^ *$' "$errors" | tail -n 1) trouble=${trouble#jaxgen: } answer=UNKNOWN
    ! grep -q NOT_FOUND "$errors" || answer=MISSING
  fi
  rm -f "$errors"
}

# Sets $request to the state of the queued resource; see ask. A dry run finds it once created.
ask_request() {
  local query=(tpus queued-resources describe "$name" --format='value(state.state)')
  if [[ -z $dry ]]; then ask "${query[@]}" && request=$answer && return; fi
  "${query[@]}"
  request=${created:+ACTIVE}
  request=${request:-MISSING} created=1
}

delete() { tpus queued-resources delete "$name" --force; }

watch() {
  local failures=0 silent=0 uneven=0 seen='' now
  trap 'note "training goes on, and the slice costs money until: $away" && exit 130' INT
  while :; do
    ask_request
    [[ $request == "$seen" ]] || note "request: $request"
    case $request in
    MISSING) create || failed "the request for $type was not taken" ;;
    FAILED) # no capacity in time, no quota, a wrong type: the state's details say which
      tpus queued-resources describe "$name" --format='yaml(state)' >&2 || true
      delete || true
      failed "the request for $type failed" ;;
    SUSPENDED) note "pre-empted; asking again" && delete || true ;;
    UNKNOWN) # once it has worked, the fault may be this machine's: training needs it not
      [[ -n $seen ]] || fail "gcloud: $trouble" 1
      note "gcloud: $trouble" ;;
    ACTIVE)
      if look; then
        silent=0 now=" $(states)"
        note "$(head -n 1 <<<"$workers")"
        step && end_watch && return
      elif lost; then
        note "the slice is lost; asking for another"
        silent=0
        delete || true
      else note "$answered of ${hosts:-?} workers answer"; fi ;;
    esac
    seen=$request
    [[ -n $dry ]] || sleep "$poll"
  done
}

# True where the node is gone, or part of it stays silent: silence of all may be this machine's fault.
lost() {
  ask node state
  case $answer in
  MISSING | PREEMPTED | TERMINATED | STOPPED | DELETING) return 0 ;;
  esac
  ((answered > 0 && ++silent > patience))
}

# Does what the states of the workers, $now, call for. True when training is done.
step() {
  local own
  [[ $now == *running* || $(versions) -eq 1 ]] || now=' new '
  case $now in
  *' exit:2 '*)
    worker stop || true
    worker log >&2 || true
    give_up "$name: training refused its input; the end of the log says what to mend" 2 ;;
  ' exit:0 ') note "all done" && return ;;
  *' new '*) { setup && launch; } || failed "setup or launch failed" ;;
  *' idle '*) launch || failed "launch failed" ;; # leaves alone what runs
  ' running ' | ' exit:0 running ') uneven=0 ;;
  *' running '*)
    if ((++uneven > patience)); then
      note "of the workers only some ended ($now): ending the others"
      uneven=0
      worker stop || true
    fi ;;
  *)
    # a host that fails or is lost makes the others end with 75 or, outside a collective, has JAX
    # abort them (134): then its own code counts
    own=${now//exit:75 /}
    [[ $now != *' lost '* && $now == "$own" ]] || own=${own//exit:134 /}
    if [[ $own == *exit:[1-9]* ]]; then
      worker log >&2 || true
      failed "training ended with$now"
    else note "interrupted ($now); starting again"; fi
    launch || true ;;
  esac
  return 1
}

failed() {
  ((++failures <= tries)) || give_up "$1; given up after failure $failures" 1
  note "$1; trying again ($failures of $tries)"
}

give_up() {
  end_watch
  fail "$1" "$2"
}

end_watch() {
  if [[ -n $delete_after ]]; then delete || true
  else note "the slice costs money until: $away"; fi
}

status() {
  ask_request
  [[ $request != UNKNOWN ]] || fail "gcloud: $trouble" 1
  [[ -n $dry ]] || echo "request: $request"
  [[ $request == ACTIVE ]] || return 0
  look || warn "$answered of ${hosts:-?} workers answer"
  [[ -n $dry ]] || echo "$workers"
}

fetch() {
  run mkdir -p "$to"
  run gcloud storage rsync --recursive ${skip[@]+"${skip[@]}"} "$workdir" "$to"
}

# What follows reads and checks the command line.

need() { [[ -n ${!1} ]] || fail "$command needs --$1=$2"; }

is() { [[ $2 =~ $3 ]] || fail "$1 $2: $4"; }

command=${1:-help} name=${2:-}
case $command in
help | -h | --help) usage && exit ;;
watch | create | setup | launch | status | logs | stop | fetch | delete) ;;
*) fail "$command: no such command; tpu.sh help lists them" ;;
esac
is NAME "$name" '^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$' \
  "after the command comes a name for the slice: small letters, digits and hyphens"
shift 2

zone='' project='' copy='' copies=() type='' spot=(--spot) runtime='' source='' constraints='' workdir='' to=runs
tries=3 poll=30 delete_after='' skip=(--exclude='(.*/)?(checkpoints|\.compiled)/.*') dry='' training=()
hosts='' workers='' answered=0 answer='' trouble='' request='' created='' launched=''
while (($#)); do
  key=${1%%=*}
  case $1 in
  --) shift && training=("$@") && break ;;
  --on-demand) spot=() ;;
  --delete) delete_after=1 ;;
  --checkpoints) skip=() ;;
  --dry-run) dry=1 ;;
  --zone=* | --project=* | --type=* | --runtime=* | --source=* | --constraints=* | --copy=* | \
    --workdir=* | --to=* | --tries=* | --poll=*) printf -v "${key#--}" '%s' "${1#*=}" ;;
  --zone | --project | --type | --runtime | --source | --constraints | --copy | --workdir | --to | \
    --tries | --poll)
    (($# > 1)) || fail "$key: its value is missing"
    printf -v "${key#--}" '%s' "$2"
    shift ;;
  *) fail "$1: no such option; tpu.sh help lists them (training's own come after --)" ;;
  esac
  [[ $key != --copy ]] || copies+=("${copy%/}")
  shift
done

place=(--zone="$zone")
[[ -z $project ]] || place+=(--project="$project")
away="tpu.sh delete $name ${place[*]}"
workdir=${workdir%/}
if [[ $command != fetch ]]; then
  need zone "ZONE; gcloud compute tpus locations list shows them"
  is --zone "$zone" '^[a-z]+-[a-z]+[0-9]+-[a-z]$' "no zone; gcloud compute tpus locations list shows them"
fi
is LOOK_SECONDS "$look_seconds" '^[0-9]+$' "give seconds"
is CALL_SECONDS "$seconds" '^[0-9]+$' "give seconds"
is --tries "$tries" '^[0-9]+$' "give a count"
is --poll "$poll" '^[0-9]+(\.[0-9]+)?$' "give seconds"

if [[ $command =~ ^(create|watch)$ ]]; then
  need type "TYPE, such as v5e-8"
  is --type "$type" '^(v5e|v5litepod|v6e|v5p|v4)-[1-9][0-9]*$' "give v5e-8, v5e-16, v6e-8, v5p-8, v4-8 or the like"
  case $type in
  v5p-* | v4-*) ((${type##*-} % 8 == 0)) || fail "--type $type: v5p and v4 go by cores, in eights: v5p-8, v4-16" ;;
  *) is --type "$type" '-(1|4|8|16|32|64|128|256)$' "slices of v5e and v6e have 1, 4, 8, 16, 32, 64, 128 or 256 chips" ;;
  esac
  type=${type/#v5e-/v5litepod-} chips=${type##*-}
  case $type in # the number counts chips, or two cores to a chip
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  v5p-*) image=v2-alpha-tpuv5 chips=$((chips / 2)) ;;
  v4-*) image=tpu-ubuntu2204-base chips=$((chips / 2)) ;;
  esac
  runtime=${runtime:-$image}
fi
if [[ $command =~ ^(setup|watch)$ ]]; then
  need source "WHEEL or git+URL@COMMIT; pip wheel --no-deps -w dist . makes a wheel"
  if [[ $source == git+* ]]; then
    is --source "$source" '@[0-9a-f]{40}$' "give the whole commit (git rev-parse HEAD), lest workers get different ones"
  else
    is --source "$source" '\.whl$' "give a .whl file, or git+URL@COMMIT"
    [[ -f $source ]] || fail "--source $source: no such file; pip wheel --no-deps -w dist . makes one"
  fi
  for copy in ${copies[@]+"${copies[@]}"}; do
    is --copy "$copy" '^gs://[^/]+/.*[^/]$' "give gs://BUCKET/FOLDER; gcloud storage rsync puts a folder there"
  done
  twice=$(printf '%s\n' ${copies[@]+"${copies[@]##*/}"} | sort | uniq -d | head -n 1)
  [[ -z $twice ]] || fail "--copy: two folders are called $twice; training could not tell them apart"
  [[ -z $constraints || -f $constraints ]] || fail "--constraints $constraints: no such file"
fi
if [[ $command =~ ^(launch|watch|fetch)$ ]]; then
  need workdir "gs://BUCKET/FOLDER"
  is --workdir "$workdir" '^gs://[^/]+' "give gs://BUCKET/FOLDER: a TPU VM's disk is lost with it"
fi
if [[ $command =~ ^(launch|watch)$ ]]; then
  words=" ${training[*]+"${training[*]}"} "
  [[ $words == *' --config'[=\ ]* ]] || fail "which config? end the line with: -- --config=add_64"
  for key in workdir zone project type runtime source constraints copy tries poll on-demand delete dry-run; do
    [[ $words != *" --$key"[=\ ]* ]] || fail "--$key comes before the --, not after it"
  done
  config=${words##* --config[= ]} config=${config%% *}
  if [[ $config != *[/.]* && $source == *.whl && -d $here/../configs && ! -f $here/../configs/$config.py ]]; then
    fail "--config=$config: no such config; give one of configs/"
  fi
fi
[[ -n $dry ]] || type gcloud >/dev/null 2>&1 \
  || fail "gcloud is not installed: see cloud.google.com/sdk, then run: gcloud init"

case $command in
logs) worker log ;;
stop) worker stop ;;
delete)
  created=1
  ask_request
  case $request in
  MISSING) note "$name: there is none in $zone" ;;
  UNKNOWN) fail "gcloud: $trouble" 1 ;;
  *) delete ;;
  esac ;;
*)
  [[ $command != status ]] || created=1
  "$command" ;;
esac
