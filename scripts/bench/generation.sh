#!/usr/bin/env bash
# Speed of generation: this program against transformers and a compiled decoding loop in PyTorch
# (peer_generate.py), and on the CPU, at batch 1, against llama.cpp (peer_llama_cpp.py). The same
# shapes with random weights, bf16 on a GPU and fp32 on the CPU, sampling on. Figures of peers are
# medians of some runs in one process. The ratio is that of the time a step, in which every sequence
# gets a token. A peer that is not installed is left out with the reason. Ends with 1 when a row failed.
#
#   scripts/bench/generation.sh [options]
#     --models LIST         default: 71m,160m,1.4b on a GPU, 71m on the CPU
#     --batches LIST        default: 1,64 on a GPU, 1 on the CPU
#     --programs LIST       default: stablemask,causal,compiled,hf-static,hf-dynamic,llama.cpp
#     --prompt N            tokens of each prompt (default: 128)
#     --tokens N            generated for each prompt (default: 1024 on a GPU, 256 on the CPU)
#     --hf-tokens N         the same for transformers, whose time a token hardly depends on it
#                           (default: 128)
#     --repeats N           default: 3
#     --device cuda|cpu     default: cuda if there is a GPU
#     --threads N           on the CPU (default: all cores)
#     --tune                Inductor's coordinate descent for the compiled loop: minutes a model
#     --out FOLDER          table.md and results.jsonl go here (default: build/generation)
#     --binary FILE         default: $STABLEMASK_BINARY, or build/stablemask
#     --python FILE         a Python with torch (default: $STABLEMASK_PYTHON, or the one that setup.sh
#                           made); with transformers for its rows
#     --llama-python FILE   a Python with llama-cpp-python and gguf (default: that of --python)
#     --library-path DIRS   put before LD_LIBRARY_PATH, for the binary alone
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly skipped=77 # exit code of a peer that is not installed

declare -Ar titles=(
  [causal]='ours, causal'
  [stablemask]='ours, StableMask'
  [compiled]='PyTorch, compiled loop'
  [hf-static]='transformers, static cache'
  [hf-dynamic]='transformers, dynamic cache'
  [llama.cpp]='llama.cpp'
)

