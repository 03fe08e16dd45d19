#!/bin/sh
# Trains a part of the stereo model in the background, with one thread at the lowest priority; goes on where it stopped.
#     sh recipes/mini/train_stereo.sh vae|vocoder [KEY=VALUE ...]
# Stop it with `kill $(cat runs/stereo_vae.pid)`: it saves, and the same command goes on.
set -eu
stage=$1
shift
run=runs/stereo_$stage
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir -p runs
before=$(cat "$run.pid" 2>/dev/null || true)
case "$(ps -o stat= -p "${before:-none}" 2>/dev/null)" in
"" | Z*) ;; # none, or one that has ended
*) echo "process $before trains $run already" >&2 && exit 1 ;;
esac
if [ "$stage" = vae ]; then
    [ -d runs/stereo_start ] || python -m recipes.mini.start_stereo --out runs/stereo_start
    set -- init=runs/stereo_start "$@"
fi
[ ! -d "$run" ] || set -- --resume "$@"
setsid nohup sh -c 'echo 19 2>/dev/null >/proc/self/autogroup || true; exec nice -n 19 "$@"' sh \
    musicldm train "$stage" --config "configs/stereo/$stage.yaml" data=data/stereo/train --out "$run" "$@" \
    >>"$run.log" 2>&1 &
echo $! >"$run.pid"
