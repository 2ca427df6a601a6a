#!/usr/bin/env bash
# Measures everything on the devices at hand, the most telling first: what to run first on a new
# accelerator. Run it again until it says that all is done; `run_all.sh --help` says more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

again=75 # the exit code of what has saved and wants to be run again
unfinished='are left: the same command goes on' # said by one that ends with 0 all the same
tries=3  # times that a command which cannot go on where it was may run out of time
least=100 # seconds, with fewer of which no benchmark is begun
saving=75 # seconds before the end at which a benchmark is to save by itself
grace=10  # seconds from telling it to end to killing it, after the end

usage() {
  cat <<'HELP'
benchmarks/run_all.sh [OPTION...]

Runs one benchmark after the other, each for a few minutes at a time. The results are written to
benchmarks/results/HARDWARE/, the logs to WORKDIR/run_all/. What is done is not done again, and what
ran out of time goes on.

  --minutes=9      of the whole command; then it saves and ends with exit code 75, at most 20
                   seconds later
  --only=A,B       some of the benchmarks
  --workdir=runs   folder of runs, which are trained where they are missing
  --platform=P     cpu, gpu or tpu; by default JAX is asked
  --python=python  which Python
  --copy=DIR       leaves results and logs there as results.tar.gz after each benchmark, for a
                   machine of which nothing else comes back
  --anew           measure again; what is trained stays, and other options need another folder
  --dry-run        print the commands, in order, and run none
Exit codes: 0 all done, 1 something failed (its log is named), 2 bad input, 75 run it again.
HELP
}

fail() { echo "jaxgen: $1" >&2 && exit 2; }

minutes=9 copy='' only='' workdir=runs platform='' python=python anew='' dry=''
for argument in "$@"; do
  case $argument in
    --minutes=*) minutes=${argument#*=} ;;
    --copy=*) copy=${argument#*=} ;;
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
[[ $minutes =~ ^([2-9]|[1-9][0-9]+)$ ]] || fail "--minutes=$minutes: give 2 or more, whole ones"
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
subject=--config=add dtypes=()
[[ ! -e $workdir/add/model.safetensors ]] || subject=--run=$workdir/add
[[ $platform == cpu ]] || dtypes=(--dtypes bfloat16 float32)
step latency anew benchmarks.latency "$subject" "${dtypes[@]}"
step training anew benchmarks.training "--trace=$workdir/trace"
if [[ $platform == cpu ]]; then
  step vs_diffusers none benchmarks.vs_diffusers
else
  step latency_64 anew benchmarks.latency --config=add_64 --batches 1 8 64 \
    --dtypes bfloat16 float32
  step latency_sd21 anew benchmarks.latency --config=add_sd21 --batches 1 8 64 --dtypes bfloat16
  step vs_diffusers none benchmarks.vs_diffusers --shape=sd21 --dtype=bfloat16
  step vs_diffusers_sdxl none benchmarks.vs_diffusers --shape=sdxl --dtype=bfloat16
fi
[[ $platform != tpu ]] || step attention none benchmarks.attention
step quality minutes benchmarks.quality "--workdir=$workdir/quality"
step methods minutes benchmarks.methods "--workdir=$workdir/methods"
[[ $platform == cpu ]] ||
  step latency_sdxl anew benchmarks.latency --config=add_sdxl --batches 1 8 --dtypes bfloat16
step ablation minutes benchmarks.ablation "--workdir=$workdir/ablation" \
  "--teacher=$workdir/quality/diffusion_subgroups"
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
  local name=${names[$1]} code=0 seconds own before=0
  local -a words
  seconds=$(left)
  [[ ! -e $state/$name.log ]] || before=$(wc -c <"$state/$name.log")
  eval "words=(${commands[$1]})"
  # Only the first time: what goes on would else begin anew each time.
  [[ -z $anew || ${takes[$1]} != anew || -e $state/$name.log ]] || words+=(--anew)
  # Its own limit comes first, so that it saves; the other is for what hangs.
  own=$((seconds - saving))
  [[ ${takes[$1]} == none ]] ||
    words+=("--minutes=$((own / 60)).$(printf %02d $((own % 60 * 100 / 60)))")
  echo "$name: python -m ${words[*]}"
  timeout --signal=TERM --kill-after="$grace" "$seconds" "$python" -m "${words[@]}" \
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

# One file, for of a lent machine few come back.
copied() {
  [[ -n $copy ]] || return 0
  mkdir -p "$copy"
  tar -czf "$copy/.results" benchmarks/results -C "$workdir" run_all
  mv "$copy/.results" "$copy/results.tar.gz"
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

mkdir -p "$state" benchmarks/results
trap copied EXIT
for name in "${names[@]}"; do
  [[ -z $anew ]] || ! mine "$name" || rm -f "$state/$name".{done,failed,log,tries}
done
for at in "${!names[@]}"; do
  name=${names[at]}
  mine "$name" || continue
  while [[ ! -e $state/$name.done && ! -e $state/$name.failed ]]; do
    if (($(left) < least)); then
      echo "$minutes minutes are over; the same command goes on with $name"
      exit "$again"
    fi
    measure "$at"
    copied
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
