#!/usr/bin/env bash
# House rules that no compiler checks; prints every breach as FILE:LINE: WHAT and ends with 1 if
# there is one.
#
#   scripts/check.sh                    everything but clang-tidy (seconds)
#   scripts/check.sh --tidy [FILE...]   clang-tidy as well (needs a configured build/): on these
#                                       files, or on every source, as CI does
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"
cd "$root"

readonly header_lines=200 source_lines=500 function_lines=60 class_lines=160 grammar_lines=250 file_kb=256
declare -A document_lines=([README.md]=250 [docs/performance.md]=150)
# Recorded files of earlier formats: may be binary, and their text is not ours to tidy.
readonly fixtures=tests/fixtures fixtures_kb=64

# What each layer may include: itself and what lies below it. main.cpp and the commands see all.
declare -A may_include=(
  [base]='base'
  [config]='config base'
  [ops]='ops base'
  [python]='python ops base'
  [nn]='nn ops config base'
  [data]='data base'
  [io]='io base'
  [dist]='dist base'
  [synth]='synth data base'
  [infer]='infer nn ops config data io dist base'
  [interop]='interop nn config data io base'
  [serve]='serve infer data config base'
  [report]='report io base'
  [optim]='optim nn ops dist config base'
  [train]='train optim infer report nn ops config data io dist base'
)
# Whose private headers (src/LAYER/…) a layer may include beside its own. Bench times kernels that no
# public header declares, and python registers a forward and a backward that none declares; bench, serve,
# synth and commands are parts of the program and have no public headers.
declare -A private_parts=([bench]='ops' [python]='ops' [commands]='bench serve synth' [main]='commands')
# Layers that compile without LibTorch.
readonly torch_free='base config data io report serve synth'

