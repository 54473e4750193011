#!/usr/bin/env bash
# The study's second question: perplexity beyond the training length. Evaluates the finished runs of
# scripts/study/perplexity.sh with windows of several times their training length T, with all keys
# visible and with an attention window of T keys, and StableMask in three ways: as trained (rows beyond
# the mask length have the mass of an infinite one), with an infinite mask length in all rows, and with
# one re-scaled to the length of the windows. Each model and way is one line of RUNS/length.jsonl.
#
#   scripts/study/length.sh --data DIR [options]
#     --data DIR        folder with the split's shard, such as test.shard
#     --runs FOLDER     --out of perplexity.sh (default: runs/study/perplexity)
#     --factors LIST    lengths in units of T (default: 1,2,4,8,16,32); those of which the text has no
#                       whole window are left out
#     --split NAME      test or valid (default: test)
#     --gpus LIST       GPUs to spread the evaluations over; one that is named twice runs two at a time
#                       (default: 0); "": the CPU
#     --binary FILE     default: $STABLEMASK_BINARY, or build/stablemask
#
# An evaluation that is finished is not run again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=scripts/study/common.sh
source "$root/scripts/study/common.sh"

main() {
  parse_arguments "$@"
  local run form names context
  names=$(finished_runs)
  for run in $names; do field_of "$runs/$run" context; done | sort -un | while read -r context; do
    [[ -n $(fitting_lengths "$context") ]] || die "no length of --factors fits $data/$split.shard" 3
  done
  jobs=()
  for run in $names; do
    for form in kept infinite rescaled; do
      if [[ $form != kept && $(field_of "$runs/$run" mask) == causal ]]; then continue; fi
      jobs+=("$run $split $form 0" "$run $split $form $(field_of "$runs/$run" context)")
    done
  done
  measure length
}

parse_arguments() {
  data='' runs=runs/study/perplexity factors=1,2,4,8,16,32 split=test gpus=0
  stablemask=${STABLEMASK_BINARY:-$build/stablemask}
  take_options "${BASH_SOURCE[0]}" '--data --runs --factors --split --gpus --binary' "$@"
  require_stablemask
  require_data "$split.shard"
  require_numbers --factors "$factors"
  tokens=$(shard_tokens "$data/$split.shard")
}

# measure_one RUN SPLIT FORM WINDOW
measure_one() {
  local lengths length reports
  lengths=$(fitting_lengths "$(field_of "$runs/$1" context)" 2>/dev/null)
  reports=$(mktemp -d)
  case $3 in
    kept) evaluate_at "$lengths" "$@" || return ;;
    infinite) evaluate_at "$lengths" "$@" --mask-length infinite || return ;;
    rescaled)
      for length in ${lengths//,/ }; do
        evaluate_at "$length" "$@" --mask-length "$length" || return
      done
      ;;
  esac
  line_of length.py "$1" "split=$2" "mask_length=$3" "window=$4" "reports=$reports" &&
    rm -r "$reports"
}

# evaluate_at LENGTHS RUN SPLIT FORM WINDOW ARGUMENT…: writes a report to the folder $reports.
evaluate_at() {
  "$stablemask" eval --checkpoint "$runs/$2" --data "$data/$3.shard" --lengths "$1" \
    --attention-window "$5" --json "$reports/$1.json" "${@:6}" >&2
}

# fitting_lengths T: the multiples of T of which the text has a whole window, with commas between them.
fitting_lengths() {
  local factor lengths=''
  for factor in ${factors//,/ }; do
    if ((factor * $1 <= tokens)); then
      lengths+=,$((factor * $1))
    else
      note "length.sh: $data/$split.shard has no whole window of $((factor * $1)) tokens; left out" >&2
    fi
  done
  echo "${lengths:1}"
}

main "$@"
