#!/usr/bin/env bash
# What StableMask buys, within and beyond the training length: trains models with and without it by
# scripts/study/perplexity.sh, evaluates every model at several lengths and in several ways, and prints
# a Markdown table of word perplexities.
#
#   scripts/bench/mask_table.sh --data DIR [options]
#     --data DIR       folder with tokenizer.model, one or more train*.shard, valid.shard, test.shard
#     --out FOLDER     runs, evaluations, table.md and table.json (default: runs/mask-table)
#     --preset NAME    model size (default: 71m)
#     --context T      training length (default: 512)
#     --batch N        sequences a step (default: 64)
#     --steps N        default: 6000
#     --seeds LIST     default: 1,2
#     --lengths LIST   test windows beside T (default: 1024,2048,4096,8192)
#     --alibi LIST     masks of ALiBi models, as perplexity.sh names them (default: causal,slopes)
#     --rope LIST      of RoPE models (default: causal,1)
#     --gpus LIST      GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE    default: $STABLEMASK_BINARY, or build/stablemask
#     --set A.B=V      passed on to `stablemask pretrain`; may be repeated
#
# Each StableMask model is evaluated as it is trained (rows beyond the mask length keep the pseudo mass
# of an infinite one), with an infinite mask length in all rows, and without any mass beyond. RoPE
# models, which do not extrapolate, are evaluated with a window of T keys as well. A finished run is
# not trained again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  parse_arguments "$@"
  local position masks
  for position in alibi rope; do
    masks=$alibi
    if [[ $position == rope ]]; then masks=$rope; fi
    "$root/scripts/study/perplexity.sh" --data "$data" --out "$out" --preset "$preset" \
      --context "$context" --batch "$batch" --steps "$steps" --seeds "$seeds" --lengths "$lengths" \
      --positions "$position" --masks "$masks" --gpus "$gpus" --binary "$stablemask" \
      ${settings[@]+"${settings[@]}"}
  done
  runs=("$out"/*/result.json)
  spread_over_gpus "$gpus" work "$out/*/log"
  python3 "$root/scripts/bench/mask_table.py" "$out" "$context" | tee "$out/table.md"
}

parse_arguments() {
  data='' out=runs/mask-table preset=71m context=512 batch=64 steps=6000 seeds=1,2
  lengths=1024,2048,4096,8192 alibi=causal,slopes rope=causal,1 gpus=0 settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --out --preset --context --batch --steps --seeds --lengths --alibi --rope"
  options+=" --gpus --binary --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
}

# work WORKER COUNT
work() {
  local worker=$1 count=$2 i
  for ((i = worker; i < ${#runs[@]}; i += count)); do evaluate "${runs[i]%/result.json}"; done
}

evaluate() {
  local run=$1 model=${1##*/} name window
  local -A forms=([trained]='')
  if [[ $model != *-causal-* ]]; then
    forms[infinite]='--mask-length infinite'
    forms[none]='--set model.stable_mask.beyond=none'
  fi
  for name in "${!forms[@]}"; do
    for window in '' "$context"; do
      [[ -z $window || $model == *-rope-* ]] || continue
      # shellcheck disable=SC2086
      "$stablemask" eval --checkpoint "$run" --data "$data/test.shard" --lengths "$context,$lengths" \
        ${forms[$name]} ${window:+--attention-window "$window"} \
        --json "$run/eval-$name${window:+-window}.json" >>"$run/log" 2>&1 || return
    done
  done
}

main "$@"
