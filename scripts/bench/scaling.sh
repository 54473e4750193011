#!/usr/bin/env bash
# Training speed on several GPUs of one machine, and what happens when a process is killed.
#
#   scripts/bench/scaling.sh [options]
#     --gpus LIST          numbers of GPUs (default: 1,2,4); the largest is used by the parts that
#                          need one number only
#     --models LIST        default: 71m,160m,400m,1.4b
#     --parts LIST         of valid,weak,strong,peer,memory,timeline,collectives,kill (all)
#     --peer LIST          ways to combine DistributedDataParallel and torch.compile, KIND:MEGABYTES
#                          of a bucket, see peer_torch.py (default: blocks:25,blocks:100,whole:100);
#                          the fastest counts
#     --steps N            timed steps of a measurement (default: 20)
#     --limit SECONDS      of a single measurement (default: 150)
#     --out FOLDER         table.md, results.jsonl, log and traces/ go here, and a cache of matrix
#                          algorithms that later runs use (default: build/scaling)
#     --add                keep the results that are there and measure what is missing
#     --device D           cuda (default) or cpu, which is for trying the script: a tiny model
#     --binary FILE        default: $STABLEMASK_BINARY, or build/stablemask
#     --python FILE        a Python with torch (default: $STABLEMASK_PYTHON, or the one that
#                          setup.sh made)
#     --library-path DIRS  put before LD_LIBRARY_PATH, for the binary alone
#
# Parts:
#   valid        losses of one process and of all, same global batch: nothing is timed if they differ
#   weak         tokens/s with the same batch on each GPU. The control is one process on each GPU, all
#                at the same time and independent of each other, so that the machine is as busy;
#                efficiency is tokens/s over the sum of theirs
#   strong       160m, 128 x 1024 tokens a step on 1, 2, … GPUs
#   peer         peer_torch.py under torchrun on all GPUs
#   memory       1.4b, peak memory of a GPU with one process and with all
#   timeline     traces of some steps: how much of the communication computation hides
#   collectives  bandwidth between the GPUs, from which efficiency on more GPUs is computed
#   kill         pretraining with 71m: kill -9 of the last process, then of process 0, then a resume
#                with fewer processes
# Ends with 1 when a measurement failed; the others are done all the same.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly scripts=$root/scripts/bench
readonly part_names='valid|weak|strong|peer|memory|timeline|collectives|kill'
readonly kill_steps=30 # before each kill

