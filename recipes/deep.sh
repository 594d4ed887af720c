#!/usr/bin/env bash
# Deep and narrow models on which layer skipping can pay: no and much layer dropout, and early exits.
#
#     recipes/deep.sh DATA [WORK]        DATA: the folder with math/, sql/, ...; WORK: runs/deep
#
# 24 layers of width 192, alike but for the layer dropout of their training (0 or 0.7 in the last
# layer), so that what comes from training and what from the search can be told apart; and the second
# trained on with early exits. Then skip sets, anchors and measurements. The weights are not shipped.
#
# Every stage that has finished is skipped, and an interrupted one goes on from its last state, so
# the same command continues. STEPS (1600) may be changed while a model is in training: the learning
# rate falls over the second half of what is asked for then. A number that is reached already writes
# the model of the last saved state as it is, its learning rate not brought down.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1
work=${2:-runs/deep}
steps=${STEPS:-1600}
python=${PYTHON:-.venv/bin/python}
draftless=${DRAFTLESS:-.venv/bin/draftless}
mkdir -p "$work"

export OMP_NUM_THREADS=1
# As in tiny.sh.
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

train() { # train NAME OPTION...: one process each, so that two run at a time on two cores
    local name=$1
    shift
    stage "$name" "$python" recipes/tiny_base.py --data "$data" --tokenizer "$work/tokenizer" \
        --output "$work/$name" --micro-batches 2 --save-every 100 "$@"
}
deep() { # deep NAME DROPOUT
    train "$1" --layers 24 --hidden 192 --layer-dropout "$2" --steps "$steps" \
        --muon-lr 6e-3 --lr 4e-3
}

stage tokenizer "$python" recipes/tiny_tokenizer.py --data "$data" --output "$work/tokenizer"
deep dropout-0 0.0 &
other=$!
deep dropout-7 0.7
# LayerSkip's second ingredient: early layers learn to be the last one.
train exits --init "$work/dropout-7/model" --skip-steps "$steps" --layer-dropout 0.2 \
    --exits 8 --exit-weight 0.5 --steps 900 --muon-lr 4e-3 --lr 2.7e-3
wait $other

for name in dropout-0 dropout-7 exits; do
    stage "manifest-$name" "$python" recipes/tiny_manifest.py --model "$work/$name/model" \
        --recipe recipes/deep.sh
    stage "evaluate-$name" "$python" recipes/tiny_evaluate.py --data "$data" --cache "$work" \
        --model "$work/$name/model" --output "$work/$name.json"
done

# Training without early exits: what one general set brings.
domains="code instruct math sql story summarization translation"
for name in dropout-0 dropout-7; do
    # shellcheck disable=SC2046,SC2086 # one option a domain
    stage "skip-$name" "$draftless" calibrate skip --model "$work/$name/model" --data "$data" \
        $(printf -- '--domain %s ' $domains) --limit 24 --trials 60 --output "$work/$name-skip" \
        --threads 1 --install --resume
    stage "bench-$name" "$draftless" bench run "$work/$name/model" --suite tiny --limit 27 \
        --drafters none,layer-skip --max-new-tokens 96 --name "deep-$name" \
        --output "$work/$name-bench" --threads 1 --resume
done

# With them: anchors, and the policies on streams of requests. The last layers are needless there.
recipes/skip_streams.sh "$data" "$work/exits/model" deep-exits "$work/exits-streams"
