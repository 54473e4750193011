#!/usr/bin/env bash
# Coverage-guided fuzzing with libFuzzer under the address and undefined-behaviour sanitizers: builds
# the harnesses of tests/fuzz in build/asan (with Clang, without LibTorch), runs each from its corpus,
# and prints a line for each and their sum. Ends with 1 on a finding, after the path of its input.
#
#   scripts/fuzz.sh [options] [NAME...]   these harnesses; default: all
#     --seconds N      for each harness (default: 60); 0: the corpora alone
#     --jobs J         processes at a time (default: one per CPU); more of them than harnesses share out
#     --binaries DIR   run the harnesses in DIR and build nothing
#     --coverage       count the lines instead that the corpora reach, with the inputs found so far, and
#                      print them for each file (builds build/fuzz-coverage)
#     --list           print the names
#
# tests/fuzz/corpus/NAME has an input a line, in the escapes of printf's %b: \\, \n, \xHH. The input of
# a finding belongs there, once it is repaired. New inputs are kept in build/fuzz/found/NAME, and the
# next run starts from them too.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly found="$build/fuzz/found" findings="$build/fuzz/findings"
readonly max_length=4096 seconds_an_input=10 memory_mb=2048

main() {
  seconds=60 jobs=$(cores) binaries="" coverage=0 names=()
  parse_arguments "$@"
  if ((${#names[@]} == 0)); then mapfile -t names < <(all_names); fi
  if ((coverage)); then
    preset=fuzz-coverage
  else
    preset=asan
  fi
  if [[ -z $binaries ]]; then
    build_harnesses
    binaries=$build/$preset/bin
  fi
  work=$(mktemp -d -p /dev/shm stablemask-fuzz-XXXXXX)
  trap 'rm -rf "$work"' EXIT
  export TMPDIR=$work
  for name in "${names[@]}"; do
    [[ -x $binaries/$name ]] || die "no harness $name in $binaries" 2
    unpack "$name"
  done
  if ((coverage)); then
    report_coverage
  else
    run_all
    report
  fi
}

parse_arguments() {
  while (($#)); do
    case $1 in
      --seconds)
        [[ ${2-} =~ ^[0-9]+$ ]] || die "--seconds needs a number, not '${2-}'" 2
        seconds=$2
        shift
        ;;
      --jobs)
        require_count --jobs "${2-}"
        jobs=$2
        shift
        ;;
      --binaries)
        [[ -d ${2-} ]] || die "--binaries needs an existing folder, not '${2-}'" 2
        binaries=$(cd "$2" && pwd)
        shift
        ;;
      --coverage) coverage=1 ;;
      --list)
        all_names
        exit 0
        ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      -*) die "unknown option '$1' (see --help)" 2 ;;
      *)
        all_names | grep -qxF -- "$1" || die "no harness '$1'; there are: $(all_names | paste -sd ' ')" 2
        names+=("$1")
        ;;
    esac
    shift
  done
}

all_names() { find "$root/tests/fuzz/corpus" -type f -printf '%f\n' | sort; }

build_harnesses() {
  "$root/scripts/setup.sh" --packages
  command -v clang++ >/dev/null || die "clang++ not found: run scripts/setup.sh --dev"
  step "building the harnesses of preset $preset" compile || die "the build failed"
}

compile() {
  cmake -S "$root" --preset "$preset" && ninja -C "$build/$preset" "${names[@]/#/fuzz_}"
}

# unpack NAME: a file for each line of its corpus, in $work/corpus/NAME.
unpack() {
  local line number=0 folder=$work/corpus/$1
  mkdir -p "$folder" "$found/$1" "$findings/$1"
  while IFS= read -r line; do
    # shellcheck disable=SC2059
    printf '%b' "$line" >"$folder/$((number += 1))"
  done <"$root/tests/fuzz/corpus/$1"
}