main() {
  if [[ ${1-} == -h || ${1-} == --help ]]; then
    show_help "${BASH_SOURCE[0]}"
    return
  fi
  breaches=$(mktemp)
  trap 'rm -f "$breaches"' EXIT
  mapfile -t files < <(git ls-files --cached --others --exclude-standard | sort -u |
    while read -r file; do if [[ -f $file ]]; then echo "$file"; fi; done)
  ((${#files[@]})) || die "git lists no files in $root"
  mapfile -t code < <(printf '%s\n' "${files[@]}" | grep -E '\.(h|cpp|cu|cuh)$')
  check_layers
  check_private_headers
  check_framework_free
  check_parameter_names
  check_products
  check_sizes
  check_classes
  check_text
  check_paths
  check_document_sizes
  check_documents
  check_tracked
  check_shell
  check_presets
  check_format
  if [[ ${1-} == --tidy ]]; then check_tidy "${@:2}"; fi
  report
}

breach() { printf '%s\n' "$1" >>"$breaches"; }

report() {
  local count
  count=$(wc -l <"$breaches")
  if ((count)); then
    cat "$breaches" >&2
    die "$count breaches"
  fi
  note "check: ${#files[@]} files, no breach"
}

layer_of() { sed -nE 's#^(include/stablemask|src)/([a-z_]+)/.*#\2#p' <<<"$1"; }

check_layers() {
  local file layer allowed line target
  for file in "${code[@]}"; do
    layer=$(layer_of "$file")
    allowed=${may_include[${layer:-none}]-}
    while IFS=: read -r line target; do
      if [[ $file == include/* && $target == src/* ]]; then
        breach "$file:$line: a public header includes $target"
      fi
      target=$(sed -E 's#^(stablemask|src)/([a-z_]+)/.*#\2#' <<<"$target")
      if [[ -n $allowed && " $allowed " != *" $target "* ]]; then
        breach "$file:$line: layer $layer may include ${allowed// /, }; not $target"
      fi
    done < <(sed -nE '/^#include "(stablemask|src)\//{=;s/^#include "([^"]*)".*/\1/p}' "$file" |
      paste -d: - -)
  done
}

check_private_headers() {
  local file line target layer
  while IFS=: read -r file line target; do
    layer=$(layer_of "$file")
    if [[ " ${layer:-main} ${private_parts[${layer:-main}]-} " != *" $target "* ]]; then
      breach "$file:$line: a private header of layer $target"
    fi
  done < <(printf '%s\n' "${code[@]}" | grep '^src/' |
    xargs -d '\n' grep -noE '^#include "src/[a-z_]+/' /dev/null |
    sed -E 's@#include "src/([a-z_]+)/@\1@')
}

check_framework_free() {
  local file layer framework='^#include [<"](torch|ATen|c10)/'
  for file in "${code[@]}"; do
    layer=$(layer_of "$file")
    if [[ $file == *.cu || $file == *.cuh ]]; then
      complain "$file" "$framework" 'a kernel file sees pointers and a stream, no framework types'
    elif [[ -n $layer && " $torch_free " == *" $layer "* ]]; then
      complain "$file" "$framework" "layer $layer compiles without LibTorch"
    fi
  done
}

# complain FILE PATTERN WHAT: a breach for each line that matches.
complain() {
  local line
  while IFS=: read -r line _; do breach "$1:$line: $3"; done < <(grep -nIE -e "$2" "$1" || true)
}

# Names of parameters are string literals of nn alone: they are read from its declarations. The config
# and the reports about a model have fields of the same names, the operator for Python has arguments of
# such names, the profile in bench tells GPU kernels apart by theirs, and other families' tensors are
# found by the modules of Llama's.
check_parameter_names() {
  local declared=src/nn/parameters.cpp literals names prefixes
  if [[ ! -f $declared ]]; then
    breach "$declared: not there; check_parameter_names reads the names of parameters from it"
    return
  fi
  literals=$(grep -oE '"[a-z_]+\.?"' "$declared" | tr -d '"' | grep -vxE 'weight|bias' | sort -u)
  names=$(grep -v '\.' <<<"$literals" | paste -sd '|')
  prefixes=$(grep -F . <<<"$literals" | tr -d . | paste -sd '|')
  local exempt='^(src|include/stablemask)/(nn|config)/|^src/interop/gpt_families\.cpp$|^src/python/|^src/bench/kernel_times\.cpp$'
  grep_code "$exempt|^src/commands/(inspect_json|model_report)\\.cpp\$" \
    "\"(\\.?($names)|($prefixes)\\.[A-Za-z0-9_.]*)\"" \
    "a parameter's name, which only src/nn may spell"
}

# A product outside nn::Linear would miss its precision, adapters and gradient rules.
check_products() {
  local ops='linear|linear_add|rope_linear|swiglu_feed_forward|linear_cross_entropy|linear_nll'
  grep_code '^(src|include/stablemask)/(ops|bench)/|^src/nn/linear\.cpp$' "ops::($ops)\(" \
    'a matrix product outside src/nn/linear.cpp'
}

# grep_code EXEMPT PATTERN WHAT: a breach for each line of src/ and include/ that matches outside a
# comment, but in the files whose path matches EXEMPT.
grep_code() {
  local file line
  while IFS=: read -r file line _; do breach "$file:$line: $3"; done < <(
    printf '%s\n' "${code[@]}" | grep -E '^(src|include)/' | grep -vE "$1" |
      xargs -d '\n' grep -nIE -e "$2" /dev/null | grep -vE '^[^:]*:[0-9]+: *//' || true)
}

check_sizes() {
  local file lines limit
  for file in "${code[@]}"; do
    lines=$(wc -l <"$file")
    limit=$source_lines
    if [[ $file == *.h || $file == *.cuh ]]; then limit=$header_lines; fi
    if ((lines > limit)); then breach "$file:$limit: $lines lines, the budget is $limit"; fi
    # In formatted code a function's last line is "}" alone, as far to the right as its first line.
    # Rows of a table, which begin with a brace or a quote, do not count.
    awk -v limit="$function_lines" -v file="$file" '
      { match($0, /^ */); depth = RLENGTH }
      !/^ *[{"]/ { lines++ }
      /^ *}$/ && lines - before[depth] > limit {
        printf "%s:%d: a function of %d lines, the budget is %d\n", file, first[depth],
               lines - before[depth], limit }
      /^ *[A-Za-z_~[]/ { first[depth] = FNR; before[depth] = lines - 1 }
    ' "$file" >>"$breaches"
  done
}

# Lines of code of each class: its body and the definitions of its members in the same layer, without
# comments and empty lines. Classes that follow one grammar or build one world have a method for each
# of its rules and a budget of their own.
check_classes() {
  printf '%s\n' "${code[@]}" | grep -E '^(src|include)/.*\.(h|cpp)$' |
    xargs -d '\n' awk -v limit="$class_lines" -v grammar_limit="$grammar_lines" '
      function layer(parts) {
        split(FILENAME, parts, "/")
        return parts[1] == "include" ? parts[3] : parts[2]
      }
      FNR == 1 { body = ""; member = "" }
      /^ *(\/\/|$)/ { next }
      body == "" && /^ *(class|struct) [A-Za-z_:]+[^;]*\{$/ {
        match($0, /^ */)
        closing = substr($0, 1, RLENGTH) "};"
        name = $0
        sub(/^ *(class|struct) /, "", name)
        sub(/[^A-Za-z_:].*/, "", name)
        body = layer() " " name
        where[body] = FILENAME ":" FNR
        next
      }
      body != "" && $0 == closing { body = ""; next }
      body != "" { lines[body]++; next }
      /^[A-Za-z].*[A-Za-z_]::~?[A-Za-z_]+\(/ && !/;$/ {
        name = $0
        sub(/\(.*/, "", name)
        sub(/.* [&*]*/, "", name)
        sub(/::~?[A-Za-z_]+$/, "", name)
        member = layer() " " name
      }
      member != "" { lines[member]++ }
      member != "" && /^}$|^[^ ].*\}$/ { member = "" }
      END {
        for (key in where) {
          budget = key ~ /(Parser|Reader|Builder)$/ ? grammar_limit : limit
          if (lines[key] > budget)
            printf "%s: class %s has %d lines of code, the budget is %d\n", where[key],
                   substr(key, index(key, " ") + 1), lines[key], budget
        }
      }' >>"$breaches"
}

check_text() {
  local file
  for file in "${files[@]}"; do
    [[ $file == LICENSE || $file == "$fixtures"/*/* ]] && continue
    complain "$file" $'\t' 'a tab'
    complain "$file" '[[:space:]]$' 'white space at the end of the line'
    complain "$file" '(^|[^A-Za-z0-9_.$}*])/(root|home|Users|work)/' 'a path of one machine'
    if [[ -s $file && $(tail -c 1 "$file" | wc -l) == 0 ]]; then breach "$file: no newline at the end"; fi
  done
  for file in "${code[@]}" $(printf '%s\n' "${files[@]}" | grep '\.md$'); do
    complain "$file" '\b(TODO|FIXME|XXX)\b|^// placeholder|filled from a run' 'unfinished business'
  done
  for file in "${code[@]}"; do
    if [[ $file == *.h || $file == *.cuh ]] && ! grep -q '^#pragma once' "$file"; then
      breach "$file:1: no #pragma once"
    fi
    complain "$file" '^ *// ?[-=*#]{4}' 'a banner'
  done
}

# Each `path` and [link](path) of the documents that starts in this tree must exist; * is allowed.
check_paths() {
  local file line path top='(src|include|scripts|tests|configs|docs|\.ci)/'
  for file in README.md docs/*.md; do
    [[ -f $file ]] || continue
    while IFS=: read -r line path; do
      if ! compgen -G "$path" >/dev/null; then breach "$file:$line: names $path, which is not there"; fi
    done < <(grep -noE "(\`|\]\()${top}[A-Za-z0-9_./*-]*" "$file" | sed -E 's/:(`|\]\()/:/')
  done
}

check_document_sizes() {
  local file lines
  for file in "${!document_lines[@]}"; do
    lines=$(wc -l <"$file")
    if ((lines > document_lines[$file])); then
      breach "$file:${document_lines[$file]}: $lines lines, the budget is ${document_lines[$file]}"
    fi
  done
}

check_documents() { tests/end_to_end/documents.sh >>"$breaches"; }

check_tracked() {
  local added file kb fixture_bytes=0
  while read -r added _ file; do
    if [[ $added == - && $file != "$fixtures"/* ]]; then breach "$file: a binary file in the repository"; fi
  done < <(git diff --cached --numstat "$(git hash-object -t tree /dev/null)")
  for file in "${files[@]}"; do
    kb=$(($(stat -c %s "$file") / 1024))
    if ((kb > file_kb)); then breach "$file: $kb KB, the limit is $file_kb"; fi
    if [[ $file == "$fixtures"/* ]]; then fixture_bytes=$((fixture_bytes + $(stat -c %s "$file"))); fi
  done
  if ((fixture_bytes > fixtures_kb * 1024)); then
    breach "$fixtures: $fixture_bytes bytes in all, the limit is $fixtures_kb KB"
  fi
}

check_shell() {
  local file
  for file in "${files[@]}"; do
    case $file in
      *.sh | .ci/run) ;;
      *) continue ;;
    esac
    bash -n "$file" 2>>"$breaches" || true
    if [[ $file != */common.sh ]]; then
      grep -q '^set -euo pipefail' "$file" || breach "$file:1: no set -euo pipefail"
      [[ -x $file ]] || breach "$file: not executable"
    fi
  done
}

# CMake must accept the presets, and the options that they set must exist.
check_presets() {
  local line option
  cmake --list-presets >/dev/null 2>>"$breaches" || breach "CMakePresets.json: cmake rejects it"
  while IFS=: read -r line option; do
    grep -qE "^(option|set)\($option " CMakeLists.txt ||
      breach "CMakePresets.json:$line: CMakeLists.txt has no option $option"
  done < <(grep -noE 'STABLEMASK_[A-Z_]+' CMakePresets.json)
}

check_format() {
  local tool
  tool=$(command -v clang-format-14 || command -v clang-format) ||
    die "clang-format not found: run scripts/setup.sh --dev"
  "$tool" --dry-run -Werror "${code[@]}" 2>&1 |
    sed -nE 's/^(.*): error: code should be clang-formatted.*/\1: run clang-format -i/p' |
    sort -t: -k1,1 -u >>"$breaches" || true
}

# clang-tidy on FILE…, or on every source of the build. It is a recent one from PyPI: since version 21 its
# checks pass over the headers of libraries, which are most of what a source with LibTorch includes. It
# reads no precompiled header of GCC; OpenMP means nothing to it.
check_tidy() {
  local selected=("$@") python
  [[ -f $build/compile_commands.json ]] || die "--tidy needs build/: run scripts/setup.sh"
  python=$(python_packages clang-tidy "$root/scripts/check_requirements.txt")
  tidy=$build/tidy
  mkdir -p "$tidy"
  sed -E 's#-Winvalid-pch##; s#-include [^ ]*cmake_pch\.hxx##; s#-fopenmp[^ ]*##' \
    "$build/compile_commands.json" >"$tidy/compile_commands.json"
  if ((${#selected[@]} == 0)); then mapfile -t selected < <(tidy_units); fi
  run_tidy "${python%/*}/clang-tidy" "${selected[@]}"
}

# What the build compiles of src: batches of files, and single files. A file that this build leaves out,
# such as what replaces the kernels in one without CUDA, has no flags.
tidy_units() {
  grep -oE '"file": "[^"]*"' "$tidy/compile_commands.json" | cut -d '"' -f 4 |
    sed -E "s#^$root/##" | grep -E '^src/.*\.cpp$|/src/.*/Unity/' | sort -u
}

# run_tidy CLANG_TIDY FILE…. GCC reports deprecated declarations; Clang also does in GCC's own headers.
run_tidy() {
  local log
  log=$(mktemp)
  printf '%s\0' "${@:2}" |
    xargs -0 -P "$(cores)" -n 1 "$1" --quiet -p "$tidy" --extra-arg=-Wno-deprecated-declarations \
      >"$log" 2>&1 || true
  # A batch is no file of ours, and it does include sources.
  sed -nE "s#^$root/##; /(warning|error): /p" "$log" | grep -v "^${build#"$root/"}/" |
    sort -u >>"$breaches" || true
  rm -f "$log"
}

main "$@"
