#!/usr/bin/env bash
# Runs every command block of the documents, and the scripts that the blocks name, with a stand-in
# for the program that computes nothing: it looks whether the files that a command reads have been
# made by one before, and makes those it would write. So what a document does, its configs and the
# scripts name the same files. Prints FILE:LINE: WHAT for every breach; seconds, no build needed.
#
#   tests/end_to_end/documents.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly documents=(README.md docs/wikitext103.md docs/evaluation.md docs/stablemask.md
  docs/instruction_data.md)
readonly commands='stablemask|mkdir|export|xz|awk|scripts/(quickstart|wikitext103)\.sh'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

main() {
  make_checkout
  local document block
  for document in "${documents[@]}"; do
    while read -r block; do run_block "$document:${block##*.}" "$block"; done < <(blocks "$document")
  done
  local config
  for config in configs/*/*.json; do
    [[ -e made/${config//\//-} ]] ||
      echo "$config:1: no document makes $(missing "$config" | head -n 1)"
  done
}

# The files that a user has at first: the checkout and the texts.
make_checkout() {
  mkdir -p "$work"/{bin,blocks,build,data/{wikitext-103,wikitext-2,enwiki},made}
  cp -r "$root"/{README.md,docs,configs,scripts} "$work"
  cd "$work"
  local split
  for split in train valid test; do
    echo "$split" | tee "data/wikitext-103/wiki.$split.tokens" >"data/wikitext-2/wiki.$split.tokens"
  done
  touch my.txt other.txt data/enwiki/wiki.train.{0,1}.tokens.xz
  write_stand_ins
  chmod +x build/stablemask bin/*
  printf '#!/bin/sh\n' | tee scripts/setup.sh >scripts/test.sh
  export WORK=$work PATH=$work/bin:$work/build:$PATH HOME=$work
  unset STABLEMASK_DATA STABLEMASK_CACHE
}

# blocks DOCUMENT: a file blocks/N.LINE for each indented block that begins with a command.
blocks() {
  awk -v first="^    ($commands)( |\$)" -v out="blocks/$(basename "$1")" '
    /^    / && inside { print substr($0, 5) >file; next }
    /^    / && before == "" && $0 ~ first {
      inside = 1; file = out "." FNR; print file; print substr($0, 5) >file }
    { before = $0 }
    !/^    / { inside = 0 }' "$1"
}

run_block() {
  local log=$work/log status=0 config
  bash -euo pipefail "$2" >"$log" 2>&1 </dev/null || status=$?
  if ((status)) || grep -q '^stand-in: ' "$log"; then
    echo "$1: $(sed -n 's/^stand-in: //p' "$log" | head -n 1 | grep . || tail -n 1 "$log")"
  fi
  for config in configs/*/*.json; do
    [[ -n $(missing "$config") ]] || touch "made/${config//\//-}"
  done
  # What a script makes shall not hide what the steps beside it leave out.
  if grep -q '^scripts/' "$2"; then rm -rf runs; fi
}

# inputs CONFIG: the files and folders that a run with it reads.
inputs() {
  tr '\n' ' ' <"$1" | grep -oE '"(train": *\[|valid"|tokenizer"|init_from")[^]}]*' |
    grep -oE '"(data|runs)/[^"]*"' | tr -d '"' | sort -u
}

missing() {
  local file
  for file in $(inputs "$1"); do [[ -e $file ]] || echo "$file"; done
}

write_stand_ins() {
  declare -f inputs missing >bin/functions
  # shellcheck disable=SC2016
  printf '#!/bin/sh\nexec cat "$2" </dev/null\n' >bin/xz
  # Of a text's name: what scripts/wikitext103.sh expects of the genuine one.
  cat >bin/sha1sum <<'STAND_IN'
#!/usr/bin/env bash
if (($#)); then printf 'of these  %s\n' "$@"; exit; fi
sed -nE "s/^ *\[$(cat)\]='[0-9]+ [0-9]+ ([0-9a-f]+)'/\1  -/p" "$WORK/scripts/wikitext103.sh"
STAND_IN
  cat >build/stablemask <<'STAND_IN'
#!/usr/bin/env bash
set -euo pipefail
source "$WORK/bin/functions"
fail() { echo "stand-in: $1"; echo "stand-in: $1" >&2; exit 1; }
need() { if [[ $1 != - && ! -e $1 ]]; then fail "$1 is not there"; fi; }
value() { tr '\n' ' ' <"$WORK/$config" | sed -nE "s/.*\"$1\": *\"?([^\",}]*).*/\1/p"; }

# set_field FIELD=VALUE: the configs of WikiText-103 are to name what the script names.
set_field() {
  local name=${1%%=*} path
  case $name in
    train.out) out=${1#*=} ;;
    train.steps) steps=${1#*=} ;;
    schedule.warmup_steps) warmup=${1#*=} ;;
  esac
  for path in $(grep -oE '[^]["=,]*(data|runs)/[^]",]*' <<<"${1#*=}"); do
    if [[ $name != train.out ]]; then need "$path"; fi
    grep -qF "\"${path#"$WORK/"}\"" "$WORK/$config" ||
      [[ $config == *quickstart.json ]] || fail "$config has another $name than $path"
  done
}

command=$1 dry=0
shift
if [[ $command == pretrain || $command == finetune ]]; then
  config=${1#"$WORK/"}
  need "$config"
  out=$(value out) steps=$(value steps) warmup=$(value warmup_steps)
fi
while (($#)); do
  case $1 in
    --input | --tokenizer | --checkpoint | --data | --unigram)
      if [[ "$command $1" != 'data --data' ]]; then need "$2"; fi
      if [[ $2 == - ]]; then cat >/dev/null; fi
      shift
      ;;
    --prompt)
      if [[ $2 == - ]]; then cat >/dev/null; fi
      shift
      ;;
    --output) made=$2; shift ;;
    --json) echo '{"word_perplexity": 1, "unigram": {"word_perplexity": 1}}' >"$2"; shift ;;
    --set) set_field "$2"; shift ;;
    --dry-run) dry=1 ;;
    synth) synth=1 ;;
    inspect) need "$2"; shift ;;
  esac
  shift
done
if [[ -n ${synth-} ]]; then
  mkdir -p "$made"
  touch "$made"/wiki.{train,valid,test}.tokens
elif [[ -n ${made-} ]]; then
  touch "$made" || fail "no folder for $made"
elif [[ -n ${config-} ]]; then
  cd "$WORK"
  for file in $(missing "$config"); do
    [[ $config == *quickstart.json ]] || fail "$file, which $config names, is not there"
  done
  if [[ -n $steps && -n $warmup ]] && ((warmup > steps)); then
    fail "$config: $warmup steps of warm-up in $steps steps"
  fi
  if ((!dry)); then mkdir -p "$out"; fi
fi
STAND_IN
}

main "$@"
