#!/usr/bin/env bash
# The study's sixth question: a causal model gets StableMask by finetuning; after how many tokens is it
# no worse than without the mask, and is it better in the end? Takes the causal models that
# scripts/study/perplexity.sh trained and trains each for some more steps of the same text, with causal
# attention kept and with the mask switched on in several ways: same data, seed and learning rates.
# Every finished run is one line of FOLDER/results.jsonl; a script that was interrupted goes on.
#
#   scripts/study/finetune.sh --data DIR --models FOLDER [options]
#     --data DIR        folder with tokenizer.model, one or more train*.shard, valid.shard, test.shard
#     --models FOLDER   --out of scripts/study/perplexity.sh
#     --out FOLDER      runs and results.jsonl (default: runs/study/finetune)
#     --ways LIST       causal, the control; auto: the default mask from the first step; warm: the same,
#                       its mass growing over the first third of the steps; a number: gamma as auto and
#                       p_base, which starts from that number, are trained (default:
#                       causal,auto,warm,-2,-8)
#     --seeds LIST      of the models (default: all that are there)
#     --steps N         default: 400
#     --eval-every N    steps between validations (default: 20)
#     --lr-share X      peak learning rate as a share of the pretraining's; the warm-up takes a tenth of
#                       the steps, then a cosine goes to a tenth of the peak (default: 0.3)
#     --batch N         sequences a step (default: 64)
#     --lengths LIST    test windows beside the training length, those that are longer (default:
#                       1024,2048,4096)
#     --gpus LIST       GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start no run after so many seconds (default: none)
#     --set A.B=V       passed on to `stablemask finetune`; may be repeated
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  parse_arguments "$@"
  require_inputs valid test
  local source way
  jobs=()
  compgen -G "$models/*-causal-*/result.json" >/dev/null ||
    die "--models needs the finished causal models of scripts/study/perplexity.sh, got '$models'" 2
  for source in $(sources); do
    for way in ${ways//,/ }; do jobs+=("$source $way"); done
  done
  study
}

parse_arguments() {
  data='' models='' out=runs/study/finetune ways=causal,auto,warm,-2,-8 seeds='' steps=400
  eval_every=20 lr_share=0.3 batch=64 lengths=1024,2048,4096 gpus=0 time_limit='' settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --models --out --ways --seeds --steps --eval-every --lr-share --batch"
  options+=" --lengths --gpus --binary --time-limit --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
  if [[ -n $lengths ]]; then require_numbers --lengths "$lengths"; fi
  local way
  for way in ${ways//,/ }; do
    [[ $way =~ ^(causal|auto|warm|-?[0-9.]+)$ ]] || die "unknown way '$way' (see --help)" 2
  done
}

# fields_of WAY, for --set.
fields_of() {
  case $1 in
    causal) echo model.stable_mask=false ;;
    auto) echo model.stable_mask=true ;;
    warm) echo model.stable_mask=true "train.mask_warmup_steps=$((steps / 3))" ;;
    *) echo model.stable_mask=true "model.stable_mask.p_base=$1" model.stable_mask.learnable=true ;;
  esac
}

# The names of the models of $seeds, by their seeds.
sources() {
  local results=("$models"/*-causal-*/result.json)
  results=("${results[@]%/result.json}")
  printf '%s\n' "${results[@]##*/}" | awk -F - -v seeds=",$seeds," \
    'seeds == ",," || index(seeds, "," $NF ",") { print $NF, $0 }' | sort -n | cut -d ' ' -f 2
}

# run_of SOURCE WAY
run_of() { echo "$out/$1-$2"; }

# train SOURCE WAY
train() {
  local field fields=() lr
  preset=$(field_of "$models/$1" preset) context=$(field_of "$models/$1" context)
  lr=$(awk -v lr="$(field_of "$models/$1" lr)" -v share="$lr_share" 'BEGIN { print lr * share }')
  for field in $(fields_of "$2"); do fields+=(--set "$field"); done
  "$stablemask" finetune /dev/stdin --quiet --set "train.out=$run" "${fields[@]}" \
    ${settings[@]+"${settings[@]}"} <<<"{
      \"data\": {\"train\": $(train_shards "$data"), \"valid\": \"$data/valid.shard\",
                 \"tokenizer\": \"$data/tokenizer.model\", \"verify\": \"headers\"},
      \"train\": {\"init_from\": \"$models/$1\", \"seed\": $((1000 + $(field_of "$models/$1" seed))),
                  \"context\": $context, \"batch\": $batch, \"steps\": $steps,
                  \"eval_every\": $eval_every, \"log_every\": $eval_every, \"save_minutes\": 5,
                  \"keep_last\": 1},
      \"optimizer\": {\"beta2\": 0.98, \"lr\": $lr},
      \"schedule\": {\"warmup_steps\": $((steps / 10))}
    }"
}

# finish SOURCE WAY
finish() {
  local field fields=()
  # Before its first step a warmed-up mask has no mass. What is learned has not been yet.
  if [[ $2 != causal && $2 != warm ]]; then
    for field in $(fields_of "$2"); do
      if [[ $field != *.learnable=* ]]; then fields+=(--set "$field"); fi
    done
  fi
  "$stablemask" eval --checkpoint "$models/$1" --data "$data/valid.shard" \
    ${fields[@]+"${fields[@]}"} --json "$run/start.json" || return
  evaluate || return
  write_result finetune.py "position=$(field_of "$models/$1" position)" "way=$2" \
    "seed=$(field_of "$models/$1" seed)" "epochs=$(field_of "$models/$1" epochs)" \
    "pretrained_lr=$(field_of "$models/$1" lr)" "lr_share=$lr_share" || return
  rm -rf "$run/checkpoints"  # nothing of it is read again
}

main "$@"
