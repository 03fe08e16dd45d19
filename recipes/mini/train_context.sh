#!/bin/sh
# From scores to the bundled model's UNet trained on to play from contexts; stopped at any point, it goes on there.
#     sh recipes/mini/train_context.sh SCORES INDEX [KEY=VALUE ...]
# SCORES: folder of MIDI files. INDEX: table of what is known of them. KEY=VALUE: changes to the configuration.
# In the environment: DATA (data/context), RUN (runs/context), VARIANTS of each score (2), SHARE of the pieces (1).
set -eu
scores=$1
index=$2
shift 2
data=${DATA:-data/context} run=${RUN:-runs/context}
python -m recipes.mini.data "$scores" --index "$index" --out "$data" \
    --only train --variants "${VARIANTS:-2}" --share "${SHARE:-1}"
[ ! -e "$run/training.yaml" ] || set -- --resume "$@"
exec musicldm train diffusion --config configs/mini/diffusion_context.yaml data="$data/train" --out "$run" "$@"
