# What the scripts of the study share; sourced, never run.
# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck source=scripts/common.sh
source "${root:?}/scripts/common.sh"

# The masks by name, as --set states them; any number is a gamma.
declare -A mask_fields=(
  [causal]='model.stable_mask=false'
  [auto]='model.stable_mask.gamma=auto'
  [slopes]='model.stable_mask.gamma=slopes'
  [infinite]='model.stable_mask.mask_length=infinite'
  [sink]='model.stable_mask.gamma=50 model.stable_mask.mask_length=infinite'
  [learnable]='model.stable_mask.learnable=true'
)

# require_masks LIST
require_masks() {
  local mask
  for mask in ${1//,/ }; do
    [[ -n ${mask_fields[$mask]-} || $mask =~ ^[0-9.]+$ ]] || die "unknown mask '$mask' (see --help)" 2
  done
}

# require_numbers OPTION LIST
require_numbers() {
  [[ $2 =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || die "$1: '$2' is no list of numbers" 2
}

# require_data FILE…: in $data.
require_data() {
  local file
  for file in "$@"; do
    [[ -f $data/$file ]] || die "--data needs a folder with $file, got '$data'" 2
  done
}

# require_inputs SPLIT…: the program, and in $data the tokenizer, training text and splits.
require_inputs() {
  require_stablemask
  require_data tokenizer.model "${@/%/.shard}"
  compgen -G "$data/train*.shard" >/dev/null ||
    die "--data needs a folder with train*.shard, got '$data'" 2
}

# study: runs every entry of the array `jobs`, spread over $gpus, and gathers their results. A
# script defines `run_of JOB…`, the folder of a job, `train JOB…` and `finish JOB…`, which must write
# $run/result.json; what both print goes to $run/log.
study() {
  mkdir -p "$out"
  spread_over_gpus "$gpus" work "$out/*/log"
  local job finished=0
  for job in "${jobs[@]}"; do
    # shellcheck disable=SC2086
    if [[ -f $(run_of $job)/result.json ]]; then finished=$((finished + 1)); fi
  done
  note "$finished of ${#jobs[@]} runs are finished"
  if ((finished)); then gather_results; fi
}

# gather_results: the lines of all finished runs in $out, of which there is one.
gather_results() {
  cat "$out"/*/result.json >"$out/results.jsonl"
  note "$out/results.jsonl has $(wc -l <"$out/results.jsonl")"
}

# work WORKER COUNT: every COUNT-th job; one is finished while the next trains.
work() {
  local worker=$1 count=$2 i finishing=''
  for ((i = worker; i < ${#jobs[@]}; i += count)); do
    # shellcheck disable=SC2086
    set -- ${jobs[i]}
    run=$(run_of "$@")
    if [[ -f $run/result.json ]]; then continue; fi
    if [[ -n $time_limit ]] && ((SECONDS > time_limit)); then break; fi
    mkdir -p "$run"
    train "$@" >>"$run/log" 2>&1 || return
    if [[ -n $finishing ]]; then wait "$finishing" || return; fi
    finish "$@" >>"$run/log" 2>&1 &
    finishing=$!
  done
  if [[ -n $finishing ]]; then wait "$finishing"; fi
}

# pretrain POSITION MASK SEED LR ARGUMENT…: the model of $preset in $run, ARGUMENTs of the program.
pretrain() {
  local field fields=()
  for field in ${mask_fields[$2]-"model.stable_mask.gamma=$2"}; do fields+=(--set "$field"); done
  "$stablemask" pretrain /dev/stdin --quiet --set "train.seed=$3" --set "train.out=$run" \
    --set "model.position=$1" --set "data.train=$(train_shards "$data")" "${fields[@]}" "${@:5}" \
    ${settings[@]+"${settings[@]}"} <<<"{
      \"model\": {\"preset\": \"$preset\", \"vocab_size\": 0},
      \"data\": {\"tokenizer\": \"$data/tokenizer.model\", \"verify\": \"headers\"},
      \"train\": {\"context\": $context, \"batch\": $batch, \"steps\": $steps, \"log_every\": 50,
                  \"save_minutes\": 5, \"keep_last\": 1},
      \"optimizer\": {\"beta2\": 0.98, \"lr\": $4},
      \"schedule\": {\"warmup_steps\": $((steps / 10 < 300 ? steps / 10 : 300))}
    }"
}

# evaluate: $run by windows of the training length and of those of $lengths that are longer.
evaluate() {
  local length windows=$context
  for length in ${lengths//,/ }; do
    if ((length > context)); then windows+=,$length; fi
  done
  "$stablemask" eval --checkpoint "$run" --data "$data/valid.shard" --json "$run/valid.json" &&
    "$stablemask" eval --checkpoint "$run" --data "$data/test.shard" --lengths "$windows" \
      --json "$run/test.json"
}

# write_result PROGRAM KEY=VALUE…: $run/result.json, the line that scripts/study/PROGRAM prints.
write_result() {
  python3 "$root/scripts/study/$1" --result "$run" "${@:2}" "preset=$preset" "context=$context" \
    "batch=$batch" "steps=$steps" "card=$(card)" "commit=$(commit)" >"$run/result.part" &&
    mv "$run/result.part" "$run/result.json"
}

commit() { git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown; }

# field_of RUN NAME: of the result in the folder of a finished run.
field_of() { sed -nE "s/.*\"$2\": \"?([^,\"}]+).*/\1/p" "$1/result.json"; }

# Of measurements of finished runs of perplexity.sh in $runs:

# finished_runs: their names.
finished_runs() {
  local result
  for result in "$runs"/*/result.json; do
    [[ -f $result ]] || die "--runs: '$runs' holds no finished run of scripts/study/perplexity.sh" 2
    result=${result%/result.json}
    echo "${result##*/}"
  done
}

# measure TOPIC: runs every entry of the array `jobs`, spread over $gpus, and gathers their lines in
# $runs/TOPIC.jsonl. A job is the name of a run and arguments without spaces. A script defines
# `measure_one RUN ARGUMENT…`, which prints a job's line; what it reports goes to $runs/RUN/TOPIC.log.
measure() {
  topic=$1
  spread_over_gpus "$gpus" measure_jobs "$runs/*/$topic.log"
  cat "$runs"/*/"$topic"/*.json >"$runs/$topic.jsonl"
  note "$runs/$topic.jsonl: ${#jobs[@]} measurements, $(wc -l <"$runs/$topic.jsonl") lines"
}

# measure_jobs WORKER COUNT
measure_jobs() {
  local i line
  for ((i = $1; i < ${#jobs[@]}; i += $2)); do
    line=$runs/${jobs[i]%% *}/$topic/$(tr ' ' - <<<"${jobs[i]#* }").json
    if [[ -f $line ]]; then continue; fi
    mkdir -p "${line%/*}"
    # shellcheck disable=SC2086
    measure_one ${jobs[i]} >"$line.part" 2>>"$runs/${jobs[i]%% *}/$topic.log" || return
    mv "$line.part" "$line"
  done
}

# line_of PROGRAM RUN ARGUMENT…: the line that scripts/study/PROGRAM prints.
line_of() {
  python3 "$root/scripts/study/$1" --result "$runs/$2" "${@:3}" "card=$(card)" "commit=$(commit)"
}
