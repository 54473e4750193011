#!/usr/bin/env bash
# Training speed on one GPU: this program against the same model in Python PyTorch (peer_torch.py:
# torch.compile and eager, bf16 autocast, cuDNN attention, fused AdamW, clipping at norm 1), the
# optimizer at every step, a vocabulary of 50,304. First the losses of some steps are checked against
# the reference attention; what is wrong is not timed. Rows appear as they are measured.
#
#   scripts/bench/gpu_table.sh [options]
#     --models LIST        default: 71m,160m,400m,1.4b
#     --steps N            timed steps (default: 30; medians)
#     --quick              20 timed steps, no eager rows
#     --out FOLDER         table.md and results.jsonl go here (default: build/gpu-table)
#     --binary FILE        default: $STABLEMASK_BINARY, or build/stablemask
#     --python FILE        a Python with torch and a GPU (default: $STABLEMASK_PYTHON, or the one
#                          that setup.sh made)
#     --library-path DIRS  put before LD_LIBRARY_PATH, for the binary alone
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly peer=$root/scripts/bench/peer_torch.py
readonly tolerance=0.005 # nats

main() {
  parse_arguments "$@"
  require_programs
  mkdir -p "$out"
  rm -f "$out"/{table.md,results.jsonl,log}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  validate
  header
  local model
  for model in "${models[@]}"; do time_model "$model"; done
  if ((!quick)); then
    for model in "${models[@]}"; do eager_row "$model"; done
  fi
  note "" "$out/table.md, $out/results.jsonl; $SECONDS s"
}

parse_arguments() {
  models=(71m 160m 400m 1.4b) steps=30 quick=0 out=$build/gpu-table library_path=
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  python=${STABLEMASK_PYTHON:-$cache/torch-2.11.0/bin/python3}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --quick)
        quick=1 steps=20
        shift
        continue
        ;;
    esac
    [[ $1 =~ ^--(models|steps|out|binary|python|library-path)$ ]] ||
      die "unknown option '$1' (see --help)" 2
    [[ -n ${2-} ]] || die "$1 needs a value" 2
    case $1 in
      --models) IFS=, read -ra models <<<"$2" ;;
      --steps) steps=$2 ;;
      --out) out=$2 ;;
      --binary) stablemask=$2 ;;
      --python) python=$2 ;;
      --library-path) library_path=$2 ;;
    esac
    shift 2
  done
  local model
  for model in "${models[@]}"; do
    [[ $model =~ ^(71m|160m|400m|1\.4b)$ ]] || die "--models: '$model' is none of 71m, 160m, 400m, 1.4b" 2
  done
  [[ $steps =~ ^[1-9][0-9]*$ ]] || die "--steps needs a number ≥ 1" 2
}

require_programs() {
  [[ -x $stablemask ]] || die "$stablemask is not there; run scripts/setup.sh, or state --binary"
  "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    die "$python has no torch that sees a GPU; state --python"
}

# ours FILE OPTIONS…: one `bench step`, its figures in FILE.
ours() {
  local file=$1
  shift
  LD_LIBRARY_PATH=$library_path${library_path:+:}${LD_LIBRARY_PATH-} \
    "$stablemask" bench step --device cuda --json "$file" "$@" >>"$out/log" 2>&1
}

# The program's losses against those with the reference attention and no graph: every step within
# the tolerance. Every step has new random tokens, so there is nothing to learn; a small learning rate
# keeps rounding from growing into another trajectory.
validate() {
  local case small=(--model 71m --batch 4 --context 512 --steps 5 --set optimizer.lr=1e-5)
  for case in "causal rope" "stablemask rope" "stablemask alibi" "infinite rope"; do
    local options=(--mask "${case% *}" --position "${case#* }")
    if ! { ours "$work/fast.json" "${small[@]}" "${options[@]}" &&
      ours "$work/reference.json" "${small[@]}" "${options[@]}" --plain \
        --set model.attention=reference; }; then
      die "validation, $case: $(tail -n 1 "$out/log")"
    fi
    losses "$work/fast.json" >"$work/fast"
    losses "$work/reference.json" >"$work/reference"
    compare "$case" "$work/fast" "$work/reference"
  done
}

