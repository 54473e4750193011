#!/usr/bin/env bash
# Builds what is missing and runs every test through ctest. At the end it says which tests skipped
# themselves and why; the last line is ctest's summary.
#
#   scripts/test.sh [ctest arguments]      for example: scripts/test.sh -R Loader
#
# Tests on real text run when STABLEMASK_DATA names a folder that holds wikitext-2/ and
# wikitext-103/ (default: data/ if it is there).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

if [[ ${1-} == -h || ${1-} == --help ]]; then
  show_help "${BASH_SOURCE[0]}"
  exit 0
fi
"$root/scripts/setup.sh" --tests
if [[ -z ${STABLEMASK_DATA-} && -d $root/data ]]; then export STABLEMASK_DATA=$root/data; fi

# skipped LOG: one line for each reason, with the tests of ctest and how many in each.
skipped() {
  awk '
    /^[0-9]+\/[0-9]+ Testing: / { test = $3; reason_next = 0 }
    reason_next {
      if (!($0 in tests)) reasons[++n] = $0
      if (!count[$0, test]++) tests[$0] = tests[$0] " " test
    }
    { reason_next = /: Skipped$/ }
    END {
      for (i = 1; i <= n; i++) {
        printf "skipped, %s:", reasons[i]
        parts = split(tests[reasons[i]], names, " ")
        for (k = 1; k <= parts; k++) {
          many = count[reasons[i], names[k]]
          printf "%s %s%s", (k > 1 ? "," : ""), names[k], (many > 1 ? " (" many ")" : "")
        }
        print ""
      }
    }' "$1"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# One thread a test: they run side by side.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ctest --test-dir "$build" -j "$(cores)" \
  --output-on-failure --no-tests=error "$@" </dev/null | tee "$log" || status=$?
skipped "$build/Testing/Temporary/LastTest.log" || true
grep 'tests passed' "$log" || true
exit "$status"
