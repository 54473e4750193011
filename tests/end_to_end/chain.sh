#!/usr/bin/env bash
# chain.sh PROGRAM PYTHON PEER: from nothing to perplexity and text through the program's commands,
# for several kinds of model; then an independent program recomputes each likelihood from the
# checkpoint and the shard. Ends with 77 (skipped) when PYTHON has no torch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"
program=$1 python=$2 peer=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1

fail() {
  echo "chain.sh: $1" >&2
  exit 1
}

# nll FILE: the sum that a JSON report states first.
nll() { sed -nE '/"nll":/{s/.*"nll": ([0-9.]+).*/\1/p;q}' "$1"; }

train() {
  local name=$1
  shift
  "$program" pretrain tiny.json --quiet --set train.out="$name" "$@"
  "$program" eval --checkpoint "$name" --data test.shard --json "$name.json" >/dev/null
}

"$program" data synth --output . --megabytes 0.2 >/dev/null
"$program" tokenizer train --input wiki.train.tokens --output tokenizer.model --vocab-size 600 >/dev/null
for split in train valid test; do
  "$program" data prepare --input "wiki.$split.tokens" --tokenizer tokenizer.model \
    --output "$split.shard" >/dev/null
done
cat >tiny.json <<'JSON'
{
  "model": {"layers": 2, "channels": 48, "heads": 6, "ffn_hidden": 80},
  "data": {"train": ["train.shard"], "valid": "valid.shard", "tokenizer": "tokenizer.model"},
  "train": {"context": 80, "batch": 4, "steps": 8, "device": "cpu"},
  "schedule": {"warmup_steps": 2}
}
JSON
train rope
train alibi --set model.position=alibi --set model.kv_heads=2 --set model.tied_head=true
train causal --set model.stable_mask.enabled=false --set model.rope_dims=4
"$program" checkpoint verify rope >/dev/null

# The text gives what its shard gave.
"$program" eval --checkpoint rope --data wiki.test.tokens --json text.json >/dev/null
[[ $(nll text.json) == "$(nll rope.json)" ]] || fail "a text and its shard differ"
"$program" generate --checkpoint rope --prompt ' = ' --max-tokens 8 --seed 3 >first.txt
"$program" generate --checkpoint rope --prompt ' = ' --max-tokens 8 --seed 3 >second.txt
cmp first.txt second.txt

if ! "$python" -c 'import torch, numpy' 2>/dev/null; then
  skip "$python has no torch and numpy to recompute the likelihood"
fi
"$python" "$peer" --device cpu --threads 1 --shard test.shard \
  --check {rope,alibi,causal}/checkpoints/step-00000008 >peer.txt
paste <(for name in rope alibi causal; do nll "$name.json"; done) \
  <(sed -nE 's/.*"nll": ([0-9.]+).*/\1/p' peer.txt) | awk '
  { error = ($1 - $2) / $2; print "NLL", $1, "peer", $2, "relative difference", error
    if (error < 0) error = -error
    if (NF != 2 || !(error < 1e-6)) exit 1 }
  END { if (NR != 3) exit 1 }' || fail "the peer's likelihood differs"
