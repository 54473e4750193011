#!/usr/bin/env bash
# measurements.sh PROGRAM PYTHON: trains a tiny model by scripts/study/perplexity.sh and measures it by
# length.sh, sinks.sh and, where PYTHON has torch and numpy, quantize.sh; else ends with 77 (skipped).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"
export STABLEMASK_BINARY=$1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 CUDA_VISIBLE_DEVICES=''
python=$2
study=$root/scripts/study
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
  echo "measurements.sh: $1" >&2
  exit 1
}

# value_of NAME FILE: of the first field of that name, a number.
value_of() { sed -nE "s/.*\"$1\": ([0-9.]+).*/\1/p" "$2" | head -n 1; }

# refused STATUS TEXT COMMAND…
refused() {
  local status=0
  "${@:3}" >refusal 2>&1 || status=$?
  [[ $status == "$1" ]] || fail "${*:3}: ended with $status, not $1"
  grep -qF -- "$2" refusal || fail "${*:3}: does not say '$2': $(cat refusal)"
}

"$STABLEMASK_BINARY" data synth --output . --megabytes 0.1 >/dev/null
"$STABLEMASK_BINARY" tokenizer train --input wiki.train.tokens --output tokenizer.model \
  --vocab-size 500 >/dev/null
for split in train valid test; do
  "$STABLEMASK_BINARY" data prepare --input "wiki.$split.tokens" --tokenizer tokenizer.model \
    --output "$split.shard" >/dev/null
done

refused 2 'holds no finished run' "$study/length.sh" --data . --runs nothing --gpus ''
refused 2 'needs a folder with test.shard' "$study/length.sh" --data nothing --runs runs --gpus ''
refused 2 'is no list of numbers' "$study/length.sh" --data . --runs runs --factors 1,x --gpus ''
refused 2 '--windows needs a number' "$study/sinks.sh" --data . --runs runs --windows 0 --gpus ''

# train ARGUMENT…
train() {
  "$study/perplexity.sh" --data . --context 32 --batch 4 --seeds 1 --positions alibi --gpus '' "$@" \
    --set model.layers=2 --set model.channels=32 --set model.heads=2 --set model.ffn_hidden=64 >/dev/null
}

train --out runs --steps 9 --masks 0.5 --keep 2 --lengths 64
run=$(echo runs/71m-32-*)
[[ $(cd "$run/checkpoints" && echo step-*) == 'step-00000004 step-00000008 step-00000009' ]] ||
  fail "--keep 2 kept $(ls "$run/checkpoints")"
[[ ! -e $run/checkpoints/step-00000004/optimizer.safetensors ]] || fail "an early checkpoint is not stripped"
[[ -e $run/checkpoints/step-00000009/optimizer.safetensors ]] || fail "the last checkpoint is stripped"

refused 3 'no length of --factors fits' "$study/length.sh" --data . --runs runs --factors 100000 --gpus ''
"$study/length.sh" --data . --runs runs --factors 1,2,100000 --gpus '' >/dev/null 2>left-out
# As trained, infinite, re-scaled; each without and with an attention window.
[[ $(wc -l <runs/length.jsonl) == 6 ]] || fail "length.jsonl: $(cat runs/length.jsonl)"
[[ $(cat left-out) == *'no whole window of 3200000 tokens'* ]] || fail "the length left out is not named"
for line in kept-0 rescaled-0; do
  # At the training length the model of the training, whose perplexity is known.
  awk -v a="$(value_of 32 "$run/length/test-$line.json")" -v b="$(value_of 32 "$run/result.json")" \
    'BEGIN { exit !(a > 1 && (a - b) ^ 2 < 1e-6) }' || fail "$line at the training length: $(cat runs/*.jsonl)"
done
rm "$run/length/test-kept-0.json"
touch -d '2001-01-01' "$run"/length/*.json
"$study/length.sh" --data . --runs runs --factors 1,2 --gpus '' >/dev/null
[[ $(find "$run/length" -newermt 2002-01-01 -name '*.json') == "$run/length/test-kept-0.json" ]] ||
  fail "a finished evaluation ran again"

"$study/sinks.sh" --data . --runs runs --windows 4 --gpus '' >/dev/null
[[ $(sed -E 's/.*"step": ([0-9]+).*/\1/' runs/sinks.jsonl | paste -sd ' ') == '4 8 9' ]] ||
  fail "sinks.jsonl: $(cat runs/sinks.jsonl)"
for topic in length sinks; do
  python3 "$study/$topic.py" --chart "$topic.svg" "runs/$topic.jsonl"
  grep -q '</svg>' "$topic.svg" || fail "$topic.svg is no picture"
  python3 "$study/$topic.py" "runs/$topic.jsonl" >/dev/null
done

"$python" -c 'import torch, numpy' 2>/dev/null || skip "$python has no torch and numpy for quantize.sh"
"$python" "$root/tests/study/rounded_test.py" "$study"
train --out others --steps 3 --masks infinite,learnable --lengths ''
for folder in runs others; do
  "$study/quantize.sh" --data . --runs $folder --python "$python" --gpus '' >noted
  # The independent model without rounding has the program's perplexity.
  awk -v a="$(value_of none $folder/quantize.jsonl)" -v b="$(value_of program $folder/quantize.jsonl)" \
    'BEGIN { exit !(a > 1 && (a / b - 1) ^ 2 < 1e-10) }' || fail "quantize.jsonl: $(cat $folder/quantize.jsonl)"
done
[[ $(cat others/quantize.jsonl) == *'"mask": "infinite"'* ]] || fail "$(cat others/quantize.jsonl)"
[[ $(wc -l <others/quantize.jsonl) == 1 && $(cat noted) == *'-alibi-learnable-1 has learned gammas'* ]] ||
  fail "the run with learned gammas is not left out: $(cat noted)"
rm -r others/*-infinite-*
refused 2 'no run without learned gammas' "$study/quantize.sh" --data . --runs others --python "$python"
