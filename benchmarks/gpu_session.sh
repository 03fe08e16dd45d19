#!/usr/bin/env bash
# Everything that docs/speed.md says about a GPU, measured by one command in at most 580 s, most valuable first.
#
#     bash benchmarks/gpu_session.sh                            on a machine with an NVIDIA GPU, in the repository
#     CUDA_VISIBLE_DEVICES= bash benchmarks/gpu_session.sh tiny   a rehearsal without one, at small sizes
#
# OUT is the folder of the results (default: benchmarks/results/gpu), PYTHON the interpreter (default: python),
# LIMIT the seconds for all. Every step is a process of its own with its own limit; what fails or runs out of time stops
# none of the others, and what it had measured is in the file, which is written after every row. session.jsonl says how
# each step ended. No step needs the bundled weights. If the tree is copied to the machine, move them out of it before:
#
#     mv musicldm/pretrained/mini /tmp/mini && du -sh --exclude=.git .    # what travels: below 64 MiB
#     mv /tmp/mini musicldm/pretrained/mini                               # afterwards
#
# Then: copy the JSON files to benchmarks/results/, and the lines for MEASURED in session.txt to
# musicldm/kernels/dot_product.py, so that attention takes the faster of kernel and torch.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python} OUT=${OUT:-benchmarks/results/gpu} LIMIT=${LIMIT:-580}
TABLE="--table $OUT/attention.json" TINY= SIZE=original TRAIN="--batch 0" MINI="--size mini --batch 256"
if [ "${1:-}" = tiny ]; then
  TINY=--tiny SIZE=tiny TRAIN="--repetitions 1" MINI="--size tiny --repetitions 1"
fi
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
START=$SECONDS

# step NAME LIMIT COMMAND...: run it, for as long as it may and as the time that is left allows.
step() {
  local name=$1 limit=$2 began=$SECONDS left=$((LIMIT - SECONDS + START)) code
  shift 2
  [ -z "$TINY" ] || limit=$LIMIT
  limit=$((limit < left ? limit : left))
  if [ "$limit" -lt 10 ]; then
    code=-1 # no time
  else
    timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    code=$?
  fi
  printf '{"step": "%s", "exit": %d, "seconds": %d, "limit": %d}\n' "$name" "$code" $((SECONDS - began)) "$limit" |
    tee -a "$OUT/session.jsonl"
}

bench() { step "$1" "$2" "$PYTHON" -m "benchmarks.${@:3}"; }

: >"$OUT/session.jsonl"
bench attention 150 attention $TINY --out "$OUT/attention.json"
bench calls 140 generate_gpu calls $TINY $TABLE --out "$OUT/generate_gpu.json"
step tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider --continue-on-collection-errors -m gpu \
  tests/kernels tests/sampling tests/pipelines tests/train
bench stages 60 generate_gpu stages $TINY $TABLE --out "$OUT/generate_gpu.json"
bench windows 60 generate_gpu windows $TINY $TABLE --out "$OUT/generate_gpu.json"
bench training 70 training --size $SIZE --stages diffusion $TRAIN --out "$OUT/training.json"
bench on_device 60 training $MINI --stages diffusion --on-device --out "$OUT/training.json"
bench profile 60 generate_gpu profile $TINY $TABLE --out "$OUT/generate_gpu.json"
bench training_others 90 training --size $SIZE --stages vae vocoder clap $TRAIN --out "$OUT/training.json"
for log in "$OUT"/*.log; do # one file, the ends of all
  echo "== $(basename "$log" .log)" && tail -n 25 "$log"
done >"$OUT/session.txt"
rm -f "$OUT"/*.log
