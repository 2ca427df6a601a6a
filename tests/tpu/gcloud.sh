#!/usr/bin/env bash
# A stand-in for gcloud: notes its calls and plays the cloud that the folder $CLOUD describes.
#
#   calls           what it was called with: a line a call, words parted by \x1f
#   errors          what the next calls print before they fail, a line each
#   delays          what the next calls wait for first: a line `VERB SECONDS` each, in turn
#   hosts, born     workers in a slice; slices so far
#   plan/N/         the N-th slice (the last, for all that follow): states, what `queued-resources
#                   describe` says in turn, the last line from then on; node, what `tpu-vm describe`
#                   says; silent, the workers that do not answer
#   lives/N/worker-I/   home of worker I of slice N, where commands sent by ssh really run
#   exists          there where there is a slice
#   bucket/         what is in gs://: what workers copied there, and what they copy from there
set -euo pipefail
cd "$CLOUD"

complain() { echo "ERROR: $1" >&2 && exit 1; }

words=() && format='' && line=''
for word in "$@"; do
  case $word in
  --format=*) format=$word ;;
  --command=*) line=${word#*=} ;;
  --*) ;;
  *) words+=("$word") ;;
  esac
done

if [[ ${words[*]::2} == 'storage cp' ]]; then # from a worker, not from tpu.sh
  mkdir -p "bucket/$(dirname "${words[3]#gs://}")"
  cd "$OLDPWD" && cp "${words[2]}" "$CLOUD/bucket/${words[3]#gs://}" && exit
fi
if [[ ${words[*]::2} == 'storage rsync' && $OLDPWD == "$CLOUD"/lives/* ]]; then # likewise
  from=bucket/${words[2]#gs://}
  [[ -d $from ]] || complain "The following URLs matched no objects or files: ${words[2]}"
  cp -r "$from/." "$OLDPWD/${words[3]}" && exit
fi
(IFS=$'\x1f' && echo "$*") >>calls
if [[ -s errors ]]; then
  error=$(head -n 1 errors)
  sed -i 1d errors
  complain "$error"
fi
[[ ${words[0]} == compute ]] || exit 0
if read -r slow seconds 2>/dev/null <delays && [[ ${words[3]} == "$slow" ]]; then
  sed -i 1d delays
  sleep "$seconds"
fi

hosts=$(cat hosts)
born=$(cat born)
life=plan/$born
[[ -d $life ]] || life=plan/$(find plan -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -n 1)
what=${words[2]} verb=${words[3]} rest=("${words[@]:4}")
[[ -e exists || $verb == create ]] || complain "NOT_FOUND: ${rest[0]}"
workers() { eval "echo lives/$born/worker-{0..$((hosts - 1))}"; }

case $what:$verb in
*:create)
  [[ ! -e exists ]] || complain "ALREADY_EXISTS: ${rest[0]}"
  touch exists
  echo $((++born)) >born
  workers | xargs mkdir -p ;;
*:delete) # what runs on the machines ends with them
  rm exists
  for pid in lives/"$born"/*/jaxgen-tpu/pid; do
    kill -KILL -- "-$(cat "$pid" 2>/dev/null)" 2>/dev/null || true
  done ;;
queued-resources:describe)
  head -n 1 "$life/states"
  [[ $(wc -l <"$life/states") == 1 ]] || sed -i 1d "$life/states" ;;
tpu-vm:describe)
  if [[ $format == *networkEndpoints* ]]; then echo "$hosts"
  elif [[ -s $life/node ]]; then cat "$life/node"
  else complain "NOT_FOUND: node ${rest[0]}"; fi ;;
*:scp)
  last=$((${#rest[@]} - 1))
  for home in $(workers); do cp "${rest[@]:0:last}" "$home/${rest[last]#*:}"; done ;;
*:ssh)
  started=() && code=0
  for home in $(workers); do
    if grep -qx "${home: -1}" "$life/silent"; then code=1 && continue; fi
    (cd "$home" && HOME=$PWD HOSTNAME=${home##*/} exec setsid bash -c "$line") &
    started+=($!)
  done
  for pid in ${started[@]+"${started[@]}"}; do
    wait "$pid" || code=$?
    kill -HUP -- "-$pid" 2>/dev/null || true # as the end of a connection
  done
  ((code == 0)) || complain "ssh failed" ;;
esac