main() {
  parse_arguments "$@"
  require_stablemask
  mkdir -p "$out"
  rm -f "$out"/{table.md,results.jsonl,log}
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  failed=() left_out=()
  emit "$(machine); prompts of $prompt tokens, $tokens more; medians of $repeats runs" "" \
    "| model | batch | program | tokens/s | with prompts | step ms | it / ours | GB/s of weights | prompts ms |" \
    "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
  local model batch program
  for model in "${models[@]}"; do
    for batch in "${batches[@]}"; do
      rm -f "$work"/*.json
      for program in "${programs[@]}"; do measure "$program"; done
    done
  done
  note "" "$out/table.md, $out/results.jsonl; $SECONDS s"
  if ((${#left_out[@]})); then note "${left_out[@]}" | sort -u; fi
  if ((${#failed[@]})); then die "rows that failed: ${#failed[@]} (${failed[*]}); see $out/log"; fi
}

parse_arguments() {
  models=() batches=() programs=(stablemask causal compiled hf-static hf-dynamic llama.cpp)
  prompt=128 tokens= hf_tokens=128 repeats=3 device= threads=$(cores) tune=()
  out=$build/generation library_path= llama_python=
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  python=${STABLEMASK_PYTHON:-$cache/torch-2.11.0/bin/python3}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --tune)
        tune=(--tune)
        shift
        continue
        ;;
    esac
    [[ -n ${2-} ]] || die "$1: unknown option, or needs a value (see --help)" 2
    case $1 in
      --models) IFS=, read -ra models <<<"$2" ;;
      --batches) IFS=, read -ra batches <<<"$2" ;;
      --programs) IFS=, read -ra programs <<<"$2" ;;
      --prompt | --tokens | --hf-tokens | --repeats | --threads)
        require_count "$1" "$2"
        local name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        ;;
      --device) device=$2 ;;
      --out) out=$2 ;;
      --binary) stablemask=$2 ;;
      --python) python=$2 ;;
      --llama-python) llama_python=$2 ;;
      --library-path) library_path=$2 ;;
      *) die "unknown option '$1' (see --help)" 2 ;;
    esac
    shift 2
  done
  complete_arguments
}

complete_arguments() {
  local program
  for program in "${programs[@]}"; do
    [[ -v titles[$program] ]] || die "--programs: $program is none of: ${!titles[*]}" 2
  done
  if [[ -z $device ]]; then device=$(has_gpu && echo cuda || echo cpu); fi
  llama_python=${llama_python:-$python}
  if [[ $device == cpu ]]; then
    if ((${#models[@]} == 0)); then models=(71m); fi
    if ((${#batches[@]} == 0)); then batches=(1); fi
    tokens=${tokens:-256}
  else
    if ((${#models[@]} == 0)); then models=(71m 160m 1.4b); fi
    if ((${#batches[@]} == 0)); then batches=(1 64); fi
    tokens=${tokens:-1024}
  fi
  local batch
  for batch in "${batches[@]}"; do require_count --batches "$batch"; done
}

has_gpu() {
  "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

machine() {
  if [[ $device == cpu ]]; then
    printf '%s, %d threads' "$(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "$threads"
  else
    "$python" -c 'import torch; print(torch.cuda.get_device_name(0), torch.__version__, sep=", torch ")'
  fi
}

emit() { printf '%s\n' "$@" | tee -a "$out/table.md"; }

# measure PROGRAM: a row of `model` and `batch`; the figures are in $work/PROGRAM.json.
measure() {
  local program=$1 status=0 load
  load=(--prompt "$prompt" --repeats "$repeats")
  case $program in
    causal | stablemask) ours "$program" || status=$? ;;
    compiled) peer --program compiled "${load[@]}" --tokens "$tokens" "${tune[@]}" || status=$? ;;
    hf-*) peer --program "$program" "${load[@]}" --tokens "$hf_tokens" || status=$? ;;
    llama.cpp)
      if [[ $device != cpu || $batch != 1 ]]; then return; fi
      "$llama_python" "$root/scripts/bench/peer_llama_cpp.py" --preset "$model" "${load[@]}" \
        --tokens "$tokens" --threads "$threads" >"$work/$program.json" 2>"$work/log" || status=$?
      ;;
  esac
  cat "$work/log" >>"$out/log"
  if ((status == skipped)); then
    left_out+=("$(tail -n 1 "$work/log")")
  elif ((status)); then
    note "$model, batch $batch, ${titles[$program]}: failed: $(tail -n 1 "$work/log")" >&2
    failed+=("$model.$batch.$program")
    rm -f "$work/$program.json"
  else
    printf '{"row": "%s", "batch": %d, "figures": %s}\n' "$model.$program" "$batch" \
      "$(tr -d '\n' <"$work/$program.json")" >>"$out/results.jsonl"
    row "$program"
  fi
}

ours() {
  LD_LIBRARY_PATH=$library_path${library_path:+:}${LD_LIBRARY_PATH-} \
    "$stablemask" bench generate --model "$model" --mask "$1" --batch "$batch" --device "$device" \
    --prompt "$prompt" --tokens "$tokens" --set train.threads="$threads" \
    --json "$work/$1.json" >"$work/log" 2>&1
}

peer() {
  "$python" "$root/scripts/bench/peer_generate.py" --preset "$model" --batch "$batch" \
    --device "$device" --threads "$threads" "$@" >"$work/$program.json" 2>"$work/log"
}

# figure PROGRAM NAME: a number of its JSON, or nothing.
figure() {
  if [[ ! -e $work/$1.json ]]; then return; fi
  sed -nE 's/.*"'"$2"'": *([0-9.e+-]+).*/\1/p' "$work/$1.json" | head -n 1
}

row() {
  awk -v model="$model" -v batch="$batch" -v title="${titles[$1]}" \
    -v speed="$(figure "$1" decoded_tokens_per_second)" -v whole="$(figure "$1" tokens_per_second)" \
    -v step="$(figure "$1" step_ms)" -v ours="$(figure stablemask step_ms)" \
    -v bytes="$(figure "$1" weight_bytes_per_second)" -v prompts="$(figure "$1" prefill_ms)" '
    BEGIN {
      printf "| %s | %d | %s | %.0f | %.0f | %.3f | %s | %.0f | %.1f |\n", model, batch, title, speed,
        whole, step, ours == "" ? "-" : sprintf("%.2f", step / ours), bytes / 1e9, prompts
    }' | tee -a "$out/table.md"
}

main "$@"
