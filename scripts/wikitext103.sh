#!/usr/bin/env bash
# WikiText-103 from text to perplexity: data, tokenizer, token shards, pretraining, evaluation in
# every convention. What is already there is used again, and an interrupted run goes on.
#
#   scripts/wikitext103.sh [options]
#     --data DIR      folder with wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens; downloaded
#                     when it is not there (default: wikitext-103 in $STABLEMASK_DATA or in data/)
#     --out DIR       everything made goes here (default: runs/wikitext103): tokenizer-N.model,
#                     wiki.SPLIT.N.shard and a folder for each run, as the configs name them
#     --model M       71m, 160m, 400m or 1.4b (default: 71m)
#     --position P    rope or alibi (default: rope)
#     --mask M        stablemask or causal (default: stablemask)
#     --vocab N       pieces of the tokenizer (default: 32000)
#     --steps N       training steps (default: the config's); fewer than ten times the config's
#                     warm-up cut the warm-up to a tenth of them
#     --set A.B=V     passed on to `stablemask pretrain`; may be repeated
#     --train FILE    train on this text (.tokens or .tokens.xz; may be repeated) and not on
#                     wiki.train.tokens; needs an --out of its own, and the perplexity then is not
#                     WikiText-103's benchmark
#     --prepare-only  stop after the token shards
#
# The text must be the genuine one: 1,801,350 lines and 101,425,671 words in the training split;
# 217,646 and 245,569 words, ends of lines included, in validation and test.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly archive_url=https://wikitext.smerity.com/wikitext-103-v1.zip
readonly archive_sha256=242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590
# lines, words (white-space separated), SHA-1
declare -A golden=(
  [train]='1801350 101425671 b7497e2dfe77e72cfef5e3dbc61b7b53712ac211'
  [valid]='3760 213886 c326ac59dc587676d58c422eb8a03e119582f92b'
  [test]='4358 241211 8a5befc548865cec54ed4273cf87dbbad60d1e47'
)
readonly tokenizer_bytes=60000000  # text that the tokenizer is trained on: more changes little

main() {
  parse_arguments "$@"
  if [[ -d $data ]]; then check_data; fi
  "$root/scripts/setup.sh"
  if [[ ! -d $data ]]; then
    download
    check_data
  fi
  prepare
  if ((prepare_only)); then return; fi
  pretrain
  evaluate
}

parse_arguments() {
  data=${STABLEMASK_DATA:-$root/data}/wikitext-103 out=""
  model=71m position=rope mask=stablemask vocab=32000 steps="" train=() settings=() prepare_only=0
  while (($#)); do
    case $1 in
      --prepare-only) prepare_only=1 ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --data | --out | --model | --position | --mask | --vocab | --steps | --set | --train)
        [[ -n ${2-} ]] || die "$1 needs a value (see --help)" 2
        set_option "$1" "$2"
        shift
        ;;
      *) die "unknown option '$1' (see --help)" 2 ;;
    esac
    shift
  done
  config=$root/configs/pretrain/wikitext103-$model-$position-$mask.json
  [[ -f $config ]] || die "no config $config (see --model, --position, --mask)" 2
  if [[ -z $out ]]; then
    ((${#train[@]} == 0)) || die "--train needs --out, a folder for what is made of these texts" 2
    out=$root/runs/wikitext103
  fi
  run=$out/$model-$position-$mask
  if ((vocab != 32000)); then run+=-$vocab; fi
  set_steps
}

set_option() {
  case $1 in
    --data) data=$2 ;;
    --out) out=$2 ;;
    --model) model=$2 ;;
    --position) position=$2 ;;
    --mask) mask=$2 ;;
    --vocab | --steps)
      [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number ≥ 1, not '$2'" 2
      printf -v "${1#--}" %s "$2"
      ;;
    --set) settings+=(--set "$2") ;;
    --train) train+=("$2") ;;
  esac
}

# Before the settings of --set, which may say otherwise.
set_steps() {
  if [[ -z $steps ]]; then return; fi
  local warmup
  warmup=$(sed -nE 's/.*"warmup_steps": *([0-9]+).*/\1/p' "$config")
  if ((steps / 10 < warmup)); then
    settings=(--set "schedule.warmup_steps=$((steps / 10))" ${settings[@]+"${settings[@]}"})
  fi
  settings=(--set "train.steps=$steps" ${settings[@]+"${settings[@]}"})
}

download() {
  local archive=$cache/wikitext-103-v1.zip
  mkdir -p "$cache" "$(dirname "$data")"
  if [[ ! -f $archive ]]; then
    step "downloading WikiText-103 (181 MB)" \
      curl -fsSL --retry 3 --connect-timeout 20 -o "$archive.tmp" "$archive_url" ||
      die "no download from $archive_url; put wiki.{train,valid,test}.tokens into $data or give --data DIR"
    mv "$archive.tmp" "$archive"
  fi
  echo "$archive_sha256  $archive" | sha256sum --status -c ||
    die "$archive is damaged (SHA-256 differs): remove it and run this again"
  rm -rf "$data.tmp"
  step "unpacking" unzip -q "$archive" -d "$data.tmp"
  mv "$data.tmp/wikitext-103" "$data"
  rm -rf "$data.tmp"
}