# One CPU for each job: a harness that starts threads waits for each of them, which takes several times
# as long from one CPU to another. Several processes of one harness share the folder of what they find,
# and read it again and again.
run_all() {
  local runs=$((jobs > ${#names[@]} ? jobs : ${#names[@]})) job run cpus
  mapfile -t cpus < <(allowed_cpus)
  for ((job = 0; job < jobs; job++)); do
    for ((run = job; run < runs; run += jobs)); do
      run_one "${names[run % ${#names[@]}]}" "$run" "${cpus[job % ${#cpus[@]}]}"
    done &
  done
  wait
}

# The CPUs that this process may use, one a line; "0-2,5" in /proc.
allowed_cpus() {
  local part
  for part in $(awk '/^Cpus_allowed_list/ { gsub(",", " ", $2); print $2 }' /proc/self/status); do
    seq "${part%-*}" "${part#*-}"
  done
}

# run_one NAME RUN CPU
run_one() {
  local arguments=(-print_final_stats=1 -max_len=$max_length -timeout=$seconds_an_input
    -rss_limit_mb=$memory_mb -artifact_prefix="$findings/$1/")
  if [[ -f $root/tests/fuzz/dict/$1 ]]; then arguments+=(-dict="$root/tests/fuzz/dict/$1"); fi
  if ((seconds)); then
    arguments+=(-max_total_time="$seconds" "$found/$1" "$work/corpus/$1")
  else
    mapfile -t inputs < <(find "$work/corpus/$1" -type f)
    arguments+=("${inputs[@]}")
  fi
  local status=0
  taskset -c "$3" "$binaries/$1" "${arguments[@]}" >"$work/$1.$2.log" 2>&1 </dev/null || status=$?
  echo "exit status $status" >>"$work/$1.$2.log"
}

report() {
  local logs log failed=() total=0 rate=0 new=0 executions per_second added edges
  printf '%-20s %14s %12s %10s %8s\n' harness executions per_second new_inputs edges
  for name in "${names[@]}"; do
    logs=("$work/$name".*.log)
    executions=$(sum 'number_of_executed_units' "${logs[@]}")
    per_second=$(sum 'average_exec_per_sec' "${logs[@]}")
    added=$(sum 'new_units_added' "${logs[@]}")
    edges=$(sed -nE 's/.* cov: ([0-9]+) .*/\1/p' "${logs[@]}" | sort -n | tail -n 1)
    printf '%-20s %14d %12d %10d %8s\n' "$name" "$executions" "$per_second" "$added" "${edges:--}"
    total=$((total + executions)) rate=$((rate + per_second)) new=$((new + added))
    if grep -qvx 'exit status 0' <(grep -ah '^exit status' "${logs[@]}"); then failed+=("$name"); fi
  done
  printf '%-20s %14d %12d %10d\n' total "$total" "$rate" "$new"
  if ((${#failed[@]} == 0)); then return; fi
  for name in "${failed[@]}"; do
    for log in "$work/$name".*.log; do
      if grep -aqx 'exit status 0' "$log"; then continue; fi
      note "$name:" >&2
      grep -aE 'ERROR: |runtime error: |broken promise|what\(\)|Test unit written to' "$log" >&2 ||
        tail -n 5 "$log" >&2
      if ((!seconds)); then grep -a '^Running: ' "$log" | tail -n 1 >&2; fi
    done
  done
  die "findings of ${failed[*]}; run one again with $binaries/NAME INPUT"
}

# sum STATISTIC LOG…: of the processes that printed it.
sum() {
  sed -nE "s/^stat::$1: *([0-9]+)$/\\1/p" "${@:2}" | awk '{ sum += $1 } END { print sum + 0 }'
}

report_coverage() {
  local objects=() inputs suffix
  suffix=$(clang++ --version | sed -nE '1s/.*version ([0-9]+).*/-\1/p')
  command -v "llvm-cov$suffix" >/dev/null || die "llvm-cov$suffix not found: install the package llvm"
  for name in "${names[@]}"; do
    inputs=("$work/corpus/$name" "$found/$name")
    LLVM_PROFILE_FILE="$work/$name.profraw" "$binaries/$name" -runs=0 "${inputs[@]}" \
      >"$work/$name.log" 2>&1 || die "$name failed: $(tail -n 3 "$work/$name.log")"
    objects+=(-object "$binaries/$name")
  done
  "llvm-profdata$suffix" merge -o "$work/all" "$work"/*.profraw
  # Templates of headers are counted in each binary, which it warns of.
  "llvm-cov$suffix" report -instr-profile "$work/all" "${objects[@]}" \
    -ignore-filename-regex='/tests/|^/usr/|/include/stablemask/' 2>/dev/null |
    awk '/\.cpp / { printf "%-40s %6d of %5d lines %8s\n", $1, $8 - $9, $8, $10 }
         /^TOTAL/ { printf "%-40s %6d of %5d lines %8s\n", "total", $8 - $9, $8, $10 }'
}

main "$@"