losses() { sed -nE '/"losses"/,/\]/s/^ *(-?[0-9][0-9.e+-]*),?$/\1/p' "$1"; }

compare() {
  paste "$2" "$3" | awk -v name="$1" -v tolerance="$tolerance" '
    { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; last = $1 }
    NR == 1 { first = $1 }
    END {
      right = NR > 5 && worst <= tolerance
      printf "valid: %-16s loss %.4f -> %.4f, at most %.4f from the reference in %d steps%s\n",
        name, first, last, worst, NR, right ? "" : "  WRONG"
      exit !right
    }' || die "validation, $1: the losses do not follow the reference; nothing was timed"
}

header() {
  local gpu
  gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name(0), torch.__version__, sep=", torch ")')
  emit "$gpu; optimizer every step, V = 50,304; medians of $steps steps" "" \
    "| model | program | tokens/s | of torch.compile | step ms | MFU | peak GiB | of torch.compile | start s |" \
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
}

emit() { printf '%s\n' "$@" | tee -a "$out/table.md"; }

time_model() {
  local model=$1
  peer_row "$model" compile "torch.compile" --compile || true
  our_row "$model" causal "causal" --mask causal
  our_row "$model" stablemask "StableMask" --mask stablemask
  our_row "$model" alibi "ALiBi + StableMask" --mask stablemask --position alibi
}

eager_row() {
  local model=$1
  peer_row "$model" eager "eager" ||
    peer_row "$model" eager "eager, in halves" --micro-batch "$(half_batch "$model")" || true
}

half_batch() {
  case $1 in
    71m) echo 32 ;;
    160m) echo 16 ;;
    400m) echo 8 ;;
    *) echo 4 ;;
  esac
}

peer_row() {
  local model=$1 name=$3 file=$work/$1.$2.json
  shift 3
  if ! "$python" "$peer" --preset "$model" --vocab 50304 --mask causal --position rope \
    --device cuda --steps "$steps" --json "$@" >"$file" 2>>"$out/log"; then
    rm -f "$file"
    note "$model, $name: failed: $(tail -n 1 "$out/log")" >&2
    return 1
  fi
  row "$model" "PyTorch, $name" "$file"
}

our_row() {
  local model=$1 name=$3 file=$work/$1.$2.json
  shift 3
  if ours "$file" --model "$model" --steps "$steps" "$@"; then
    row "$model" "ours, $name" "$file"
  else
    note "$model, $name: failed: $(tail -n 1 "$out/log")" >&2
  fi
}

# field NAME FILE: a number of a JSON object without nesting; nothing when it is not there.
field() {
  if [[ -f $2 ]]; then sed -nE "s/.*\"$1\": *([0-9][0-9.e+-]*).*/\1/p" "$2"; fi
}

row() {
  local model=$1 name=$2 file=$3 base=$work/$1.compile.json
  printf '{"row": "%s", "figures": %s}\n' "$(basename "$file" .json)" "$(tr -d '\n' <"$file")" >>"$out/results.jsonl"
  emit "$(awk -v model="$model" -v name="$name" -v speed="$(field tokens_per_second "$file")" \
    -v ms="$(field step_ms "$file")" -v mfu="$(field mfu "$file")" \
    -v memory="$(field peak_memory_bytes "$file")" -v start="$(field start_seconds "$file")" \
    -v base_speed="$(field tokens_per_second "$base")" \
    -v base_memory="$(field peak_memory_bytes "$base")" '
    function ratio(x, y) { return y > 0 ? sprintf("%.3f", x / y) : "–" }
    BEGIN {
      printf "| %s | %s | %.0f | %s | %.2f | %.1f %% | %.2f | %s | %s |", model, name, speed,
        ratio(speed, base_speed), ms, 100 * mfu, memory / 2 ^ 30, ratio(memory, base_memory),
        start == "" ? "–" : sprintf("%.1f", start)
    }')"
}

main "$@"
