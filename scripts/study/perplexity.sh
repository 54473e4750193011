#!/usr/bin/env bash
# The study's first question: perplexity with and without StableMask, with RoPE and with ALiBi. Trains
# one model for each position encoding, mask and seed, and evaluates it on the validation and the test
# split. Every finished model is one line of FOLDER/results.jsonl; a run that was interrupted goes on.
#
#   scripts/study/perplexity.sh --data DIR [options]
#     --data DIR        folder with tokenizer.model, one or more train*.shard, valid.shard, test.shard
#     --out FOLDER      runs and results.jsonl (default: runs/study/perplexity)
#     --preset NAME     model size (default: 71m)
#     --context T       training length (default: 512)
#     --batch N         sequences a step (default: 64)
#     --epochs N        passes over the training text (default: 1)
#     --steps N         length in steps instead
#     --lr X            peak learning rate (default: 0.001)
#     --seeds LIST      default: 1,2,3
#     --positions LIST  default: rope,alibi
#     --masks LIST      default: causal,slopes,0.25,1,4,infinite,sink,learnable (see below)
#     --lengths LIST    test windows beside T (default: 1024,2048,4096)
#     --gpus LIST       GPUs to spread the runs over, one run on each at a time (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start no run after so many seconds (default: none)
#     --set A.B=V       passed on to `stablemask pretrain`; may be repeated
#
# Masks: causal; gamma as the slopes or a number, with mask length T; infinite: gamma as `auto`, every
# row with the mass of an infinite mask length; sink: gamma 50 and an infinite mask length, which is a
# softmax with 1 added to its denominator; learnable: gamma and p_base trained, from `auto`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

declare -A mask_fields=(
  [causal]='model.stable_mask=false'
  [slopes]='model.stable_mask.gamma=slopes'
  [infinite]='model.stable_mask.mask_length=infinite'
  [sink]='model.stable_mask.gamma=50 model.stable_mask.mask_length=infinite'
  [learnable]='model.stable_mask.learnable=true'
)

main() {
  parse_arguments "$@"
  [[ -x $stablemask ]] || die "$stablemask is not there; run scripts/setup.sh, or state --binary"
  [[ -n $data && -f $data/tokenizer.model && -f $data/valid.shard && -f $data/test.shard ]] ||
    die "--data needs a folder with tokenizer.model, train*.shard, valid.shard and test.shard, got '$data'" 2
  mkdir -p "$out"
  read -r epochs steps < <(awk -v t="$(training_tokens)" -v e="$epochs" -v n="$steps" \
    -v s=$((context * batch)) 'BEGIN { print n == "" ? e : sprintf("%.3g", n * s / t), n == "" ? int(t * e / s) : n }')
  local seed position mask
  jobs=()
  for seed in ${seeds//,/ }; do
    for position in ${positions//,/ }; do
      for mask in ${masks//,/ }; do jobs+=("$position $mask $seed"); done
    done
  done
  spread_over_gpus "$gpus" work "$out/*/log"
  cat "$out"/*/result.json >"$out/results.jsonl"
  local job finished=0
  for job in "${jobs[@]}"; do
    # shellcheck disable=SC2086
    if [[ -f $(run_of $job)/result.json ]]; then finished=$((finished + 1)); fi
  done
  note "$finished of ${#jobs[@]} runs are finished; $out/results.jsonl has $(wc -l <"$out/results.jsonl")"
}

parse_arguments() {
  data='' out=runs/study/perplexity preset=71m context=512 batch=64 epochs=1 steps='' lr=0.001
  seeds=1,2,3 positions=rope,alibi masks=causal,slopes,0.25,1,4,infinite,sink,learnable
  lengths=1024,2048,4096 gpus=0 time_limit='' settings=()
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--data --out --preset --context --batch --epochs --steps --lr --seeds --positions"
  options+=" --masks --lengths --gpus --binary --time-limit --set"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
  local mask
  for mask in ${masks//,/ }; do
    [[ -n ${mask_fields[$mask]-} || $mask =~ ^[0-9.]+$ ]] || die "unknown mask '$mask' (see --help)" 2
  done
}

# Of the shards, as their headers state them.
training_tokens() {
  local shard tokens=0
  for shard in "$data"/train*.shard; do
    tokens=$((tokens + $(shard_tokens "$shard")))
  done
  echo "$tokens"
}

# run_of POSITION MASK SEED
run_of() { echo "$out/$preset-$context-$epochs-$1-$2-$3"; }

# work WORKER COUNT
work() {
  local worker=$1 count=$2 i evaluation=
  for ((i = worker; i < ${#jobs[@]}; i += count)); do
    # shellcheck disable=SC2086
    set -- ${jobs[i]}
    run=$(run_of "$@")
    if [[ -f $run/result.json ]]; then continue; fi
    if [[ -n $time_limit ]] && ((SECONDS > time_limit)); then break; fi
    mkdir -p "$run"
    train "$@" >>"$run/log" 2>&1 || return
    if [[ -n $evaluation ]]; then wait "$evaluation" || return; fi
    evaluate "$@" >>"$run/log" 2>&1 &  # while the next run starts
    evaluation=$!
  done
  if [[ -n $evaluation ]]; then wait "$evaluation"; fi
}

# train POSITION MASK SEED
train() {
  local shards field fields=()
  shards=$(printf ',"%s"' "$data"/train*.shard)
  for field in ${mask_fields[$2]-"model.stable_mask.gamma=$2"}; do fields+=(--set "$field"); done
  "$stablemask" pretrain /dev/stdin --quiet --set "train.seed=$3" --set "train.out=$run" \
    --set "model.position=$1" --set "data.train=[${shards:1}]" "${fields[@]}" \
    ${settings[@]+"${settings[@]}"} <<<"{
      \"model\": {\"preset\": \"$preset\", \"vocab_size\": 0},
      \"data\": {\"tokenizer\": \"$data/tokenizer.model\", \"verify\": \"headers\"},
      \"train\": {\"context\": $context, \"batch\": $batch, \"steps\": $steps, \"log_every\": 50,
                  \"save_minutes\": 5, \"keep_last\": 1},
      \"optimizer\": {\"beta2\": 0.98, \"lr\": $lr},
      \"schedule\": {\"warmup_steps\": $((steps / 10 < 300 ? steps / 10 : 300))}
    }"
}

# evaluate POSITION MASK SEED: writes result.json, one line.
evaluate() {
  "$stablemask" eval --checkpoint "$run" --data "$data/valid.shard" --json "$run/valid.json" || return
  "$stablemask" eval --checkpoint "$run" --data "$data/test.shard" --lengths "$context,$lengths" \
    --json "$run/test.json" || return
  python3 "$root/scripts/study/result.py" "$run" "position=$1" "mask=$2" "seed=$3" \
    "preset=$preset" "context=$context" "epochs=$epochs" "lr=$lr" "batch=$batch" "steps=$steps" \
    "card=$(card)" "commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)" \
    >"$run/result.part" || return
  mv "$run/result.part" "$run/result.json"
}

card() {
  if [[ -n $gpus ]]; then
    nvidia-smi --query-gpu=name --format=csv,noheader -i "$CUDA_VISIBLE_DEVICES"
  else
    echo CPU
  fi
}

main "$@"
