#!/usr/bin/env bash
# Rebuild the embedded model: tokenizer, base, MSN, adaptive tokens, plain controls, evaluation.
#
#     recipes/tiny.sh DATA [WORK]        DATA: the folder with math/, sql/, ...; WORK: runs/tiny
#
# Every stage that has finished is skipped, and an interrupted one goes on from its last state, so
# the same command continues. About four hours on 2 CPU cores with AMX bf16.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1
work=${2:-runs/tiny}
python=${PYTHON:-.venv/bin/python}
draftless=${DRAFTLESS:-.venv/bin/draftless}
torchrun=${TORCHRUN:-.venv/bin/torchrun}
mkdir -p "$work"

# One thread a process: two processes of one thread are faster than one of two (docs/log.md).
export OMP_NUM_THREADS=1
# Keep freed memory and use large pages: the logits of a batch are tens of MB a step.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 THP_MEM_ALLOC_ENABLE=1

stage() { # stage NAME COMMAND...: run once
    local name=$1
    shift
    if [ -e "$work/$name.done" ]; then
        echo "$name: done before"
        return
    fi
    echo "$name: $(date -u +%H:%M:%S)"
    "$@"
    touch "$work/$name.done"
}

stage tokenizer "$python" recipes/tiny_tokenizer.py --data "$data" --output "$work/tokenizer"

# Two rounds, because the weights of the first one were kept when more time was found.
base() { # base OUTPUT OPTION...
    "$torchrun" --nproc_per_node=2 recipes/tiny_base.py --data "$data" \
        --tokenizer "$work/tokenizer" --micro-batches 4 --output "$@"
}
stage base-1 base "$work/base-1" --steps 1200 --muon-lr 6e-3 --lr 4e-3
stage base base "$work/base" --init "$work/base-1/model" --skip-steps 1200 \
    --steps 1500 --muon-lr 4e-3 --lr 2.7e-3

sft() { # sft NAME START STEPS OPTION...
    local name=$1 start=$2 steps=$3
    shift 3
    "$python" recipes/tiny_sft.py --data "$data" --base "$start" --output "$work/$name" \
        --steps "$steps" --muon-lr 8e-4 --lr 5e-4 "$@"
}
average() { # average NAME TRAINED CONTROL SHARE
    "$python" recipes/tiny_average.py --trained "$work/$2" --control "$work/$3" --share "$4" \
        --output "$work/$1"
}

stage msn sft msn "$work/base/model" 600 \
    --mode branch --noise-targets model --noise-weights 0:1.0 100:0.25 &
msn=$!
stage control sft control "$work/base/model" 600 --mode plain
wait $msn
# As much of MSN as keeps the clean loss within 2 % of the control's.
stage msn-averaged average msn-averaged msn control 0.85

# What this model says itself, to learn adaptive tokens from.
stage prompts "$python" recipes/tiny_prompts.py --data "$data" --output "$work/prompts.jsonl"
stage own "$draftless" data regenerate --model "$work/msn-averaged/model" \
    --prompts "$work/prompts.jsonl" --output "$work/own.jsonl" --max-new-tokens 128 --resume

stage joint sft joint "$work/msn-averaged/model" 240 --order-seed 2 \
    --mode joint --noise-targets model --noise-weights 0:0.25 160:0.15 \
    --adaptive-weights 0:1.0 80:0.5 160:0.25 --own "$work/own.jsonl" &
joint=$!
stage control-2 sft control-2 "$work/control/model" 240 --order-seed 2 --mode plain
wait $joint
stage embedded average embedded joint control-2 0.75

for name in base control msn control-2 joint embedded; do
    stage "evaluate-$name" "$python" recipes/tiny_evaluate.py --data "$data" --cache "$work" \
        --model "$work/$name/model" --output "$work/$name.json"
done
# What it can leave out while it drafts, per domain; measured in skip_streams.sh.
stage skip recipes/skip_streams.sh "$data" "$work/embedded/model" embedded "$work/streams"
stage install "$python" recipes/tiny_install.py --work "$work"
