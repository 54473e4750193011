#!/usr/bin/env bash
# The study's fourth question: does StableMask give models absolute position at every size? Runs
# scripts/position.sh, the position tasks, with models of several sizes, learning rates and seeds on the
# CPU. Every finished size, learning rate, seed and task, four models, is one line of
# FOLDER/results.jsonl; a script that was interrupted goes on. scripts/study/position.py prints the
# tables.
#
#   scripts/study/position.sh [options]
#     --out FOLDER      runs and results.jsonl (default: runs/study/position)
#     --sizes LIST      layers x channels (default: 4x128,2x64,1x32)
#     --lrs LIST        peak learning rates (default: 0.002,0.004)
#     --seeds LIST      default: 1,2,3
#     --gamma G         of the models with StableMask (default: auto)
#     --tasks LIST      default: count,position,copy,reverse
#     --steps N         of every task (default: those of scripts/position.sh)
#     --jobs N          models trained at a time, about, with one thread each (default: one per core)
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#     --time-limit S    start nothing after so many seconds (default: none)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

readonly models_of_a_run=4

main() {
  parse_arguments "$@"
  require_stablemask
  mkdir -p "$out"
  started=$(date +%s)
  export root out gamma steps jobs stablemask time_limit started models_of_a_run
  export -f run_once train_once finish_once commit
  local size lr seed task at_once=$(((jobs + models_of_a_run - 1) / models_of_a_run))
  for seed in ${seeds//,/ }; do
    for size in ${sizes//,/ }; do
      for task in ${tasks//,/ }; do
        for lr in ${lrs//,/ }; do printf '%s\0' "$size" "$lr" "$seed" "$task"; done
      done
    done
  done | xargs -0 -n 4 -P "$at_once" bash -c 'run_once "$@"' "${0##*/}" ||
    die "a run failed; its output, $out/*.log, is above"
  if compgen -G "$out/*/result.json" >/dev/null; then gather_results; fi
}

parse_arguments() {
  out=runs/study/position sizes=4x128,2x64,1x32 lrs=0.002,0.004 seeds=1,2,3 gamma=auto steps=''
  tasks=copy,reverse,position,count jobs=$(cores) time_limit=''
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  local options="--out --sizes --lrs --seeds --gamma --tasks --steps --jobs --binary --time-limit"
  take_options "${BASH_SOURCE[0]}" "$options" "$@"
  require_count --jobs "$jobs"
  local size
  for size in ${sizes//,/ }; do
    [[ $size =~ ^[1-9][0-9]*x[1-9][0-9]*$ ]] || die "--sizes: '$size' is not LAYERSxCHANNELS" 2
  done
}

# run_once SIZE LR SEED TASK, in a shell of its own. 255 tells xargs to start no other.
run_once() {
  local run=$out/$1-$2-$3-$4
  if [[ -f $run/result.json ]]; then return; fi
  if [[ -n $time_limit ]] && (($(date +%s) - started > time_limit)); then return; fi
  if ! { train_once "$@" && finish_once "$@"; } >"$run.log" 2>&1; then
    tail -n 20 "$run.log" >&2
    return 255
  fi
}

train_once() {
  bash "$root/scripts/position.sh" --program "$stablemask" --out "$run" --task "$4" \
    ${steps:+--steps "$steps"} --layers "${1%x*}" --channels "${1#*x}" --lr "$2" --seed "$3" \
    --gamma "$gamma" --jobs "$((jobs < models_of_a_run ? jobs : models_of_a_run))"
}

# finish_once SIZE LR SEED TASK: the line, and no more than it needs.
finish_once() {
  python3 "$root/scripts/study/position.py" --result "$run" "layers=${1%x*}" "channels=${1#*x}" \
    "lr=$2" "seed=$3" "gamma=$gamma" "card=CPU" "commit=$(commit)" >"$run/result.part" &&
    rm -rf "${run:?}/$4" && mv "$run/result.part" "$run/result.json"
}

main "$@"
