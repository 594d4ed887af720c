#!/usr/bin/env bash
# Skip drafting on streams of requests: KNN-SSD against one mixed, one fixed and one random set.
#
#     recipes/skip_streams.sh DATA MODEL NAME WORK
#
# Builds the anchor store of MODEL in WORK and installs it, writes the other policies, and measures all of
# them on streams with mix ratios 0, 0.5 and 1 over nine domains, two of which the store has not seen.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 model=$2 name=$3 work=$4
python=${PYTHON:-.venv/bin/python}
draftless=${DRAFTLESS:-.venv/bin/draftless}
export OMP_NUM_THREADS=1
domains="code instruct math sql story summarization translation"

# shellcheck disable=SC2046,SC2086 # one option a domain
"$draftless" calibrate anchors --model "$model" --data "$data" $(printf -- '--domain %s ' $domains) \
    --unseen dialogue --unseen prose --output "$work/store" --limit 80 --trials 60 \
    --anchors centroids --no-protect-ends --threads 1 --install --resume
"$python" recipes/skip_policies.py --model "$model" --store "$work/store" --fixed sql \
    --output "$work/policies"
"$python" recipes/skip_margins.py --model "$model" --store "$work/store" \
    --output "$work/margins.json"
"$draftless" bench run "$model" --suite "$data" --limit 45 --mix 0,0.5,1 \
    --categories "${domains// /,},dialogue,prose" --max-new-tokens 96 --threads 1 --name "$name" \
    --drafters none,knn-ssd --drafter-option "knn-ssd.store=$work/policies/own" \
    --sweep "layer-skip.skip_set=$work/policies/mixed.json,$work/policies/fixed.json,$work/policies/random.json" \
    --output "$work/bench" --resume
