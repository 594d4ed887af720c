#!/usr/bin/env bash
# Train a model of 188M parameters on one GPU within 25 minutes and measure every drafter on it.
#
#     recipes/gpu.sh DATA OUT                         everything
#     STAGE="data base" recipes/gpu.sh DATA OUT       some stages, each under 9 minutes
#     TOY=1 recipes/gpu.sh src/draftless/assets/samples OUT      all of it, tiny, on a CPU
#
# DATA: a folder of JSONL records with "prompt" and "response". OUT: results (JSON), no weights; those
# stay in WORK (runs/gpu). Stages: data base control msn adaptive bench replay. A stage that is done is
# skipped; one that was stopped goes on from its checkpoint (exit code 75: run the same again).
# Needs torch with its GPU, transformers, accelerate, typer, rich and PyYAML; nothing is downloaded.
#
# On a lent machine (10 minutes a command, 64 MiB of working tree, WORK lost when it goes back): move
# recipes/weights and benchmarks/results out of the way, copy DATA into an ignored folder named in
# `carry`, and call, one right after the other, with OUT=$OUT/gpu:
#     STAGE="data base"   STAGE="control msn"   STAGE="adaptive bench"   STAGE=replay
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
data=$(cd "$here" && realpath "$1")
out=$(cd "$here" && mkdir -p "$2" && realpath "$2")
work=${WORK:-runs/gpu}
toy=${TOY:-}
stages=${STAGE:-data base control msn adaptive bench replay}
for name in $stages; do
    case $name in
        data | base | control | msn | adaptive | bench | replay) ;;
        *) echo "unknown stage $name" >&2 && exit 2 ;;
    esac
done
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}  # of several, the trainer would use all
"$python" -c 'import accelerate, rich, torch, transformers, typer, yaml' || exit 2
# Seconds: of the whole call, where some stages are asked for; and of every stage.
limit=${LIMIT_S:-${STAGE:+540}}
limit=${limit:-7200} stage_limit=530 begun=0
mkdir -p "$work"

if [ "$toy" ]; then
    export OMP_NUM_THREADS=1
    data_options=(--limit 300) train_options=(--toy --steps 6)
    bench_options=(--limit 2 --max-new-tokens 12 --device cpu --dtype float32 --temperature 0)
    replay_sizes=toy replay_options=(--device cpu --dtype float32 --tokens 24 --repeats 1)
else
    data_options=() train_options=()
    bench_options=(--limit "${QUESTIONS:-12}" --max-new-tokens 96 --device cuda --dtype bfloat16
        --temperature 0,1)
    replay_sizes="16M 1B 7B" replay_options=(--device cuda --compile both --tokens 96 --repeats 3)
fi

left() { # seconds that the stage has left
    local of_call=$((limit - SECONDS)) of_stage=$((stage_limit + begun - SECONDS))
    echo $((of_call < of_stage ? of_call : of_stage))
}

stage() { # stage NAME COMMAND...: run once
    local name=$1
    shift
    if [ -e "$work/$name.done" ]; then
        echo "$name: done before"
        return
    fi
    begun=$SECONDS
    if [ "$(left)" -lt 60 ]; then
        echo "no time left for $name; the same command goes on"
        exit 75
    fi
    echo "$name: $(date -u +%H:%M:%S)"
    "$@"
    touch "$work/$name.done"
    echo "$name: $SECONDS s since the start"
}

within() { # within COMMAND...: stopped, as by Ctrl-C, when the call's time is over
    local code=0
    timeout -s INT "$(left)" "$@" || code=$?
    if [ $code = 124 ]; then
        echo "out of time; the same command goes on"
        exit 75
    fi
    return $code
}

train() { # train NAME MINUTES
    "$python" recipes/gpu_train.py "$1" --work "$work" --minutes "$2" \
        --limit-s "$(left)" "${train_options[@]}"
}
bench() { # bench NAME OPTION...: the model of that name
    local name=$1 code=0
    shift
    within "$python" -m draftless bench run "$work/$name" --suite tiny --name "gpu-$name" \
        --output "$work/bench-$name" --resume "${bench_options[@]}" "$@" || code=$?
    if [ $code = 1 ] && [ -s "$work/bench-$name/rows.jsonl" ]; then
        echo "some answers differ by more than a near-tie: see the report on $work/bench-$name"
        code=0
    fi
    return $code
}
both() {
    bench adaptive
    # What training brought: the drafters that need none, and untrained denoising.
    bench control --drafters none,prompt-lookup,recycling,tr-jacobi --no-peers
}
replay() { # random weights, recorded acceptance: one model a stage, the large ones take minutes
    local size
    for size in $replay_sizes; do
        stage "replay-$size" within "$python" benchmarks/replay.py --sizes "$size" \
            "${replay_options[@]}" --output "$work/replay-$size.json"
    done
}
collect() { # what is there goes to OUT
    "$python" recipes/gpu_collect.py "$work" "$out"
}
trap collect EXIT

for name in $stages; do
    case $name in
        data) stage data "$python" recipes/gpu_data.py "$data" "$work" "${data_options[@]}" ;;
        base) stage base train base "${BASE_MINUTES:-7}" ;;
        control | msn) stage "$name" train "$name" "${SFT_MINUTES:-3}" ;;
        adaptive) stage adaptive train adaptive "${ADAPTIVE_MINUTES:-3}" ;;
        bench) stage bench both ;;
        replay) replay ;;
    esac
done
