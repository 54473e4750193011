#!/usr/bin/env bash
# The study's first question: perplexity with and without StableMask, with RoPE and with ALiBi. Trains
# one model for each position encoding, mask and seed, and evaluates it on the validation and the test
# split. Every finished model is one line of FOLDER/results.jsonl; a run that was interrupted goes on.
#
#   scripts/study/perplexity.sh --data DIR [options]
#     --data DIR        folder with tokenizer.model, one or more train*.shard, valid.shard, test.shard
#     --out FOLDER      runs and results.jsonl (default: runs/study/perplexity)
#     --preset NAME     model size (default: 71m)
#     --context T       training length (default: 512)
#     --batch N         sequences a step (default: 64)
#     --epochs N        passes over the training text (default: 1)
#     --steps N         length in steps instead
#     --lr X            peak learning rate (default: 0.001)
#     --seeds LIST      default: 1,2,3
#     --positions LIST  default: rope,alibi
#     --masks LIST      default: causal,slopes,0.25,1,4,infinite,sink,learnable (see below)
#     --lengths LIST    test windows beside T, those that are longer (default: 1024,2048,4096)
#     --keep N          checkpoints to keep of a run's course, at equal distances, for sinks.sh; all
#                       but the last without the optimizer's state (default: 1, the last)
#     --gpus LIST       GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start no run after so many seconds (default: none)
#     --set A.B=V       passed on to `stablemask pretrain`; may be repeated
#
# Masks: causal; gamma `auto`, as the slopes or a number, with mask length T; infinite: gamma as `auto`,
# every row with the mass of an infinite mask length; sink: gamma 50 and an infinite mask length, which
# is a softmax with 1 added to its denominator; learnable: gamma and p_base trained, from `auto`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  parse_arguments "$@"
  require_inputs valid test
  read -r epochs steps < <(awk -v t="$(training_tokens)" -v e="$epochs" -v n="$steps" \
    -v s=$((context * batch)) 'BEGIN { print n == "" ? e : sprintf("%.3g", n * s / t), n == "" ? int(t * e / s) : n }')
  local seed position mask
  jobs=()
  for seed in ${seeds//,/ }; do
    for position in ${positions//,/ }; do
      for mask in ${masks//,/ }; do jobs+=("$position $mask $seed"); done
    done
  done
  study
}

parse_arguments() {
  data='' out=runs/study/perplexity preset=71m context=512 batch=64 epochs=1 steps='' lr=0.001
  seeds=1,2,3 positions=rope,alibi masks=causal,slopes,0.25,1,4,infinite,sink,learnable
  lengths=1024,2048,4096 keep=1 gpus=0 time_limit='' settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --out --preset --context --batch --epochs --steps --lr --seeds --positions"
  options+=" --masks --lengths --keep --gpus --binary --time-limit --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
  require_masks "$masks"
  require_count --keep "$keep"
  if [[ -n $lengths ]]; then require_numbers --lengths "$lengths"; fi
}

# Of the shards, as their headers state them.
training_tokens() {
  local shard tokens=0
  for shard in "$data"/train*.shard; do
    tokens=$((tokens + $(shard_tokens "$shard")))
  done
  echo "$tokens"
}

# run_of POSITION MASK SEED
run_of() { echo "$out/$preset-$context-$epochs-$1-$2-$3"; }

# train POSITION MASK SEED
train() {
  local every=$((steps > keep ? steps / keep : 1)) course=()
  if ((keep > 1)); then course=(--set "train.save_every=$every" --set "train.keep_every=$every"); fi
  pretrain "$1" "$2" "$3" "$lr" ${course[@]+"${course[@]}"}
}

# finish POSITION MASK SEED
finish() {
  strip_checkpoints && evaluate &&
    write_result result.py "position=$1" "mask=$2" "seed=$3" "epochs=$epochs" "lr=$lr"
}

# The optimizer's state is two thirds of a checkpoint. The last one keeps it, so that the run counts as
# finished.
strip_checkpoints() {
  local folder last
  last=$(<"$run/checkpoints/LATEST")
  for folder in "$run"/checkpoints/step-*; do
    if [[ ${folder##*/} == "$last" || ! -f $folder/optimizer.safetensors ]]; then continue; fi
    rm -rf "$run/stripped"  # what an interrupted run left
    "$stablemask" checkpoint strip "$folder" "$run/stripped" && rm -r "$folder" &&
      mv "$run/stripped" "$folder" || return
  done
}

main "$@"
