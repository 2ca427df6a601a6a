#!/usr/bin/env bash
# Measures everything on the devices at hand, the most telling first: what to run first on a new
# accelerator. Run it again until it says that all is done; `run_all.sh --help` says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

again=75 # the exit code of what has saved and wants to be run again
unfinished='are left: the same command goes on' # said by one that ends with 0 all the same
tries=3  # times that a command which cannot go on where it was may run out of time

usage() {
  cat <<'HELP'
benchmarks/run_all.sh [OPTION...]

Runs one benchmark after the other, each for a few minutes at a time. The results are written to
benchmarks/results/HARDWARE/, the logs to WORKDIR/run_all/. What is done is not done again, and what
ran out of time goes on.

  --minutes=9      of the whole command; then it saves and ends with exit code 75
  --only=A,B       some of the benchmarks
  --workdir=runs   folder of runs, which are trained where they are missing
  --platform=P     cpu, gpu or tpu; by default JAX is asked
  --python=python  which Python
  --anew           measure again; what is trained stays, and other options need another folder
  --dry-run        print the commands, in order, and run none
Exit codes: 0 all done, 1 something failed (its log is named), 2 bad input, 75 run it again.
HELP
}

fail() { echo "jaxgen: $1" >&2 && exit 2; }

minutes=9 only='' workdir=runs platform='' python=python anew='' dry=''
for argument in "$@"; do
  case $argument in
    --minutes=*) minutes=${argument#*=} ;;
    --only=*) only=${argument#*=} ;;
    --workdir=*) workdir=${argument#*=} ;;
    --platform=*) platform=${argument#*=} ;;
    --python=*) python=${argument#*=} ;;
    --anew) anew=1 ;;
    --dry-run) dry=1 ;;
    --help) usage && exit 0 ;;
    *) fail "unknown option $argument; see --help" ;;
  esac
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "--minutes=$minutes: give whole minutes above 0"
[[ -z $platform || $platform =~ ^(cpu|gpu|tpu)$ ]] || fail "--platform=$platform: give cpu, gpu or tpu"
end=$((SECONDS + 60 * minutes))
state=$workdir/run_all

if [[ -z $platform ]]; then
  if [[ -n $dry ]]; then
    platform=cpu
  else
    platform=$("$python" -c 'from benchmarks import machine; from jaxgen.runtime import topologies
topologies.look_for_no_tpu(); print(machine.hardware()["platform"])') ||
      fail 'JAX finds no device: its message is above'
  fi
fi

# NAME, the options that it takes (minutes; anew: that and --anew; none), and its command as words of
# the shell; in order of value.
names=() takes=() commands=()
step() {
  names+=("$1") takes+=("$2")
  commands+=("$(printf ' %q' "${@:3}")")
}
if [[ -e $workdir/add/model.safetensors ]]; then
  step latency anew benchmarks.latency "--run=$workdir/add"
else
  step latency anew benchmarks.latency --config=add
fi
if [[ $platform != cpu ]]; then
  step latency_64 anew benchmarks.latency --config=add_64
  step latency_sd21 anew benchmarks.latency --config=add_sd21
fi
step training anew benchmarks.training
if [[ $platform == cpu ]]; then
  step vs_diffusers none benchmarks.vs_diffusers
else
  step vs_diffusers none benchmarks.vs_diffusers --shape=sd21 --dtype=bfloat16
  step latency_sdxl anew benchmarks.latency --config=add_sdxl
fi
[[ $platform != tpu ]] || step attention none benchmarks.attention
step quality minutes benchmarks.quality "--workdir=$workdir/methods"
step methods minutes benchmarks.methods "--workdir=$workdir/methods"
step ablation minutes benchmarks.ablation "--workdir=$workdir/ablation"
step linear_probe none benchmarks.linear_probe
step finetune_flags none benchmarks.finetune_flags "--folder=$workdir/finetune_flags"
step kill_resume none benchmarks.kill_resume --kills=3
step plots none benchmarks.plots
known=" ${names[*]} "
for name in ${only//,/ }; do
  [[ $known == *" $name "* ]] || fail "--only: $name is none of${known}"
done

mine() { [[ -z $only || ,$only, == *",$1,"* ]]; }
left() { echo $((end - SECONDS)); }

# Runs the benchmark at a place in the lists once; leaves NAME.done or NAME.failed beside its log.
measure() {
  local name=${names[$1]} code=0 seconds before=0
  local -a words
  seconds=$(left)
  [[ ! -e $state/$name.log ]] || before=$(wc -c <"$state/$name.log")
  eval "words=(${commands[$1]})"
  # Only the first time: what goes on would else begin anew each time.
  [[ -z $anew || ${takes[$1]} != anew || -e $state/$name.log ]] || words+=(--anew)
  if [[ ${takes[$1]} != none ]]; then
    # Its own limit comes first, so that it saves; the other is for what hangs.
    words+=("--minutes=$(((seconds > 90 ? seconds - 45 : 45) / 60 + 1))")
    seconds=$((seconds + 90))
  fi
  echo "$name: python -m ${words[*]}"
  timeout --signal=TERM --kill-after=60 "$seconds" "$python" -m "${words[@]}" \
    >>"$state/$name.log" 2>&1 || code=$?
  if [[ $code == 0 ]] && tail -c "+$((before + 1))" "$state/$name.log" | grep -q "$unfinished"; then
    code=$again
  fi
  case $code in
    0) mv "$state/$name.log" "$state/$name.done" && echo "$name: done" ;;
    "$again") ;;
    124 | 137)
      echo x >>"$state/$name.tries"
      (($(wc -l <"$state/$name.tries") < tries)) || mv "$state/$name.log" "$state/$name.failed"
      ;;
    130) exit 130 ;;
    *) mv "$state/$name.log" "$state/$name.failed" && echo "$name: exit code $code" ;;
  esac
}

if [[ -n $dry ]]; then
  for at in "${!names[@]}"; do
    mine "${names[at]}" || continue
    more=''
    [[ -z $anew || ${takes[at]} != anew ]] || more+=' --anew'
    [[ ${takes[at]} == none ]] || more+=" --minutes=$minutes"
    echo "$python -m${commands[at]}$more"
  done
  exit 0
fi

mkdir -p "$state"
for name in "${names[@]}"; do
  [[ -z $anew ]] || ! mine "$name" || rm -f "$state/$name".{done,failed,log,tries}
done
for at in "${!names[@]}"; do
  name=${names[at]}
  mine "$name" || continue
  while [[ ! -e $state/$name.done && ! -e $state/$name.failed ]]; do
    if (($(left) < 30)); then
      echo "$minutes minutes are over; the same command goes on with $name"
      exit "$again"
    fi
    measure "$at"
  done
done
broken=''
for name in "${names[@]}"; do
  if mine "$name" && [[ -e $state/$name.failed ]]; then
    echo "$name failed: $state/$name.failed"
    broken=1
  fi
done
[[ -z $broken ]] || exit 1
echo 'all done'
