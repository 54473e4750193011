#!/usr/bin/env bash
# Everything once, small, with no data from outside: writes two invented encyclopedias (the same
# language; other towns, rivers and people), trains a tokenizer and a StableMask model on the first,
# evaluates, finetunes on the second, evaluates again, generates. A few minutes on two cores after
# the build; a GPU is used if there is one.
#
#   scripts/quickstart.sh [--out DIR]
#     --out DIR   a new folder, or one of an earlier quickstart, whose content is replaced
#                 (default: runs/quickstart)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly stablemask=$build/stablemask
readonly worlds=(first second)
readonly vocabulary=2000
readonly marker=.made-by-quickstart

main() {
  parse_arguments "$@"
  "$root/scripts/setup.sh"
  claim_folder
  local start=$SECONDS
  make_corpora
  train_model first-step pretrain first --set train.steps=1 --set schedule.warmup_steps=0
  train_model pretrained pretrain first
  evaluate first-step pretrained
  train_model finetuned finetune second --set train.init_from="$out/pretrained"
  evaluate finetuned
  generate_text
  print_table
  note "" "All of it is in $out; $((SECONDS - start)) seconds."
}

parse_arguments() {
  out=$root/runs/quickstart
  while (($#)); do
    case $1 in
      --out)
        [[ -n ${2-} ]] || die "--out needs a folder" 2
        out=$2
        shift
        ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      *) die "unknown option '$1' (see --help)" 2 ;;
    esac
    shift
  done
}

claim_folder() {
  own_folder "$out" "$marker"
  rm -rf "$out"/{first,second,first-step,pretrained,finetuned} "$out/tokenizer.model"
}

make_corpora() {
  local i world split
  for i in "${!worlds[@]}"; do
    step "writing the ${worlds[i]} encyclopedia" \
      "$stablemask" data synth --output "$out/${worlds[i]}" --seed $((i + 1))
  done
  step "training the tokenizer" "$stablemask" tokenizer train \
    --input "$out/first/wiki.train.tokens" --output "$out/tokenizer.model" --vocab-size "$vocabulary"
  for world in "${worlds[@]}"; do
    for split in train valid test; do
      step "encoding $world/$split" "$stablemask" data prepare \
        --input "$out/$world/wiki.$split.tokens" --tokenizer "$out/tokenizer.model" \
        --output "$out/$world/$split.shard"
    done
  done
}

# train_model NAME COMMAND WORLD [--set …]: a run in $out/NAME with the quickstart config of COMMAND.
train_model() {
  local name=$1 command=$2 world=$3
  shift 3
  note "" "training: $name"
  "$stablemask" "$command" "$root/configs/$command/quickstart.json" --resume never \
    --set train.out="$out/$name" --set data.tokenizer="$out/tokenizer.model" \
    --set data.train="[\"$out/$world/train.shard\"]" --set data.valid="$out/$world/valid.shard" "$@"
}

# evaluate MODEL…: each on the test text of both worlds, with the unigram baseline beside it.
evaluate() {
  local model world
  for model in "$@"; do
    for world in "${worlds[@]}"; do
      step "evaluating $model on $world" "$stablemask" eval --checkpoint "$out/$model" \
        --data "$out/$world/test.shard" --unigram "$out/$world/train.shard" \
        --json "$out/$model/eval-$world.json"
    done
  done
}

generate_text() {
  note "" "generating with the finetuned model:"
  "$stablemask" generate --checkpoint "$out/finetuned" --prompt ' =' --max-tokens 120 \
    --temperature 0.7 --seed 1
  note ""
}

# word_perplexity FILE [unigram]: of a report of `eval --json`, or of the baseline in it.
word_perplexity() {
  local part='s/"unigram": *\{[^}]*\}//'
  if [[ ${2-} == unigram ]]; then part='s/.*"unigram": *\{([^}]*)\}.*/\1/'; fi
  tr -d '\n' <"$1" | sed -E "$part" |
    sed -nE 's/.*"word_perplexity": *([0-9.e+-]+).*/\1/p'
}

print_table() {
  local model
  note "" "word perplexity on the test texts (lower is better; ends of lines count as words)"
  printf '%-36s %10s %10s\n' "" first second
  table_row "add-one unigram of each training text" pretrained unigram
  table_row "after the first step" first-step
  table_row "pretrained on the first" pretrained
  table_row "then finetuned on the second" finetuned
}

# table_row NAME MODEL [unigram]
table_row() {
  local figures=() world
  for world in "${worlds[@]}"; do
    figures+=("$(word_perplexity "$out/$2/eval-$world.json" "${3-}")")
  done
  printf '%-36s %10.2f %10.2f\n' "$1" "${figures[@]}"
}

main "$@"
