#!/usr/bin/env bash
# What a model knows of absolute positions: trains small models with a causal mask and with
# StableMask, each with RoPE and ALiBi, on generated lines whose tokens depend on their position.
# Prints how far each one is from the best possible, as a table and as a picture (SVG).
# docs/stablemask.md describes the tasks and the results.
#
#   scripts/position.sh [options]
#     --out DIR       a new folder, or one of an earlier run, whose content is replaced
#                     (default: runs/position)
#     --task TASK     count, position, copy or reverse; may be repeated (default: all four)
#     --steps N       training steps of each model (default: a number for each task)
#     --lr X          peak learning rate of every model (default: 0.004)
#     --layers N      layers of the models (default: 2)
#     --channels N    their channels, a multiple of 8; 4 heads (default: 64)
#     --gamma G       gamma of the models with StableMask, as a config states it, for example auto
#                     or 0.5 (default: [0.01, 0.1, 0.5, 1.0], one for each head)
#     --seed N        seed of the lines and of the weights (default: 1); the figures of copy and
#                     reverse differ much between seeds
#     --jobs N        models trained at a time, with one thread each (default: one per core)
#     --quick         the task count alone, 100 steps
#     --program FILE  this build of stablemask; without it the script runs scripts/setup.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly all_tasks=(count position copy reverse)
readonly models=(rope-causal rope-stablemask alibi-causal alibi-stablemask)
declare -A steps_of=([count]=100 [position]=400 [copy]=1500 [reverse]=1000)
readonly batch=16 test_groups=128
readonly marker=.made-by-position

main() {
  parse_arguments "$@"
  if [[ -z $stablemask ]]; then
    "$root/scripts/setup.sh"
    stablemask=$build/stablemask
  fi
  claim_folder
  local start=$SECONDS task
  make_tokenizer
  for task in "${tasks[@]}"; do make_data "$task"; done
  write_config
  train_all
  collect >"$out/results.tsv"
  awk -f "$root/scripts/position/table.awk" "$out/results.tsv" >"$out/table.txt"
  awk -f "$root/scripts/position/chart.awk" "$out/results.tsv" >"$out/position.svg"
  note "" "$(<"$out/table.txt")" "" \
    "The picture is $out/position.svg; $((SECONDS - start)) seconds."
}

parse_arguments() {
  out=$root/runs/position stablemask="" tasks=() jobs=$(cores)
  steps="" layers=2 channels=64 lr=0.004 gamma="[0.01, 0.1, 0.5, 1.0]" seed=1
  while (($#)); do
    case $1 in
      --quick) tasks=(count) steps=100 ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --out | --task | --steps | --layers | --channels | --lr | --gamma | --seed | --jobs | --program)
        [[ -n ${2-} ]] || die "$1 needs a value (see --help)" 2
        set_option "$1" "$2"
        shift
        ;;
      *) die "unknown option '$1' (see --help)" 2 ;;
    esac
    shift
  done
  if ((${#tasks[@]} == 0)); then tasks=("${all_tasks[@]}"); fi
  ((channels % 8 == 0)) || die "--channels needs a multiple of 8, not '$channels'" 2
}

set_option() {
  case $1 in
    --out) out=$2 ;;
    --task)
      [[ " ${all_tasks[*]} " == *" $2 "* ]] || die "no task '$2'; the tasks are ${all_tasks[*]}" 2
      [[ " ${tasks[*]-} " == *" $2 "* ]] || tasks+=("$2")
      ;;
    --lr)
      [[ $2 =~ ^[0-9.]+(e-?[0-9]+)?$ ]] || die "--lr needs a number, not '$2'" 2
      lr=$2
      ;;
    --gamma) gamma=$2 ;;
    --steps | --layers | --channels | --seed | --jobs)
      [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || die "$1 needs a number from 1 to 999999, not '$2'" 2
      printf -v "${1#--}" %s "$2"
      ;;
    --program)
      [[ -f $2 && -x $2 ]] || die "$2 is not a program; name a build of stablemask" 2
      stablemask=$2
      ;;
  esac
}

