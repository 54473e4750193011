#!/usr/bin/env bash
# Training speed on one GPU: this program against the same model through torch.compile
# (peer_torch.py), bf16, AdamW at every step, a vocabulary of 50,304, random tokens. The programs take
# turns; the table holds medians over rounds, and the largest peak of memory.
#
#   scripts/bench/gpu_vs_compile.sh [options] [MODEL...]
#     MODEL           71m (64 x 1024), 160m (32 x 1024), 400m (16 x 1024), 1.4b (8 x 2048);
#                     default: all
#     --eager         also PyTorch without compilation
#     --literal       also StableMask written out in PyTorch, eager
#     --rounds N      default: 3
#     --steps N       timed steps a round (default: 20)
#     --program FILE  a built stablemask (default: build/stablemask, built when it is not there)
#     --python FILE   a Python with torch (default: the one that setup.sh installed)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  parse_arguments "$@"
  if [[ -z $program ]]; then
    "$root/scripts/setup.sh"
    program=$build/stablemask
  fi
  "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null ||
    die "needs a GPU and a Python with torch that sees it (--python): $python does not"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  printf '%-6s %-36s %10s %9s %7s %9s\n' model program tokens/s "to peer" MFU "peak GiB"
  local model round
  for model in "${models[@]}"; do
    : >"$work/rows"
    for ((round = 0; round < rounds; round++)); do measure "$model"; done
    table "$model"
  done
}

parse_arguments() {
  models=() rounds=3 steps=20 eager=0 literal=0 program="" python=$cache/torch-2.11.0/bin/python3
  while (($#)); do
    case $1 in
      --eager) eager=1 ;;
      --literal) literal=1 ;;
      --rounds | --steps)
        [[ ${2-} =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number ≥ 1" 2
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --program | --python)
        command -v "${2-}" >/dev/null || die "$1 needs a program, not '${2-}'" 2
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      71m | 160m | 400m | 1.4b) models+=("$1") ;;
      *) die "unknown option or model '$1' (see --help)" 2 ;;
    esac
    shift
  done
  if ((${#models[@]} == 0)); then models=(71m 160m 400m 1.4b); fi
  [[ -x $python ]] || python=python3
}

# measure MODEL: every program once. The first row is the one that the others are compared with.
measure() {
  peer "$1" "torch.compile, causal" --mask causal --compile
  ours "$1" "ours, causal" --mask causal
  ours "$1" "ours, StableMask" --mask stablemask
  ours "$1" "ours, ALiBi + StableMask" --mask stablemask --position alibi
  if ((eager)); then peer "$1" "torch eager, causal" --mask causal; fi
  if ((literal)); then peer "$1" "torch eager, literal StableMask" --mask stablemask; fi
}

peer() {
  "$python" "$root/scripts/bench/peer_torch.py" --preset "$1" --device cuda --steps "$steps" \
    --warmup 5 --json "${@:3}" >"$work/json" 2>"$work/log" || refused "$2"
  record "$2"
}

ours() {
  rm -f "$work/json"
  "$program" bench step --model "$1" --device cuda --steps "$steps" --json "$work/json" "${@:3}" \
    >"$work/log" 2>&1 || refused "$2"
  record "$2"
}

# A program that does not fit or fails has no figures and does not end the rest.
refused() {
  note "$1: $(tail -n 1 "$work/log")" >&2
  echo '{}' >"$work/json"
}

record() {
  printf '%s\t%s\t%s\t%s\n' "$1" "$(field tokens_per_second)" "$(field mfu)" \
    "$(field peak_memory_bytes)" >>"$work/rows"
}

field() { tr -d '\n' <"$work/json" | sed -nE "s/.*\"$1\": *([0-9.e+-]+).*/\1/p"; }

table() {
  sort -t $'\t' -k 1,1 -k 2,2g "$work/rows" >"$work/sorted"
  awk -F '\t' -v model="$1" '
    NR == FNR { if (!($1 in rank)) { rank[$1] = ++rows; name[rows] = $1 } next }
    { n[$1]++; speed[$1, n[$1]] = $2; mfu[$1, n[$1]] = $3; if ($4 + 0 > peak[$1]) peak[$1] = $4 + 0 }
    END {
      middle = int((n[name[1]] + 1) / 2); peer = speed[name[1], middle]
      for (i = 1; i <= rows; i++) {
        program = name[i]; value = speed[program, middle]
        if (value == "") { printf "%-6s %-36s %10s\n", model, program, "failed"; continue }
        ratio = peer == "" ? "" : sprintf("%.3fx", value / peer)
        printf "%-6s %-36s %10.0f %9s %6.1f%% %9.1f\n", model, program, value, ratio,
               100 * mfu[program, middle], peak[program] / 2^30
      }
    }' "$work/rows" "$work/sorted"
}

main "$@"
