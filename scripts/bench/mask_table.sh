#!/usr/bin/env bash
# What StableMask buys, within and beyond the training length: trains a model with and without it for
# each position encoding and seed, evaluates every model at several lengths, and prints a Markdown
# table of word perplexities.
#
#   scripts/bench/mask_table.sh --data DIR [options]
#     --data DIR           folder with tokenizer.model, one or more train*.shard, and test.shard
#     --out FOLDER         runs, evaluations, table.md and table.json (default: runs/mask-table)
#     --preset NAME        model size (default: 71m)
#     --context T          training length (default: 512)
#     --batch N            sequences a step (default: 64)
#     --steps N            default: 6000
#     --warmup N           warm-up steps (default: 300)
#     --seeds LIST         default: 1,2
#     --lengths LIST       default: 512,1024,2048,4096,8192
#     --variants LIST      of alibi-causal, alibi-stablemask, rope-causal, rope-stablemask (default: all)
#                          and learnable forms: alibi-learnable, rope-learnable, rope-slopes
#     --gpus LIST          GPUs to spread the runs over, one run on each at a time (default: 0);
#                          "": the CPU
#     --binary FILE        default: $STABLEMASK_BINARY, or build/stablemask
#     --table-only         only evaluations and the table, of runs that are there
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
  [[ -x $stablemask ]] || die "$stablemask is not there; run scripts/setup.sh, or state --binary"
  [[ -n $data && -f $data/tokenizer.model && -f $data/test.shard ]] ||
    die "--data needs a folder with tokenizer.model, train*.shard and test.shard, got '$data'" 2
  mkdir -p "$out"
  local seed variant
  jobs=()
  for seed in ${seeds//,/ }; do
    for variant in ${variants//,/ }; do jobs+=("$variant $seed"); done
  done
  spread_over_gpus "$gpus" work "$out/*/log"
  python3 "$root/scripts/bench/mask_table.py" "$out" "$context" | tee "$out/table.md"
}

parse_arguments() {
  data='' out=runs/mask-table preset=71m context=512 batch=64 steps=6000 warmup=300 seeds=1,2
  lengths=512,1024,2048,4096,8192 gpus=0 train_runs=1
  variants=alibi-causal,alibi-stablemask,rope-causal,rope-stablemask
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --table-only)
        train_runs=0
        shift
        continue
        ;;
    esac
    [[ $1 =~ ^--(data|out|preset|context|batch|steps|warmup|seeds|lengths|variants|gpus|binary)$ ]] ||
      die "unknown option '$1' (see --help)" 2
    (($# > 1)) || die "$1 needs a value" 2
    case $1 in
      --binary) stablemask=$2 ;;
      *) printf -v "${1#--}" '%s' "$2" ;;
    esac
    shift 2
  done
}

# work WORKER COUNT
work() {
  local worker=$1 count=$2 i
  for ((i = worker; i < ${#jobs[@]}; i += count)); do
    # shellcheck disable=SC2086
    one_run ${jobs[i]}
  done
}

one_run() {
  local variant=$1 run=$out/$1-$2 shards fields
  mkdir -p "$run"
  if ((train_runs)); then
    shards=$(printf ',"%s"' "$data"/train*.shard)
    read -r -a fields < <(model_fields "$variant")
    "$stablemask" pretrain /dev/stdin --quiet --set "train.seed=$2" --set "train.out=$run" \
      --set "data.train=[${shards:1}]" --set "data.tokenizer=$data/tokenizer.model" \
      "${fields[@]}" >>"$run/log" 2>&1 <<<"{
        \"model\": {\"preset\": \"$preset\", \"vocab_size\": 0},
        \"train\": {\"context\": $context, \"batch\": $batch, \"steps\": $steps, \"log_every\": 100},
        \"optimizer\": {\"beta2\": 0.98},
        \"schedule\": {\"warmup_steps\": $warmup}
      }" || return
  fi
  evaluate "$variant" "$run" >>"$run/log" 2>&1
  note "$(date +%T) $variant, seed $2: done"
}

model_fields() {
  printf -- '--set model.position=%s ' "${1%%-*}"
  case $1 in
    *-causal) printf -- '--set model.stable_mask=false' ;;
    *-learnable) printf -- '--set model.stable_mask.learnable=true' ;;
    *-slopes) printf -- '--set model.stable_mask.gamma=slopes' ;;
  esac
  echo
}

evaluate() {
  local variant=$1 run=$2 name window
  local -A forms=([trained]='')
  if [[ $variant != *-causal ]]; then
    forms[infinite]='--mask-length infinite'
    forms[none]='--set model.stable_mask.beyond=none'
  fi
  for name in "${!forms[@]}"; do
    for window in '' "$context"; do
      [[ -z $window || $variant == rope-* ]] || continue
      # shellcheck disable=SC2086
      "$stablemask" eval --checkpoint "$run" --data "$data/test.shard" --lengths "$lengths" \
        ${forms[$name]} ${window:+--attention-window "$window"} \
        --json "$run/eval-$name${window:+-window}.json" || return
    done
  done
}

main "$@"
