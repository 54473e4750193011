#!/usr/bin/env bash
# Training speed on the CPU: this program against the same model in Python PyTorch (peer_torch.py),
# eager and, if asked for, with torch.compile, fp32, AdamW, clipping, the same number of threads. With
# --bf16 both compute products in bf16: train.precision "bf16" against bfloat16 autocast. The programs
# take turns for some rounds; the table holds the median over rounds of each one's median step.
#
#   scripts/bench/cpu_vs_eager.sh [options] [CONFIG...]
#     --threads N   default: all cores
#     --rounds N    default: 3
#     --steps N     timed steps a round (default: 8, after 2 that are not timed)
#     --bf16        products in bf16
#     --compile     also torch.compile, which needs a C++ compiler and half a minute a round
#     CONFIG        pretraining configs that give the shapes
#                   (default: quickstart.json and wikitext2-cpu-stablemask.json)
#
# The text is an invented encyclopedia; its tokenizer of 2000 pieces sets the vocabulary of both.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly warmup=2
readonly stablemask=$build/stablemask

main() {
  parse_arguments "$@"
  "$root/scripts/setup.sh"
  find_python
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  prepare
  printf '%-28s %-28s %10s %12s\n' shape program tokens/s "ours/this"
  local config
  for config in "${configs[@]}"; do compare "$config"; done
}

parse_arguments() {
  threads=$(cores) rounds=3 steps=8 compile=0 precision=dtype configs=()
  while (($#)); do
    case $1 in
      --threads | --rounds | --steps)
        [[ ${2-} =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number ≥ 1" 2
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --bf16) precision=bf16 ;;
      --compile) compile=1 ;;
      -*) die "unknown option '$1' (see --help)" 2 ;;
      *) configs+=("$1") ;;
    esac
    shift
  done
  if ((${#configs[@]} == 0)); then
    configs=("$root"/configs/pretrain/{quickstart,wikitext2-cpu-stablemask}.json)
  fi
}

find_python() {
  python=$cache/torch-2.11.0/bin/python3
  [[ -x $python ]] || python=python3
  "$python" -c 'import torch, numpy' 2>/dev/null ||
    die "needs a Python with torch and numpy: $python has none"
}

prepare() {
  "$stablemask" data synth --output "$work" >/dev/null
  "$stablemask" tokenizer train --input "$work/wiki.train.tokens" --output "$work/tokenizer.model" \
    --vocab-size 2000 >/dev/null
  local split
  for split in train valid; do
    "$stablemask" data prepare --input "$work/wiki.$split.tokens" \
      --tokenizer "$work/tokenizer.model" --output "$work/$split.shard" >/dev/null
  done
}

compare() {
  local round
  rm -f "$work"/*.speeds
  for ((round = 1; round <= rounds; round++)); do
    ours "$1" false >>"$work/ours-causal.speeds"
    peer causal >>"$work/eager-causal.speeds"
    ours "$1" true >>"$work/ours-stablemask.speeds"
    peer stablemask >>"$work/eager-stablemask.speeds"
    if ((compile)); then
      peer causal --compile >>"$work/compile-causal.speeds"
      peer stablemask --compile >>"$work/compile-stablemask.speeds"
    fi
  done
  row "$(basename "$1" .json)" "ours, StableMask" ours-stablemask
  row "" "ours, causal" ours-causal
  row "" "eager, causal (SDPA)" eager-causal
  row "" "eager, StableMask (literal)" eager-stablemask
  if ((compile)); then
    row "" "torch.compile, causal" compile-causal
    row "" "torch.compile, StableMask" compile-stablemask
  fi
}

# ours CONFIG ENABLED: the median tokens/s of the steps after the warm-up.
ours() {
  local run=$work/run
  rm -rf "$run"
  "$stablemask" pretrain "$1" --resume never --set train.out="$run" --set train.device=cpu \
    --set train.threads="$threads" --set train.precision="$precision" \
    --set train.steps=$((warmup + steps)) --set train.log_every=1 --set train.eval_every=0 \
    --set train.save_every=0 --set schedule.warmup_steps=1 \
    --set model.stable_mask.enabled="$2" --set model.vocab_size=2000 --set data.valid= \
    --set data.tokenizer="$work/tokenizer.model" --set data.train="[\"$work/train.shard\"]" \
    >"$work/log" 2>&1 || die "$(tail -n 1 "$work/log")"
  speeds <"$run/metrics.jsonl" | tail -n +$((warmup + 1)) | median
}

# peer MASK OPTION…: PyTorch with the shape of the last run of ours.
peer() {
  local autocast=()
  [[ $precision == dtype ]] || autocast=(--bf16)
  "$python" "$root/scripts/bench/peer_torch.py" --config "$work/run/config.json" --mask "$1" \
    --device cpu --threads "$threads" --steps "$steps" --warmup "$warmup" --json "${autocast[@]}" \
    "${@:2}" \
    2>"$work/log" | speeds || die "$(tail -n 1 "$work/log")"
}

speeds() { sed -nE 's/.*"tokens_per_second": *([0-9.e+]+).*/\1/p'; }

median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

row() {
  awk -v shape="$1" -v program="$2" -v speed="$(median <"$work/$3.speeds")" \
    -v ours="$(median <"$work/ours-stablemask.speeds")" \
    'BEGIN { printf "%-28s %-28s %10.0f %11.2fx\n", shape, program, speed, ours / speed }'
}

main "$@"