main() {
  parse_arguments "$@"
  require_programs
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$out/traces"
  if ((!add)); then rm -f "$out"/{table.md,results.jsonl,log} "$out"/traces/*; fi
  touch "$out/results.jsonl"
  failed=()
  local part model
  for part in valid collectives kill; do if wants "$part"; then "part_$part"; fi; done
  for model in "${models[@]}"; do
    for part in weak memory timeline peer; do if wants "$part"; then "part_$part" "$model"; fi; done
  done
  if wants strong; then part_strong; fi
  "$python" "$scripts/scaling.py" "$out" | tee "$out/table.md"
  note "" "$out/table.md, $out/results.jsonl, $out/traces; $SECONDS s"
  if ((${#failed[@]})); then die "failed: ${failed[*]}; see $out/log"; fi
}

parse_arguments() {
  local list=valid,weak,strong,peer,memory,timeline,collectives,kill
  gpus=(1 2 4) models=(71m 160m 400m 1.4b) peers=(blocks:25 blocks:100 whole:100)
  steps=20 limit=150 out=$build/scaling add=0 device=cuda library_path=
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  python=${STABLEMASK_PYTHON:-$cache/torch-2.11.0/bin/python3}
  while (($#)); do
    case $1 in
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      --add)
        add=1
        shift
        continue
        ;;
    esac
    [[ $1 =~ ^--(gpus|models|parts|peer|steps|limit|out|device|binary|python|library-path)$ ]] ||
      die "unknown option '$1' (see --help)" 2
    [[ -n ${2-} ]] || die "$1 needs a value" 2
    case $1 in
      --gpus) IFS=, read -ra gpus <<<"$2" ;;
      --models) IFS=, read -ra models <<<"$2" ;;
      --parts) list=$2 ;;
      --peer) IFS=, read -ra peers <<<"$2" ;;
      --steps) steps=$2 ;;
      --limit) limit=$2 ;;
      --out) out=$2 ;;
      --device) device=$2 ;;
      --binary) stablemask=$2 ;;
      --python) python=$2 ;;
      --library-path) library_path=$2 ;;
    esac
    shift 2
  done
  IFS=, read -ra parts <<<"$list"
  check_values
}

check_values() {
  local value
  most=1
  for value in "${gpus[@]}"; do
    [[ $value =~ ^[1-9][0-9]?$ ]] || die "--gpus: '$value' is no number from 1 to 99" 2
    if ((value > most)); then most=$value; fi
  done
  ((most > 1)) || die "--gpus needs a number above 1" 2
  require_models "${models[@]}"
  for value in "${parts[@]}"; do
    [[ $value =~ ^($part_names)$ ]] ||
      die "--parts: '$value' is none of ${part_names//|/, }" 2
  done
  for value in "${peers[@]}"; do
    [[ $value =~ ^(whole|unsplit|blocks):[1-9][0-9]*$ ]] ||
      die "--peer: '$value' is no KIND:MEGABYTES" 2
  done
  require_count --steps "$steps"
  require_count --limit "$limit"
  require_device "$device"
}

require_programs() {
  local seen
  require_stablemask
  seen=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) ||
    die "$python has no torch; state --python"
  if [[ $device == cuda ]] && ((seen < most)); then
    die "$seen GPUs are visible, --gpus names $most"
  fi
}

wants() { [[ " ${parts[*]} " == *" $1 "* ]]; }

# program PROCESSES OPTIONS…: stablemask, under torchrun if there is more than one process.
program() {
  local processes=$1
  shift
  local command=(env STABLEMASK_CACHE="$out/cache"
    LD_LIBRARY_PATH="$library_path${library_path:+:}${LD_LIBRARY_PATH-}" "$stablemask" "$@")
  if ((processes == 1)); then
    timeout -k 10 "$limit" "${command[@]}"
  else
    torchrun "$processes" --no-python "${command[@]}"
  fi
}

# torchrun PROCESSES OPTIONS…
torchrun() {
  local processes=$1
  shift
  timeout -k 10 "$limit" "$python" -m torch.distributed.run --standalone \
    --nproc-per-node "$processes" "$@"
}

# bench_step NAME PROCESSES CARDS OPTIONS…: one `bench step` on these cards; figures in $work/NAME.json.
bench_step() {
  local name=$1 processes=$2 cards=$3 small=()
  shift 3
  if [[ $device == cpu ]]; then
    small=(--context 32 --vocab 96 --set model.layers=1 --set model.channels=32
      --set model.heads=2 --set model.ffn_hidden=48 --set train.threads=1)
  fi
  if [[ " $* " != *" --steps "* ]]; then small+=(--steps "$steps"); fi
  CUDA_VISIBLE_DEVICES=$cards program "$processes" bench step --device "$device" \
    ${small[@]+"${small[@]}"} "$@" --json "$work/$name.json" >"$work/$name.log" 2>&1
}

done_before() { grep -q "^{\"run\": \"$1\"" "$out/results.jsonl"; }

# record NAME: adds what $work/NAME.json holds to the results.
record() {
  {
    echo "== $1"
    cat "$work/$1.log"
  } >>"$out/log"
  if [[ ! -s $work/$1.json ]]; then
    note "$1: failed: $(tail -n 1 "$work/$1.log")" >&2
    failed+=("$1")
    return 0
  fi
  printf '{"run": "%s", "figures": %s}\n' "$1" "$(tr -d '\n' <"$work/$1.json")" \
    >>"$out/results.jsonl"
  note "$1: done after $SECONDS s"
}

# cards N: "0,1,…", the first N.
cards() { seq -s , 0 $(($1 - 1)); }

# several NAME PROCESSES OPTIONS…: a measurement with more than one process.
several() {
  local name=$1 processes=$2
  shift 2
  if done_before "$name"; then return; fi
  bench_step "$name" "$processes" "$(cards "$processes")" "$@" || rm -f "$work/$name.json"
  record "$name"
}

# singles NAME OPTIONS…: one process on each card, all at the same time: NAME-0, NAME-1, …; @CARD in
# an option is the card's number.
singles() {
  local name=$1 card pids=()
  shift
  if done_before "$name-0"; then return; fi
  for ((card = 0; card < most; card++)); do
    bench_step "$name-$card" 1 "$card" "${@//@CARD/$card}" &
    pids+=($!)
  done
  for ((card = 0; card < most; card++)); do
    wait "${pids[card]}" || rm -f "$work/$name-$card.json"
    record "$name-$card"
  done
}

# choose MODEL: fills the cache of matrix algorithms, with the machine idle.
choose() {
  if [[ $device == cpu || -e $work/chosen-$1 ]]; then return; fi
  bench_step "chosen-$1" 1 0 --model "$1" --steps 1 || true
  touch "$work/chosen-$1"
}

part_valid() {
  local batch=$((2 * most)) small
  small=(--model 71m --batch "$batch" --micro-batch 2 --steps 5 --set optimizer.lr=1e-5)
  if [[ $device == cuda ]]; then small+=(--context 512); fi
  several valid-1 1 "${small[@]}"
  several "valid-$most" "$most" "${small[@]}"
  several "valid-$most-none" "$most" "${small[@]}" --shard none
  "$python" "$scripts/scaling.py" "$out" --validate || die "the losses differ; nothing was timed"
}

# weak MODEL PROCESSES
weak() {
  local trace=()
  if wants timeline && (($2 == most)); then trace=(--trace "$out/traces/$1-$2"); fi
  several "weak-$1-$2" "$2" --model "$1" ${trace[@]+"${trace[@]}"}
}

control() {
  local trace=()
  if wants timeline; then trace=(--trace "$work/trace-@CARD"); fi
  singles "weak-$1-1" --model "$1" ${trace[@]+"${trace[@]}"}
  if [[ -e $work/trace-0.0.json ]]; then mv "$work/trace-0.0.json" "$out/traces/$1-1.0.json"; fi
}

part_weak() {
  local processes
  choose "$1"
  for processes in "${gpus[@]}"; do
    if ((processes == 1)); then control "$1"; else weak "$1" "$processes"; fi
  done
}

part_memory() {
  if [[ $1 != 1.4b ]]; then return; fi
  choose "$1"
  control "$1"
  weak "$1" "$most"
}

part_timeline() {
  choose "$1"
  weak "$1" "$most"
}

part_strong() {
  local processes options=(--model 160m --batch 128 --micro-batch 32)
  choose 160m
  for processes in "${gpus[@]}"; do
    if ((processes == 1)); then
      singles strong-160m-1 "${options[@]}"
    else
      several "strong-160m-$processes" "$processes" "${options[@]}"
    fi
  done
}

part_peer() {
  local peer name small=()
  if [[ $device == cpu ]]; then
    small=(--layers 1 --channels 32 --heads 2 --ffn-hidden 48 --vocab 96 --context 32)
  fi
  for peer in "${peers[@]}"; do
    name=peer-$1-$most-${peer/:/-}
    if done_before "$name"; then continue; fi
    CUDA_VISIBLE_DEVICES=$(cards "$most") torchrun "$most" "$scripts/peer_torch.py" --preset "$1" \
      --vocab 50304 --mask causal --position rope --device "$device" --steps "$steps" --compile \
      --ddp "${peer%:*}" --bucket-mb "${peer#*:}" --json ${small[@]+"${small[@]}"} \
      >"$work/$name.out" 2>"$work/$name.log" || true
    grep '^{' "$work/$name.out" >"$work/$name.json" || true
    record "$name"
  done
}

part_collectives() {
  local processes name largest=()
  if [[ $device == cpu ]]; then largest=(--largest 1); fi
  for processes in "${gpus[@]}"; do
    name=collectives-$processes
    if ((processes == 1)) || done_before "$name"; then continue; fi
    CUDA_VISIBLE_DEVICES=$(cards "$processes") program "$processes" bench collectives \
      --device "$device" ${largest[@]+"${largest[@]}"} --json "$work/$name.json" \
      >"$work/$name.log" 2>&1 || rm -f "$work/$name.json"
    record "$name"
  done
}

# pretraining PROCESSES NAME OPTIONS…: a run under kill_process.py; its JSON in $work/NAME.json.
pretraining() {
  local processes=$1 name=$2 options=()
  shift 2
  while [[ ${1-} != -- ]]; do
    options+=("$1")
    shift
  done
  if [[ $device == cpu ]]; then
    set -- "$@" --set model.preset= --set model.layers=1 --set model.channels=32 \
      --set model.heads=2 --set model.ffn_hidden=48 --set train.threads=1
  fi
  "$python" "$scripts/kill_process.py" --processes "$processes" --run "$work/run" \
    ${options[@]+"${options[@]}"} --timeout "$limit" -- env STABLEMASK_CACHE="$out/cache" \
    LD_LIBRARY_PATH="$library_path${library_path:+:}${LD_LIBRARY_PATH-}" "$stablemask" pretrain \
    "$root/configs/pretrain/wikitext103-71m-rope-stablemask.json" --quiet \
    --set train.out="$work/run" --set train.device="$device" --set train.batch=$((8 * most)) \
    --set train.micro_batch=0 --set train.context=256 --set train.log_every=1 \
    --set train.eval_every=0 --set train.save_every=$((kill_steps / 2)) \
    --set schedule.warmup_steps=10 --set data.tokenizer="$work/tokenizer.model" \
    --set data.train="[\"$work/train.shard\"]" --set data.valid= "${@:2}" \
    >"$work/$name.json" 2>"$work/$name.log" || rm -f "$work/$name.json"
  cat "$work"/process-*.log >>"$work/$name.log" 2>/dev/null || true
  record "$name"
}

part_kill() {
  local fewer=$((most / 2)) newest
  if done_before kill-resume; then return; fi
  {
    program 1 data synth --force --output "$work/text" &&
      program 1 tokenizer train --input "$work/text/wiki.train.tokens" \
        --output "$work/tokenizer.model" --vocab-size 2000 &&
      program 1 data prepare --input "$work/text/wiki.train.tokens" \
        --tokenizer "$work/tokenizer.model" --output "$work/train.shard"
  } >>"$out/log" 2>&1 || die "no data for the part kill; see $out/log"
  pretraining "$most" kill-last --victim $((most - 1)) --steps "$kill_steps" -- \
    --set train.steps=1000000
  pretraining "$most" kill-first --victim 0 --steps "$kill_steps" -- --set train.steps=1000000
  newest=$(sed -nE 's/^step-0*([1-9][0-9]*).*/\1/p' "$work/run/checkpoints/LATEST" || true)
  pretraining "$fewer" kill-resume -- --set train.steps=$((${newest:-0} + 10))
}

main "$@"
