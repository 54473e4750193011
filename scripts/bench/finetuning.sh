#!/usr/bin/env bash
# What the ways to finetune give: pretrains a causal model, exports it and imports it again, finetunes
# the imported one on another text in every way, each at several learning rates, and prints a Markdown
# table of word perplexities: the learning rate is chosen by the validation split, the test split is
# reported. What is already there is used again.
#
#   scripts/bench/finetuning.sh --data DIR --text DIR [options]
#     --data DIR       pretraining: folder with tokenizer.model and one or more train*.shard
#     --text DIR       finetuning: folder with train.shard, valid.shard and test.shard of that tokenizer
#     --out FOLDER     runs and table.md (default: runs/finetuning)
#     --preset NAME    model size (default: 71m)
#     --epochs N       passes over the pretraining text (default: 1)
#     --passes N       passes over the finetuning text (default: 3)
#     --ways LIST      full, frozen (embedding and half of the blocks), lora (rank 16), mask (full, with
#                      StableMask switched on), warm (the same, its mass growing over the first third),
#                      mask-lora (default: all)
#     --rates LIST     learning rates of all ways but lora's (default: 0.0001,0.0003,0.001)
#     --lora-rates LIST  default: 0.0005,0.001,0.003
#     --seeds LIST     default: 1,2,3
#     --gpus LIST      GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE    default: $STABLEMASK_BINARY, or build/stablemask
#     --set A.B=V      passed on to pretraining; may be repeated
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly context=512 batch=32

main() {
  parse_arguments "$@"
  require_stablemask
  [[ -n $data && -f $data/tokenizer.model ]] ||
    die "--data needs a folder with tokenizer.model and train*.shard, got '$data'" 2
  [[ -n $text && -f $text/train.shard && -f $text/valid.shard && -f $text/test.shard ]] ||
    die "--text needs a folder with train.shard, valid.shard and test.shard, got '$text'" 2
  mkdir -p "$out"
  make_source
  local seed way rate list
  jobs=()
  for way in ${ways//,/ }; do
    list=$rates
    if [[ $way == *lora ]]; then list=$lora_rates; fi
    for rate in ${list//,/ }; do
      for seed in ${seeds//,/ }; do jobs+=("$way $rate $seed"); done
    done
  done
  spread_over_gpus "$gpus" work "$out/*/log"
  python3 "$root/scripts/bench/finetuning.py" "$out" | tee "$out/table.md"
}

parse_arguments() {
  data='' text='' out=runs/finetuning preset=71m epochs=1 passes=3 seeds=1,2,3 gpus=0 settings=()
  ways=full,frozen,lora,mask,warm,mask-lora rates=0.0001,0.0003,0.001 lora_rates=0.0005,0.001,0.003
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --text --out --preset --epochs --passes --ways --rates --lora-rates --seeds"
  options+=" --gpus --binary --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
}

# $out/source: the pretrained model after a way through Hugging Face's format.
make_source() {
  if [[ -d $out/source ]]; then return; fi
  (
    use_gpu "${gpus%%,*}"
    "$stablemask" pretrain /dev/stdin --quiet --set "train.out=$out/pretrained" \
      ${settings[@]+"${settings[@]}"} <<<"{
        \"model\": {\"preset\": \"$preset\", \"vocab_size\": 0, \"stable_mask\": false},
        \"data\": {\"train\": $(train_shards "$data"), \"tokenizer\": \"$data/tokenizer.model\"},
        \"train\": {\"context\": $context, \"batch\": 64, \"epochs\": $epochs},
        \"optimizer\": {\"beta2\": 0.98},
        \"schedule\": {\"warmup_steps\": 300}
      }"
  )
  "$stablemask" export --checkpoint "$out/pretrained" --to "$out/hugging-face"
  "$stablemask" import --from "$out/hugging-face" --out "$out/source.part"
  mv "$out/source.part" "$out/source"
  (
    use_gpu "${gpus%%,*}"
    mkdir -p "$out/none-0-0"
    evaluate "$out/source" "$out/none-0-0"
  )
}

# work WORKER COUNT
work() {
  local worker=$1 count=$2 i run
  for ((i = worker; i < ${#jobs[@]}; i += count)); do
    # shellcheck disable=SC2086
    set -- ${jobs[i]}
    run=$out/$1-$2-$3
    if [[ -f $run/test.json ]]; then continue; fi
    mkdir -p "$run"
    finetune "$@" >>"$run/log" 2>&1 || return
    evaluate "$run" "$run" >>"$run/log" 2>&1 || return
    rm -rf "$run/checkpoints"
  done
}

# finetune WAY RATE SEED
finetune() {
  local fields=() way=$1 tokens steps
  tokens=$(shard_tokens "$text/train.shard")
  steps=$((tokens * passes / (context * batch)))
  if [[ $way == frozen ]]; then fields+=(--set train.freeze_layers=3); fi
  if [[ $way == *lora ]]; then fields+=(--set lora.rank=16); fi
  if [[ $way == mask* || $way == warm ]]; then fields+=(--set model.stable_mask=true); fi
  if [[ $way == warm ]]; then fields+=(--set "train.mask_warmup_steps=$((steps / 3))"); fi
  "$stablemask" finetune /dev/stdin --quiet --set "train.out=$run" --set "train.seed=$3" \
    --set "optimizer.lr=$2" ${fields[@]+"${fields[@]}"} <<<"{
      \"data\": {\"train\": [\"$text/train.shard\"], \"valid\": \"$text/valid.shard\",
                 \"tokenizer\": \"$data/tokenizer.model\"},
      \"train\": {\"init_from\": \"$out/source\", \"context\": $context, \"batch\": $batch,
                  \"steps\": $steps, \"eval_every\": $((steps / 9 + 1)), \"log_every\": 10,
                  \"save_minutes\": 0, \"keep_last\": 1},
      \"schedule\": {\"warmup_steps\": $((steps / 20 + 1))}
    }"
}

# evaluate CHECKPOINT FOLDER
evaluate() {
  local split
  for split in valid test; do
    "$stablemask" eval --checkpoint "$1" --data "$text/$split.shard" --window $context \
      --json "$2/$split.json" || return
  done
}

main "$@"
