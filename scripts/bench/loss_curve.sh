#!/usr/bin/env bash
# Whether the fused trainer follows the reference: one config, one seed, the same data in the same
# order, trained on one device in bf16 with every op as its formula in plain LibTorch
# (train.reference_ops) and with the fused kernels. Prints the loss at the last step and the mean over
# the last ten of both, and what two equal fused runs differ by; ends with 1 when the means are more
# than 0.005 nats apart.
#
#   scripts/bench/loss_curve.sh [options]
#     --data DIR           folder with wiki.train.tokens (default: wikitext-2 in $STABLEMASK_DATA or in
#                          data/; without one, an invented encyclopedia)
#     --steps N            default: 200
#     --batch N            sequences of 512 tokens a step (default: 32)
#     --device D           cuda (default) or cpu
#     --out FOLDER         text, runs and log go here (default: build/loss-curve)
#     --binary FILE        default: $STABLEMASK_BINARY, or build/stablemask
#     --library-path DIRS  put before LD_LIBRARY_PATH, for the binary alone
#
# The run is that of configs/pretrain/wikitext103-71m-rope-stablemask.json, with a vocabulary of 8000
# and a warm-up of a quarter of its steps. The CPU is for trying the script.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly tolerance=0.005 # nats
readonly averaged=10     # steps
readonly vocabulary=8000

main() {
  parse_arguments "$@"
  require_stablemask
  mkdir -p "$out"
  rm -rf "$out"/{reference,fused,again,log}
  prepare
  train reference true
  train fused false
  train again false
  report
}

parse_arguments() {
  text='' steps=200 batch=32 device=cuda out=$build/loss-curve library_path=
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
    esac
    [[ $1 =~ ^--(data|steps|batch|device|out|binary|library-path)$ ]] ||
      die "unknown option '$1' (see --help)" 2
    [[ -n ${2-} ]] || die "$1 needs a value" 2
    case $1 in
      --data) text=$2/wiki.train.tokens ;;
      --steps) steps=$2 ;;
      --batch) batch=$2 ;;
      --device) device=$2 ;;
      --out) out=$2 ;;
      --binary) stablemask=$2 ;;
      --library-path) library_path=$2 ;;
    esac
    shift 2
  done
  require_count --steps "$steps"
  require_count --batch "$batch"
  require_device "$device"
  if [[ -n $text && ! -f $text ]]; then die "$text is not there" 2; fi
}

program() {
  LD_LIBRARY_PATH=$library_path${library_path:+:}${LD_LIBRARY_PATH-} \
    "$stablemask" "$@" >>"$out/log" 2>&1 || die "stablemask $1: $(tail -n 1 "$out/log")"
}

prepare() {
  local folder
  for folder in "${STABLEMASK_DATA:-$root/data}/wikitext-2" "${STABLEMASK_DATA:-$root/data}"; do
    if [[ -z $text && -f $folder/wiki.train.tokens ]]; then text=$folder/wiki.train.tokens; fi
  done
  if [[ -z $text ]]; then
    program data synth --force --output "$out/text"
    text=$out/text/wiki.train.tokens
  fi
  program tokenizer train --input "$text" --output "$out/tokenizer.model" \
    --vocab-size "$vocabulary"
  program data prepare --input "$text" --tokenizer "$out/tokenizer.model" \
    --output "$out/train.shard"
  note "text: $text; $steps steps"
}

# train NAME REFERENCE: a run in $out/NAME.
train() {
  local start=$SECONDS
  program pretrain "$root/configs/pretrain/wikitext103-71m-rope-stablemask.json" --resume never \
    --set train.out="$out/$1" --set train.reference_ops="$2" --set train.device="$device" \
    --set train.dtype=bf16 --set train.steps="$steps" --set schedule.warmup_steps=$((steps / 4)) \
    --set train.batch="$batch" --set train.log_every=1 --set train.eval_every=0 \
    --set train.save_every=0 --set data.tokenizer="$out/tokenizer.model" \
    --set data.train="[\"$out/train.shard\"]" --set data.valid=
  note "trained: $1, $((SECONDS - start)) s"
}

# The losses of a run, one a line.
losses() { sed -nE 's/.*"loss": *(-?[0-9][0-9.e+-]*).*/\1/p' "$out/$1/metrics.jsonl"; }

report() {
  local run
  for run in reference fused again; do losses "$run" >"$out/$run/losses"; done
  paste "$out"/{reference,fused,again}/losses | awk -v steps="$steps" -v averaged="$averaged" \
    -v tolerance="$tolerance" '
    function line(name, i) { printf "%-28s %10.4f %10.4f\n", name, last[i], mean[i] }
    function apart(i, j) { return mean[i] > mean[j] ? mean[i] - mean[j] : mean[j] - mean[i] }
    NF == 3 { count++; for (i = 1; i <= 3; i++) { last[i] = $i; loss[i, count] = $i } }
    END {
      if (count != steps) { printf "%d losses of %d steps\n", count, steps; exit 1 }
      first = steps > averaged ? steps - averaged + 1 : 1
      for (i = 1; i <= 3; i++) {
        for (k = first; k <= steps; k++) mean[i] += loss[i, k] / (steps - first + 1)
      }
      printf "\n%-28s %10s %10s\n", "loss, nats", "step " steps, first "-" steps
      line("reference, bf16", 1)
      line("fused, bf16", 2)
      line("the same again", 3)
      right = apart(1, 2) <= tolerance
      printf "\nmeans: %.5f apart, at most %s allowed; two equal runs: %.5f%s\n", apart(1, 2),
        tolerance, apart(2, 3), right ? "" : "  WRONG"
      exit !right
    }'
}

main "$@"