claim_folder() {
  own_folder "$out" "$marker"
  rm -rf "${out:?}"/*
}

# A piece for each character and none of two: in the text every character is a line.
make_tokenizer() {
  printf '%s\n' {a..z} {0..9} = - '?' . ' ' >"$out/characters.txt"
  step "training the tokenizer" "$stablemask" tokenizer train \
    --input "$out/characters.txt" --output "$out/tokenizer.model" --vocab-size 300
}

steps_for() { echo "${steps:-${steps_of[$1]}}"; }

# Every training sequence is used once, so a model never sees a line of the training text again.
make_data() {
  local folder=$out/$1 split
  mkdir -p "$folder"
  write_lines "$1" train $((2 * seed)) $(($(steps_for "$1") * batch)) 1
  write_lines "$1" test $((2 * seed + 1)) $test_groups 0
  for split in train test; do
    step "encoding the $split lines of $1" "$stablemask" data prepare \
      --input "$folder/$split.jsonl" --tokenizer "$out/tokenizer.model" \
      --output "$folder/$split.shard"
  done
}

# write_lines TASK SPLIT SEED GROUPS ALIGNED
write_lines() {
  awk -v task="$1" -v seed="$3" -v groups="$4" -v aligned="$5" -v facts="$out/$1/$2.facts" \
    -f "$root/scripts/position/lines.awk" >"$out/$1/$2.jsonl"
}

# What all models have in common. Attention stays within a line, where positions begin at 0.
write_config() {
  cat >"$out/config.json" <<JSON
{
  "model": {"layers": $layers, "channels": $channels, "heads": 4, "ffn_hidden": $((2 * channels))},
  "data": {"tokenizer": "$out/tokenizer.model", "document_mask": true},
  "train": {"batch": $batch, "seed": $seed, "device": "cpu", "threads": 1},
  "optimizer": {"lr": $lr, "weight_decay": 0.0},
  "schedule": {"warmup_steps": 20}
}
JSON
}

train_all() {
  local task model
  note "" "training and testing $((${#tasks[@]} * ${#models[@]})) models"
  export stablemask out gamma OMP_NUM_THREADS=1
  export -f train_model
  for task in "${tasks[@]}"; do
    for model in "${models[@]}"; do
      printf '%s\0' "$task" "$model" "$(steps_for "$task")"
    done
  done | xargs -0 -n 3 -P "$jobs" bash -c 'train_model "$@"' "${0##*/}" ||
    die "a model could not be trained; the messages are above"
}

# train_model TASK MODEL STEPS, in a shell of its own. 255 tells xargs to start no other.
train_model() {
  local folder=$out/$1 start=$SECONDS context longest enabled=false
  read -r context longest _ <"$folder/test.facts"
  if [[ $2 == *-stablemask ]]; then enabled=true; fi
  if "$stablemask" pretrain "$out/config.json" --quiet --resume never \
    --set train.out="$folder/$2" --set data.train="[\"$folder/train.shard\"]" \
    --set train.context="$context" --set train.steps="$3" --set model.position="${2%-*}" \
    --set model.stable_mask.enabled=$enabled --set model.stable_mask.gamma="$gamma" \
    --set model.stable_mask.mask_length="$longest" &&
    "$stablemask" eval --checkpoint "$folder/$2" --device cpu --data "$folder/test.shard" \
      --json "$folder/$2.json"; then
    printf '%-46s %4d s\n' "  $1, $2" $((SECONDS - start)) >&3
  else
    return 255
  fi 3>&1 >"$folder/$2.log" </dev/null
}

# A line for each model: task, model, nats per line beyond the floor, the same of guessing.
collect() {
  local task model nll
  for task in "${tasks[@]}"; do
    for model in "${models[@]}"; do
      nll=$(sed -nE '/"nll":/{s/.*"nll": *([0-9.e+-]+).*/\1/p;q}' "$out/$task/$model.json")
      awk -v name="$task"$'\t'"$model" -v nll="$nll" \
        '{ printf "%s\t%.4f\t%.4f\n", name, nll / $3 - $4, $5 }' "$out/$task/test.facts"
    done
  done
}

main "$@"
