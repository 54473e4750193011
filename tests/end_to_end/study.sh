#!/usr/bin/env bash
# study.sh PROGRAM FIXTURES: the scripts of the study with tiny models on the CPU: models are trained,
# finetuned with the mask, trained at learning rates that work and that do not, and tried on a position
# task; every result is a line, what is finished is not run again, and every table is printed.
set -euo pipefail
program=$1
fixtures=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
readonly study=$root/scripts/study
readonly tiny=(--gpus '' --binary "$program" --batch 4 --set train.threads=1)
readonly model=(--context 32 --set model.vocab_size=0 --set model.layers=1 --set model.channels=16
  --set model.heads=2 --set model.ffn_hidden=32)

fail() {
  echo "study.sh: $1" >&2
  exit 1
}

# expect LINES FILE WORDS…: FILE has so many lines, and a line with each of the WORDS.
expect() {
  (($(wc -l <"$2") == $1)) || fail "$2 has not $1 lines: $(<"$2")"
  local words
  for words in "${@:3}"; do grep -qF "$words" "$2" || fail "$2 lacks '$words': $(<"$2")"; done
}

# run SCRIPT ARGUMENT…
run() {
  "$study/$1" "${@:2}" >out.txt 2>&1 || fail "$*: $(<out.txt) $(tail -n 3 ./*/*/log)"
}

# table WORDS FILE
table() {
  python3 "$study/${2%.jsonl}.py" "$2" >table.txt
  grep -qF "$1" table.txt || fail "no '$1' in the table of $2: $(<table.txt)"
}

mkdir data
cp "$fixtures/checkpoint-v0/tokenizer.model" data/
cp "$fixtures/checkpoint-v0-data/"{train,valid}.shard data/
cp data/valid.shard data/test.shard

perplexity=(--data data --out models --positions rope --masks causal --seeds 1 --steps 3)
run perplexity.sh "${perplexity[@]}" --lengths 16,32,64 "${model[@]}" "${tiny[@]}"
expect 1 models/results.jsonl '"mask": "causal", "seed": 1' '"card": "CPU"' '"test": {"32": ' ', "64": '
cp models/results.jsonl perplexity.jsonl
table '| causal | 1 |' perplexity.jsonl

finetune=(--data data --models models --out finetune --ways "causal,warm,-2" --steps 6 --eval-every 3)
run finetune.sh "${finetune[@]}" --lengths 64 "${tiny[@]}"
expect 3 finetune/results.jsonl '"way": "warm"' '"way": "-2"' '"validations": {"0": '
cp finetune/results.jsonl finetune.jsonl
table '| -2 | 1 |' finetune.jsonl
[[ -z $(find finetune -name '*.safetensors') ]] || fail "checkpoints are left"
touch before
run finetune.sh "${finetune[@]}" --lengths 64 "${tiny[@]}"
[[ -z $(find finetune -name result.json -newer before) ]] || fail "finished runs were run again"

run stability.sh --data data --out stability --positions alibi --masks auto --seeds 1 --steps 10 \
  --lrs 0.01,10000 "${model[@]}" "${tiny[@]}"
expect 2 stability/results.jsonl '"lr": 0.01' '"lr": 10000' '"finished_steps": 10'
cp stability/results.jsonl stability.jsonl
table '1 of 1 diverged' stability.jsonl

run position.sh --out position --sizes 1x8 --lrs 0.01 --seeds 1 --tasks count --steps 2 \
  --jobs 2 --binary "$program"
expect 1 position/results.jsonl '"layers": 1, "channels": 8' '"task": "count", "guess": 3.674'
cp position/results.jsonl position.jsonl
table '| 1 x 8 | ALiBi, StableMask |' position.jsonl

# refuse WORDS SCRIPT ARGUMENT…
refuse() {
  local words=$1 status=0
  "$study/$2" --binary "$program" "${@:3}" >out.txt 2>&1 || status=$?
  if ((status != 2)) || ! grep -qF -- "$words" out.txt; then
    fail "$*: ended with $status: $(<out.txt)"
  fi
}
refuse 'needs a folder with tokenizer.model' perplexity.sh --data finetune
refuse "unknown mask 'wide'" stability.sh --masks wide
refuse "--lengths: '64,x' is no list of numbers" perplexity.sh --lengths 64,x
refuse "unknown way 'fast'" finetune.sh --ways fast
refuse 'needs the finished causal models' finetune.sh --data data --models data
refuse "'3' is not LAYERSxCHANNELS" position.sh --sizes 3
