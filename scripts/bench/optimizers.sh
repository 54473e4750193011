#!/usr/bin/env bash
# How many steps Muon needs for AdamW's loss: trains one model after the other on one GPU, AdamW and
# Muon at several learning rates, and Muon for a share of AdamW's steps with the schedule of that
# length. Every finished run is one line of FOLDER/results.jsonl; an interrupted script goes on.
# scripts/bench/optimizers.py prints the table.
#
#   scripts/bench/optimizers.sh --data DIR [options]
#     --data DIR        folder with tokenizer.model, one or more train*.shard and valid.shard
#     --out FOLDER      runs and results.jsonl (default: runs/optimizers)
#     --preset NAME     model size (default: 71m)
#     --context T       training length (default: 512)
#     --batch N         sequences a step (default: 64)
#     --steps N         AdamW's steps (default: 1200)
#     --adamw LIST      AdamW's peak learning rates (default: 0.001,0.002,0.004)
#     --muon LIST       Muon's peak learning rates (default: 0.002,0.004,0.008)
#     --shares LIST     Muon's steps as shares of AdamW's (default: 0.6,0.75)
#     --seed N          default: 1
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start no run after so many seconds (default: none)
#     --set A.B=V       passed on to `stablemask pretrain`; may be repeated
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  parse_arguments "$@"
  require_stablemask
  [[ -n $data && -f $data/tokenizer.model && -f $data/valid.shard ]] ||
    die "--data needs a folder with tokenizer.model, train*.shard and valid.shard, got '$data'" 2
  mkdir -p "$out"
  local lr share
  for lr in ${adamw//,/ }; do run_once adamw "$lr" "$steps"; done
  for share in ${shares//,/ }; do
    for lr in ${muon//,/ }; do
      run_once muon "$lr" "$(awk -v n="$steps" -v s="$share" 'BEGIN { printf "%d\n", n * s + 0.5 }')"
    done
  done
}

parse_arguments() {
  data='' out=runs/optimizers preset=71m context=512 batch=64 steps=1200 seed=1 time_limit=
  adamw=0.001,0.002,0.004 muon=0.002,0.004,0.008 shares=0.6,0.75 settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --out --preset --context --batch --steps --adamw --muon --shares --seed"
  options+=" --binary --time-limit --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
}

# run_once KIND LR STEPS
run_once() {
  local run=$out/$preset-$1-$2-$3-$seed
  if [[ -f $run/result.json ]]; then return; fi
  if [[ -n $time_limit ]] && ((SECONDS > time_limit)); then return; fi
  mkdir -p "$run"
  train "$run" "$@" >>"$run/log" 2>&1 || die "$run/log: $(tail -n 1 "$run/log")"
  python3 "$root/scripts/study/result.py" --result "$run" "preset=$preset" "optimizer=$1" \
    "lr=$2" "steps=$3" "seed=$seed" "batch=$batch" "context=$context" "card=$(card)" >"$run/part"
  mv "$run/part" "$run/result.json"
  cat "$run/result.json" | tee -a "$out/results.jsonl"
  rm -rf "$run/checkpoints"  # gigabytes, of which nothing is read again
}

# train RUN KIND LR STEPS
train() {
  "$stablemask" pretrain /dev/stdin --quiet --set "train.out=$1" \
    --set "data.train=$(train_shards "$data")" ${settings[@]+"${settings[@]}"} <<<"{
      \"model\": {\"preset\": \"$preset\", \"vocab_size\": 0},
      \"data\": {\"tokenizer\": \"$data/tokenizer.model\", \"valid\": \"$data/valid.shard\",
                 \"verify\": \"headers\"},
      \"train\": {\"context\": $context, \"batch\": $batch, \"steps\": $4, \"seed\": $seed,
                  \"log_every\": 50, \"save_minutes\": 0, \"keep_last\": 1},
      \"optimizer\": {\"kind\": \"$2\", \"lr\": $3},
      \"schedule\": {\"warmup_steps\": $(($4 / 10 < 300 ? $4 / 10 : 300))}
    }"
}

main "$@"
