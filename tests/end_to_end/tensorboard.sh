#!/usr/bin/env bash
# tensorboard.sh PROGRAM READER: a run that is resumed; then READER, with TensorBoard's own reader,
# compares its event files with metrics.jsonl, samples.jsonl and config.json. Ends with 77 (skipped)
# where that package is not installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"
program=$1 reader=$2
python=$(python_or_skip report "$root/scripts/report/requirements-dev.txt" tensorboard)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1

"$program" data synth --output . --megabytes 0.1 >/dev/null
"$program" tokenizer train --input wiki.train.tokens --output tokenizer.model --vocab-size 500 >/dev/null
for split in train valid; do
  "$program" data prepare --input "wiki.$split.tokens" --tokenizer tokenizer.model \
    --output "$split.shard" >/dev/null
done
cat >tiny.json <<'JSON'
{
  "model": {"layers": 1, "channels": 32, "heads": 2, "ffn_hidden": 48},
  "data": {"train": ["train.shard"], "valid": "valid.shard", "tokenizer": "tokenizer.model"},
  "train": {"out": "run", "context": 32, "batch": 4, "steps": 4, "log_every": 1, "eval_every": 2,
    "device": "cpu", "tensorboard": true, "sample_prompts": [" The ```river", " = A =\n"]},
  "schedule": {"warmup_steps": 2},
  "generate": {"max_tokens": 20}
}
JSON
"$program" pretrain tiny.json --quiet
"$program" pretrain tiny.json --quiet --set train.steps=6
"$python" "$reader" run
