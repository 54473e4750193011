#!/usr/bin/env bash
# The long reliability tests, with counts; scripts/test.sh runs a sample of each. Half an hour on two
# cores. docs/reliability.md has figures.
#
#   scripts/reliability.sh [all|faults|power|soak] [options]
#   faults    kill −9, ENOSPC, EIO, EINTR and short writes at every system call of a save, a run, a
#             resume, data prepare and tokenizer train (strace)
#   power     power failures after every system call that changes the disk, also of the program's
#             commands: what no fsync has confirmed is lost in many ways
#   soak      kills and signals at random moments of a training run that is continued each time; its
#             bits must be those of a run that was left alone
#   --kills N    of the soak; default 200
#   --seed N     of the soak; default 1
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

what=all kills=200 seed=1
while (($# > 0)); do
  case $1 in
    all | faults | power | soak) what=$1 ;;
    --kills | --seed)
      require_count "$1" "${2-}"
      if [[ $1 == --kills ]]; then kills=$2; else seed=$2; fi
      shift
      ;;
    -h | --help)
      show_help "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown argument '$1' (see --help)" 2 ;;
  esac
  shift
done

"$root/scripts/setup.sh" --tests
command -v strace >/dev/null || [[ $what == soak ]] || die "strace is missing; install it"
export STABLEMASK_FAULTS=all OMP_NUM_THREADS=1
status=0
for part in faults power soak; do
  [[ $what == all || $what == "$part" ]] || continue
  case $part in
    faults) "$build/tests/fault_test" --gtest_brief=1 || status=1 ;;
    power) "$build/tests/power_test" --gtest_brief=1 || status=1 ;;
    soak)
      "$root/tests/end_to_end/soak.sh" "$build/stablemask" "$root/tests/fixtures" "$kills" "$seed" ||
        status=1
      ;;
  esac
done
exit "$status"
