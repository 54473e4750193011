#!/usr/bin/env bash
# Training speed on one GPU: this program against the same model in Python PyTorch (peer_torch.py:
# torch.compile and eager, bf16 autocast, cuDNN attention, fused AdamW, clipping at norm 1), the
# optimizer at every step, a vocabulary of 50,304. First the losses of some steps are checked against
# the reference attention; what is wrong is not timed. Of each model the programs take turns for some
# rounds; figures are medians over rounds of each one's median step, and a row appears when its last
# round is done. A second table has the ratios of step times, StableMask to causal and ALiBi to RoPE,
# medians over rounds of neighbours in time. Ends with 1 when a row failed.
#
#   scripts/bench/gpu_table.sh [options]
#     --models LIST        default: 71m,160m,400m,1.4b
#     --steps N            timed steps a round (default: 30)
#     --rounds N           default: 1
#     --skip-eager         no eager rows
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

declare -Ar titles=(
  [compile]='PyTorch, torch.compile'
  [causal]='ours, causal'
  [stablemask]='ours, StableMask'
  [alibi]='ours, ALiBi + StableMask'
  [eager]='PyTorch, eager'
  [halves]='PyTorch, eager, in halves'
)

main() {
  parse_arguments "$@"
  require_programs
  mkdir -p "$out"
  rm -f "$out"/{table.md,results.jsonl,log}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  validate
  header
  failed=()
  local model
  for model in "${models[@]}"; do time_model "$model"; done
  ratios
  note "" "$out/table.md, $out/results.jsonl; $SECONDS s"
  if ((${#failed[@]})); then die "rows that failed: ${#failed[@]} (${failed[*]}); see $out/log"; fi
}

parse_arguments() {
  models=(71m 160m 400m 1.4b) steps=30 rounds=1 eager=1 out=$build/gpu-table library_path=
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  python=${STABLEMASK_PYTHON:-$cache/torch-2.11.0/bin/python3}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --quick)
        eager=0 steps=20
        shift
        continue
        ;;
      --skip-eager)
        eager=0
        shift
        continue
        ;;
    esac
    [[ $1 =~ ^--(models|steps|rounds|out|binary|python|library-path)$ ]] ||
      die "unknown option '$1' (see --help)" 2
    [[ -n ${2-} ]] || die "$1 needs a value" 2
    case $1 in
      --models) IFS=, read -ra models <<<"$2" ;;
      --steps) steps=$2 ;;
      --rounds) rounds=$2 ;;
      --out) out=$2 ;;
      --binary) stablemask=$2 ;;
      --python) python=$2 ;;
      --library-path) library_path=$2 ;;
    esac
    shift 2
  done
  require_models "${models[@]}"
  require_count --steps "$steps"
  require_count --rounds "$rounds"
}

require_programs() {
  require_stablemask
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
  emit "$gpu; optimizer every step, V = 50,304; medians of $rounds x $steps steps" "" \
    "| model | program | tokens/s | of torch.compile | step ms | MFU | peak GiB | of torch.compile | start s |" \
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
}

emit() { printf '%s\n' "$@" | tee -a "$out/table.md"; }

time_model() {
  local model=$1 round program programs=(compile causal stablemask alibi)
  if ((eager)); then programs+=(eager); fi
  for ((round = 1; round <= rounds; round++)); do
    for program in "${programs[@]}"; do
      if [[ " ${failed[*]} " == *" $model.$program "* ]]; then continue; fi
      if ! measure "$model" "$program"; then
        note "$model, ${titles[$program]}: failed: $(tail -n 1 "$out/log")" >&2
        failed+=("$model.$program")
      elif ((round == rounds)); then
        row "$model" "$program"
      fi
    done
  done
}

# measure MODEL PROGRAM: the figures of one round in $work/MODEL.PROGRAM.ROUND.json.
measure() {
  local model=$1 program=$2 file=$work/$1.$2.$round.json
  case $program in
    compile) peer "$file" --preset "$model" --compile ;;
    causal) ours "$file" --model "$model" --steps "$steps" --mask causal ;;
    stablemask) ours "$file" --model "$model" --steps "$steps" --mask stablemask ;;
    alibi) ours "$file" --model "$model" --steps "$steps" --mask stablemask --position alibi ;;
    eager) eager "$model" "$file" ;;
  esac || return 1
  printf '{"row": "%s", "round": %d, "figures": %s}\n' "$model.$program" "$round" \
    "$(tr -d '\n' <"$file")" >>"$out/results.jsonl"
}

# peer FILE OPTIONS…
peer() {
  local file=$1
  shift
  "$python" "$peer" --vocab 50304 --mask causal --position rope --device cuda --steps "$steps" \
    --json "$@" >"$file" 2>>"$out/log" && return
  rm -f "$file"
  return 1
}

# The larger models do not fit whole; $work/MODEL.halves remembers it.
eager() {
  if [[ ! -e $work/$1.halves ]] && peer "$2" --preset "$1"; then return; fi
  touch "$work/$1.halves"
  peer "$2" --preset "$1" --micro-batch "$(half_batch "$1")"
}

half_batch() {
  case $1 in
    71m) echo 32 ;;
    160m) echo 16 ;;
    400m) echo 8 ;;
    *) echo 4 ;;
  esac
}

# field NAME FILE: a number of a JSON object without nesting; nothing when it is not there.
field() {
  if [[ -f $2 ]]; then sed -nE "s/.*\"$1\": *([0-9][0-9.e+-]*).*/\1/p" "$2"; fi
}

median() { sort -g | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }

# figure NAME MODEL.PROGRAM: the median over rounds; nothing when it was not measured.
figure() {
  local round
  for ((round = 1; round <= rounds; round++)); do field "$1" "$work/$2.$round.json"; done | median
}

row() {
  local model=$1 program=$2 this=$1.$2 base=$1.compile title=${titles[$2]}
  if [[ $program == eager && -e $work/$model.halves ]]; then title=${titles[halves]}; fi
  emit "$(awk -v model="$model" -v name="$title" -v speed="$(figure tokens_per_second "$this")" \
    -v ms="$(figure step_ms "$this")" -v mfu="$(figure mfu "$this")" \
    -v memory="$(figure peak_memory_bytes "$this")" -v start="$(figure start_seconds "$this")" \
    -v base_speed="$(figure tokens_per_second "$base")" \
    -v base_memory="$(figure peak_memory_bytes "$base")" '
    function ratio(x, y) { return y > 0 ? sprintf("%.3f", x / y) : "–" }
    BEGIN {
      printf "| %s | %s | %.0f | %s | %.2f | %.1f %% | %.2f | %s | %s |", model, name, speed,
        ratio(speed, base_speed), ms, 100 * mfu, memory / 2 ^ 30, ratio(memory, base_memory),
        start == "" ? "–" : sprintf("%.1f", start)
    }')"
}

ratios() {
  local model
  emit "" "| model | step, StableMask / causal | step, ALiBi / RoPE, both StableMask |" \
    "| --- | ---: | ---: |"
  for model in "${models[@]}"; do
    emit "| $model | $(ratio "$model" stablemask causal) | $(ratio "$model" alibi stablemask) |"
  done
}

# ratio MODEL A B: of the step times of two programs, the median over rounds.
ratio() {
  local round result
  result=$(for ((round = 1; round <= rounds; round++)); do
    paste <(field step_ms "$work/$1.$2.$round.json") <(field step_ms "$work/$1.$3.$round.json")
  done | awk 'NF == 2 { printf "%.4f\n", $1 / $2 }' | median)
  echo "${result:-–}"
}

main "$@"
