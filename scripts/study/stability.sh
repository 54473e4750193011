#!/usr/bin/env bash
# The study's fifth question: does StableMask change the highest learning rate that trains? Trains short
# runs with each position encoding, mask and peak learning rate, and records every step's loss and
# gradient norm. Every finished run is one line of FOLDER/results.jsonl; a script that was interrupted
# goes on. scripts/study/stability.py prints the tables and says what a spike and a diverged run are.
#
#   scripts/study/stability.sh --data DIR [options]
#     --data DIR        folder with tokenizer.model, one or more train*.shard and valid.shard
#     --out FOLDER      runs and results.jsonl (default: runs/study/stability)
#     --preset NAME     model size (default: 71m)
#     --context T       training length (default: 512)
#     --batch N         sequences a step (default: 64)
#     --steps N         the first tenth is warm-up, then a cosine to a tenth of the peak (default: 300)
#     --lrs LIST        peak learning rates (default: 0.001,0.002,0.004,0.008,0.016,0.032)
#     --seeds LIST      default: 1,2
#     --positions LIST  default: rope,alibi
#     --masks LIST      as in scripts/study/perplexity.sh (default: causal,auto)
#     --gpus LIST       GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start no run after so many seconds (default: none)
#     --set A.B=V       passed on to `stablemask pretrain`; may be repeated
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  parse_arguments "$@"
  require_inputs valid
  local seed position mask lr
  jobs=()
  for seed in ${seeds//,/ }; do
    for lr in ${lrs//,/ }; do
      for position in ${positions//,/ }; do
        for mask in ${masks//,/ }; do jobs+=("$position $mask $seed $lr"); done
      done
    done
  done
  study
}

parse_arguments() {
  data='' out=runs/study/stability preset=71m context=512 batch=64 steps=300
  lrs=0.001,0.002,0.004,0.008,0.016,0.032 seeds=1,2 positions=rope,alibi masks=causal,auto
  gpus=0 time_limit='' settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --out --preset --context --batch --steps --lrs --seeds --positions --masks"
  options+=" --gpus --binary --time-limit --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
  require_masks "$masks"
}

# run_of POSITION MASK SEED LR
run_of() { echo "$out/$preset-$context-$steps-$1-$2-$3-$4"; }

# train POSITION MASK SEED LR. A run that ends because a number is not finite (5) is a result.
train() {
  local status=0
  pretrain "$@" --set train.log_every=1 --set train.save_minutes=0 || status=$?
  ((status == 5)) || return "$status"
}

# finish POSITION MASK SEED LR
finish() {
  local shards=("$data"/train*.shard)
  if [[ -d $run/checkpoints ]]; then
    "$stablemask" eval --checkpoint "$run" --data "$data/valid.shard" --unigram "${shards[0]}" \
      --json "$run/valid.json" || return
  fi
  write_result stability.py "position=$1" "mask=$2" "seed=$3" "lr=$4" || return
  rm -rf "$run/checkpoints"  # nothing of it is read again
}

main "$@"
