#!/usr/bin/env bash
# Builds what is missing and runs every test through ctest; the last line is ctest's summary.
#
#   scripts/test.sh [ctest arguments]      for example: scripts/test.sh -R Loader
#
# Tests on real text run when STABLEMASK_DATA names a folder that holds wikitext-2/ and
# wikitext-103/ (default: data/ if it is there); without one they skip themselves.
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

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# One thread a test: they run side by side.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ctest --test-dir "$build" -j "$(cores)" \
  --output-on-failure --no-tests=error "$@" </dev/null | tee "$log" || status=$?
grep 'tests passed' "$log" || true
exit "$status"
