#!/usr/bin/env bash
# The study's third question: attention sinks and large activations, with a causal mask and with
# StableMask, through training. Inspects the kept checkpoints of finished runs of
# scripts/study/perplexity.sh (trained with --keep 8); each checkpoint is a line of RUNS/sinks.jsonl.
#
#   scripts/study/sinks.sh --data DIR [options]
#     --data DIR        folder with the split's shard, such as valid.shard
#     --runs FOLDER     --out of perplexity.sh (default: runs/study/perplexity)
#     --split NAME      valid or test (default: valid)
#     --windows N       windows of the training length, spread evenly over the text (default: 64)
#     --gpus LIST       GPUs to spread the work over; one that is named twice runs two checkpoints at a
#                       time (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#
# A checkpoint that is finished is not inspected again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  parse_arguments "$@"
  local run names checkpoint
  names=$(finished_runs)
  jobs=()
  for run in $names; do
    for checkpoint in "$runs/$run"/checkpoints/step-*; do
      jobs+=("$run $split ${checkpoint##*/}")
    done
  done
  measure sinks
}

parse_arguments() {
  data='' runs=runs/study/perplexity split=valid windows=64 gpus=0
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  take_options "${BASH_SOURCE[0]}" '--data --runs --split --windows --gpus --binary' "$@"
  require_count --windows "$windows"
  require_stablemask
  require_data "$split.shard"
}

# measure_one RUN SPLIT CHECKPOINT
measure_one() {
  local reports
  reports=$(mktemp -d)
  "$stablemask" inspect --checkpoint "$runs/$1/checkpoints/$3" --data "$data/$2.shard" \
    --windows "$windows" --map-tokens 1 --out "$reports" >&2 &&
    line_of sinks.py "$1" "split=$2" "reports=$reports" && rm -r "$reports"
}

main "$@"
