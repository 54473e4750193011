#!/usr/bin/env bash
# The study's fifth question, second half: does a model whose mask leaves no sinks lose less when its
# products are quantised? Perplexity of finished runs of scripts/study/perplexity.sh with weights and
# inputs of the blocks' projections rounded per tensor (scripts/study/rounded.py says how). Each run is
# a line of RUNS/quantize.jsonl.
#
#   scripts/study/quantize.sh --data DIR [options]
#     --data DIR        folder with the split's shard, such as test.shard
#     --runs FOLDER     --out of perplexity.sh (default: runs/study/perplexity)
#     --split NAME      test or valid (default: test)
#     --gpus LIST       GPUs to spread the runs over; one that is named twice takes two at a time
#                       (default: 0); "": the CPU
#     --python FILE     a Python with torch (default: $STABLEMASK_PYTHON, or that of scripts/setup.sh)
#
# Runs with learned gammas are left out: the model of scripts/bench/peer_torch.py has none. A run that
# is finished is not evaluated again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  data='' runs=runs/study/perplexity split=test gpus=0 python=$(torch_python)
  take_options "${BASH_SOURCE[0]}" '--data --runs --split --gpus --python' "$@"
  require_data "$split.shard"
  "$python" -c 'import torch' 2>/dev/null ||
    die "$python has no torch; state another one with --python" 2
  local run names
  names=$(finished_runs)
  jobs=()
  for run in $names; do
    if [[ $(field_of "$runs/$run" mask) == learnable ]]; then
      note "quantize.sh: $run has learned gammas, which scripts/bench/peer_torch.py has not; left out"
    else
      jobs+=("$run $split")
    fi
  done
  ((${#jobs[@]})) || die "--runs: '$runs' holds no run without learned gammas" 2
  measure quantize
}

# measure_one RUN SPLIT
measure_one() {
  local report last
  last=$runs/$1/checkpoints/$(<"$runs/$1/checkpoints/LATEST")
  report=$(mktemp)
  "$python" "$root/scripts/study/rounded.py" "$last" "$data/$2.shard" >"$report" &&
    line_of quantize.py "$1" "split=$2" "report=$report" && rm "$report"
}

main "$@"
