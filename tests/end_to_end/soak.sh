#!/usr/bin/env bash
# soak.sh PROGRAM FIXTURES KILLS [SEED [STEPS]]: a training run on the CPU that is killed and stopped
# KILLS times at random moments, and continued by the same command each time, against one that was
# left alone: weights, optimizer, state, metrics and samples must have the same bits. A run that
# comes to its end is compared, and the next one begins.
set -euo pipefail
set -m  # a background job of a script ignores SIGINT otherwise
program=$1 fixtures=$2 kills=$3
RANDOM=${4:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1
signals=(KILL KILL TERM INT HUP USR1)

fail() {
  echo "soak.sh: $1" >&2
  cat "$work/log" >&2
  exit 1
}

cat >config.json <<JSON
{
  "model": {"layers": 1, "channels": 16, "heads": 2, "ffn_hidden": 24},
  "data": {"train": ["$fixtures/checkpoint-v0-data/train.shard"],
    "valid": "$fixtures/checkpoint-v0-data/valid.shard",
    "tokenizer": "$fixtures/checkpoint-v0/tokenizer.model"},
  "train": {"context": 24, "batch": 4, "micro_batch": 2, "steps": ${5:-500}, "device": "cpu",
    "log_every": 3, "eval_every": 70, "save_every": 9, "tensorboard": true,
    "sample_prompts": ["The river"]},
  "schedule": {"warmup_steps": 20},
  "generate": {"max_tokens": 4}
}
JSON

train() { "$program" pretrain config.json --quiet --set train.out="$1" >"$work/log" 2>&1; }

# facts RUN: what must be equal, without what a clock or the memory of a process says.
facts() {
  local checkpoint
  checkpoint=$1/checkpoints/$(cat "$1/checkpoints/LATEST")
  (cd "$checkpoint" && sha256sum model.safetensors optimizer.safetensors)
  sed -E 's/"(tokens_per_second|mfu|peak_memory_bytes|seconds)": ?[^,}]*//g' \
    "$1/metrics.jsonl" "$checkpoint/state.json"
  cat "$1/samples.jsonl"
}

start=$(date +%s%N)
train whole || fail "the run that is left alone failed"
duration=$((($(date +%s%N) - start) / 1000000))
facts whole >whole.txt

interrupted=0 finished=0
while ((interrupted < kills)) || [[ -e broken ]]; do
  train broken &
  job=$! signal=""
  if ((interrupted < kills)); then
    signal=${signals[RANDOM % ${#signals[@]}]}
    delay=$((RANDOM % duration))
    sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
    kill -s "$signal" -- "-$job" 2>/dev/null || true
    if ((RANDOM % 10 == 0)); then kill -s TERM -- "-$job" 2>/dev/null || true; fi
  fi
  status=0
  wait "$job" 2>/dev/null || status=$?
  if ((status == 0)); then
    facts broken >broken.txt
    cmp whole.txt broken.txt || fail "the interrupted run differs after $interrupted interruptions"
    rm -rf broken
    finished=$((finished + 1))
  elif ((status > 128)); then
    interrupted=$((interrupted + 1))
  else
    fail "the run ended with $status after $interrupted interruptions"
  fi
done
echo "$interrupted interruptions of $finished runs, 0 differ"
