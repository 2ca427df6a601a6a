#!/usr/bin/env bash
# For an accelerator that is lent for minutes: parts that each fit into one short command.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

usage() {
  cat <<'HELP'
[NAME=VALUE...] benchmarks/lease.sh PART...

Runs each PART, for MINUTES at most, and leaves what there is by then in OUT/results.tar.gz, anew
every 15 seconds: results, and of what is trained logs, measures and pictures. .carry is what
benchmarks/pack.sh made; it is unpacked by the first command.

  step:CONFIG      images per second of its train step
  unet             the train step of Stable Diffusion 2.1's UNet beside diffusers'
  latency:CONFIG   50 guided steps against one, and their parts, of batches BATCHES
  rivals           one step of Stable Diffusion 2.1's networks beside diffusers', of batches BATCHES
  train            diffusion_64, TEACHER steps of TEACHER_BATCH, then its student add_64, STUDENT
                   steps of STUDENT_BATCH (MINUTES do not end it)
  measure          how good their samples are

MINUTES=3 BATCHES='8 1' TEACHER=3000 TEACHER_BATCH=128 STUDENT=1000 STUDENT_BATCH=128 PYTHON=python3
OUT=/tmp/out SITE=/tmp/site

On an H200 a batch of latency:add_sd21 took two minutes, one of the rivals three and a half, and
two were too few to compile step:diffusion_64. Fifteen minutes begin with the machine's start, and
thirty seconds without a command end the loan, so have the next command ready:

  TEACHER=5000 STUDENT=2000 benchmarks/lease.sh train
  benchmarks/lease.sh measure
  MINUTES=5 benchmarks/lease.sh step:diffusion_64 unet      (another time)
HELP
}

fail() { echo "jaxgen: $1" >&2 && exit 2; }

minutes=${MINUTES:-3} python=${PYTHON:-python3} out=${OUT:-/tmp/out} site=${SITE:-/tmp/site}
teacher=(--config=diffusion_64 --train.batch="${TEACHER_BATCH:-128}" --train.sample-every=0)
student=(--config=add_64 --train.batch="${STUDENT_BATCH:-128}" --train.sample-every=0
  --train.steps="${STUDENT:-1000}")
read -ra batches <<<"${BATCHES:-8 1}"
[[ $# -gt 0 && $1 != --help ]] || { usage && exit 0; }
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "MINUTES=$minutes: give a whole number, 1 or more"
for part in "$@"; do
  [[ $part =~ ^(step:.+|latency:.+|unet|rivals|train|measure)$ ]] || fail "no part $part; see --help"
done

if [[ -f .carry/site.tar.xz && ! -d $site ]]; then
  mkdir -p "$site" data && tar -xJf .carry/site.tar.xz -C "$site" && cp -rn .carry/data/. data/
fi
export PYTHONPATH=$site:$PWD PYTHONUNBUFFERED=1
mkdir -p runs "$out"

copied() {
  local found=(benchmarks/results) path
  for path in runs/*.log runs/quality_*.json runs/{diffusion_64,add_64}/{metrics.jsonl,samples}; do
    [[ ! -e $path ]] || found+=("$path")
  done
  tar -czf "$out/.results" "${found[@]}" 2>/dev/null && mv "$out/.results" "$out/results.tar.gz"
}
(while sleep 15; do copied; done) >/dev/null 2>&1 & # whose sleep outlives it, and holds no pipe
copying=$!
trap 'kill $copying; copied' EXIT

ours() { "$python" -m "$@" 2>&1; }
timed() { timeout $((60 * minutes + 45)) "$python" -m "$@" 2>&1; }

# Compiles what comes after the teacher while that trains, by an untrained one of its shape: no
# program depends on weights. Its words must have been met, so it sees some batches.
warm() {
  export XLA_PYTHON_CLIENT_MEM_FRACTION=.22
  ours jaxgen.train "${teacher[@]}" --name=untrained --train.steps=8
  ours jaxgen.train "${student[@]}" --name=warm --teacher=runs/untrained --drawn.count=256 \
    >runs/warm_student.log &
  local child=$!
  while kill -0 $child && ! grep -q 'warm: compiled' runs/warm_student.log; do sleep 1; done
  kill -9 $child
  ours jaxgen.evaluate --run=runs/untrained --steps=50,8,4,1 --out=runs/untrained.json
}

for part in "$@"; do
  echo "== $part, after $SECONDS s"
  code=0
  case $part in
    step:*) timed benchmarks.training --items "$part" --minutes="$minutes" || code=$? ;;
    unet) timed benchmarks.training --items unet:sd21:bfloat16 --minutes="$minutes" || code=$? ;;
    latency:*)
      timed benchmarks.latency --config="${part#*:}" --batches "${batches[@]}" --dtypes bfloat16 \
        --steps 1 --no-starts --minutes="$minutes" || code=$?
      ;;
    rivals)
      timed benchmarks.vs_diffusers --shape=sd21 --dtype=bfloat16 --batches "${batches[@]}" ||
        code=$?
      ;;
    train)
      set -m # a group of its own, to be ended as one
      warm >runs/warm.log 2>&1 &
      warming=$!
      set +m
      XLA_PYTHON_CLIENT_MEM_FRACTION=.45 ours jaxgen.train "${teacher[@]}" \
        --train.steps="${TEACHER:-3000}" | tee runs/diffusion_64.log || code=$?
      kill -9 -- -$warming 2>/dev/null
      ours jaxgen.train "${student[@]}" --teacher=runs/diffusion_64 | tee runs/add_64.log || code=$?
      ;;
    measure)
      for run in "add_64 1,4" "diffusion_64 50,8,4,1"; do
        read -r name steps <<<"$run"
        ours jaxgen.evaluate --run="runs/$name" --steps="$steps" \
          --out="runs/quality_$name.json" || code=$?
      done
      ;;
  esac
  echo "== $part: exit code $code, after $SECONDS s"
done
