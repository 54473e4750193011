#!/usr/bin/env bash
# Builds what is missing and runs every test through ctest. At the end it says which tests skipped
# themselves and why; the last line is ctest's summary.
#
#   scripts/test.sh [ctest arguments]
#   scripts/test.sh -R Loader            the tests whose name contains Loader
#   scripts/test.sh -L fast              the tests with this label (builds only them)
#   scripts/test.sh --preset asan        base, config, data, io, report and synth under the address
#                                        and undefined-behaviour sanitizers, in build/asan, with the
#                                        harnesses of scripts/fuzz.sh (Clang)
#   scripts/test.sh --preset tsan        what starts threads or handles signals under the thread
#                                        sanitizer, in build/tsan
#
# Labels, by cost:
#   fast    without LibTorch, well under a second each
#   slow    LibTorch on the CPU, whole runs of the program, saves traced by strace
#   gpu     needs an NVIDIA GPU and skips itself without one
#   data    needs genuine WikiText and skips itself without it: tests on real text run when
#           STABLEMASK_DATA names a folder that holds wikitext-2/ and wikitext-103/ (default: data/ if
#           it is there)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

if [[ ${1-} == -h || ${1-} == --help ]]; then
  show_help "${BASH_SOURCE[0]}"
  exit 0
fi
preset=""
if [[ ${1-} == --preset ]]; then
  [[ ${2-} == asan || ${2-} == tsan ]] || die "--preset needs asan or tsan, not '${2-}'" 2
  preset=$2 build=$root/build/$2
  shift 2
fi
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

# build_preset: a build without LibTorch.
build_preset() {
  "$root/scripts/setup.sh" --packages
  [[ $preset != asan ]] || command -v clang++ >/dev/null ||
    die "clang++ not found: run scripts/setup.sh --dev"
  step "building the tests of preset $preset" compile_preset || die "the build failed"
}

compile_preset() {
  cmake -S "$root" --preset "$preset" && "${fixed_addresses[@]}" ninja -C "$build"
}

cd "$root"
fixed_addresses=() tests=(--test-dir "$build")
if [[ -n $preset ]]; then
  # The thread sanitizer of GCC before 14 does not start where the kernel moves addresses by more than
  # 28 bits.
  if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi
  tests=(--preset "$preset")
  build_preset
elif [[ $* == '-L fast' ]]; then
  "$root/scripts/setup.sh" --fast-tests
else
  "$root/scripts/setup.sh" --tests
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# One thread a test: they run side by side.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "${fixed_addresses[@]}" ctest "${tests[@]}" -j "$(cores)" \
  --output-on-failure --no-tests=error "$@" </dev/null | tee "$log" || status=$?
skipped "$build/Testing/Temporary/LastTest.log" || true
grep 'tests passed' "$log" || true
exit "$status"