check_data() {
  local split splits=(valid test)
  if ((${#train[@]} == 0)); then splits+=(train); fi
  for split in "${splits[@]}"; do
    [[ -f $data/wiki.$split.tokens ]] ||
      die "$data has no wiki.$split.tokens; complete it, or name another folder with --data"
    check_split "$split" "$data/wiki.$split.tokens"
  done
  for split in ${train[@]+"${train[@]}"}; do [[ -f $split ]] || die "no file $split"; done
}

check_split() {
  local lines words sha1 found_lines found_words
  read -r lines words sha1 <<<"${golden[$1]}"
  if [[ $(sha1sum <"$2") == "$sha1  -" ]]; then return; fi
  read -r found_lines found_words < <(LC_ALL=C awk '{ n += NF } END { print NR, n }' "$2")
  die "$2 is not WikiText-103's $1 split: $found_lines lines and $found_words words, SHA-1 differs (genuine: $lines, $words)"
}

prepare() {
  if ((${#train[@]} == 0)); then train=("$data/wiki.train.tokens"); fi
  local i number=""
  claim_folder
  tokenizer=$out/tokenizer-$vocab.model
  make_tokenizer
  shards=()
  for i in "${!train[@]}"; do
    if ((${#train[@]} > 1)); then number=.$i; fi
    shards+=("$out/wiki.train$number.$vocab.shard")
    make_shard "${train[i]}" "${shards[i]}"
  done
  make_shard "$data/wiki.valid.tokens" "$out/wiki.valid.$vocab.shard"
  make_shard "$data/wiki.test.tokens" "$out/wiki.test.$vocab.shard"
}

# A folder belongs to the training texts that its tokenizers and shards were made of.
claim_folder() {
  local texts
  texts=$(sha1sum -- "${train[@]}" | cut -d ' ' -f 1)
  mkdir -p "$out" || die "cannot make $out; choose another folder with --out"
  if [[ ! -f $out/texts.sha1 ]]; then
    printf '%s\n' "$texts" >"$out/texts.sha1"
  elif [[ $(<"$out/texts.sha1") != "$texts" ]]; then
    die "$out holds what was made of other training texts; choose another folder with --out" 2
  fi
}

read_text() {
  local file
  for file in "$@"; do
    if [[ $file == *.xz ]]; then xz -dc "$file"; else cat "$file"; fi
  done
}

make_tokenizer() {
  if [[ -f $tokenizer ]]; then return; fi
  local sample=$out/sample.tmp
  step "sampling text for the tokenizer" sample_text "$sample" || die "no text for the tokenizer"
  step "training the tokenizer ($vocab pieces)" "$build/stablemask" tokenizer train \
    --input "$sample" --output "$tokenizer" --vocab-size "$vocab" || die "no tokenizer"
  rm -f "$sample"
}

# About tokenizer_bytes of text, every n-th line from everywhere.
sample_text() {
  local bytes every
  bytes=$(read_text "${train[@]}" | wc -c)
  every=$((bytes / tokenizer_bytes + 1))
  read_text "${train[@]}" | LC_ALL=C awk -v every="$every" 'NR % every == 0' >"$1"
}

# The writer renames when all is written: a shard that exists is whole.
make_shard() {
  if [[ -f $2 ]]; then return; fi
  step "encoding $(basename "$1")" encode "$1" "$2" || die "$1 was not encoded"
}

encode() {
  read_text "$1" |
    "$build/stablemask" data prepare --input - --tokenizer "$tokenizer" --output "$2" \
      --threads "$(cores)"
}

# json_list STRING…: ["a","b"]
json_list() {
  local joined
  joined=$(printf ',"%s"' "$@")
  echo "[${joined:1}]"
}

pretrain() {
  note "pretraining in $run; interrupt it at any time, run this again to go on"
  "$build/stablemask" pretrain "$config" --resume auto --set train.out="$run" \
    --set data.tokenizer="$tokenizer" --set data.train="$(json_list "${shards[@]}")" \
    --set data.valid="$out/wiki.valid.$vocab.shard" ${settings[@]+"${settings[@]}"}
}

evaluate() {
  local split
  for split in valid test; do
    note "" "$split split, windows of the training length that do not overlap"
    evaluate_split "$split" "eval-$split.json"
  done
  note "" "test split, sliding windows that score their last 256 tokens"
  evaluate_split test eval-test-sliding.json --stride 256
}

evaluate_split() {
  "$build/stablemask" eval --checkpoint "$run" --data "$out/wiki.$1.$vocab.shard" \
    --json "$run/$2" "${@:3}"
}

main "$@"
