#!/usr/bin/env bash
# position.sh PROGRAM: scripts/position.sh with one task. The lines of every task follow its rule,
# the causal models do no better than guessing, and those with StableMask learn the task.
# shellcheck disable=SC2016
set -euo pipefail
program=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
  echo "position.sh: $1" >&2
  exit 1
}

# make TASK SEED GROUPS: plain lines on standard output, the facts in the file `facts`.
make() {
  awk -v task="$1" -v seed="$2" -v groups="$3" -v facts=facts \
    -f "$root/scripts/position/lines.awk" | sed -nE 's/^\{"text": "(.*)"\}$/\1/p'
}

# check_lines TASK LINES FLOOR GUESS RULE: RULE is an awk condition that each line must meet.
check_lines() {
  local tokens longest lines floor guess
  make "$1" 1 50 >lines.txt
  read -r tokens longest lines floor guess <facts
  [[ "$lines $floor $guess" == "$2 $3 $4" ]] || fail "$1: facts are $lines $floor $guess"
  awk -v tokens=$((50 * tokens)) -v longest="$longest" -v lines="$lines" "
    function mirrored(text, i) {
      for (i = 1; i <= 8; i++) if (substr(text, i, 1) != substr(text, 17 - i, 1)) return 0
      return 1
    }
    !($5) { print FILENAME \":\" FNR \": \" \$0 >\"/dev/stderr\"; wrong = 1 }
    { sum += length(\$0) + 1; if (length(\$0) + 1 > most) most = length(\$0) + 1 }
    END { exit wrong || sum != tokens || most != longest || NR != lines }" lines.txt ||
    fail "$1: lines that are not of this task, or not as many tokens as the facts say"
  make "$1" 1 50 | cmp - lines.txt || fail "$1: the same seed makes other lines"
}

# Entropies by hand: log 16; log 8 and 8.5 letters of log 4; 8 letters of log 4. Guesses: with a
# chance of 1/15 (2/17 for `position`) after each dash, 14 (7.5) times not and then once.
check_lines count 200 0.000000 3.673950 '$0 == "---------------"'
check_lines position 800 2.772589 3.078790 \
  '/^-+[a-p]$/ && index("abcdefghijklmnop", substr($0, length($0))) == length($0) - 1'
check_lines copy 400 13.862944 1.386294 \
  '/^[a-d]+=[a-d]$/ && length($0) >= 7 && substr($0, 4, 1) == substr($0, length($0))'
check_lines reverse 200 11.090355 11.090355 '/^[a-d]+$/ && length($0) == 16 && mirrored($0)'
if make reverse 2 50 | cmp -s - lines.txt; then fail "another seed makes the same lines"; fi

# refuse CODE WORDS ARGUMENT…
refuse() {
  local code=$1 words=$2 status=0
  shift 2
  "$root/scripts/position.sh" --program "$program" "$@" >out.txt 2>err.txt || status=$?
  if ((status != code)) || ! grep -qF "$words" err.txt; then
    fail "$*: ended with $status: $(<err.txt)"
  fi
}
refuse 2 "no task 'sort'" --task sort
refuse 2 'needs a number' --steps 0
refuse 2 'a multiple of 8' --channels 20
mkdir mine
touch mine/file
refuse 2 'holds something else' --out mine
[[ -e mine/file ]] || fail "a folder of the user was emptied"

"$root/scripts/position.sh" --quick --program "$program" --out run --jobs 2 >out.txt ||
  fail "scripts/position.sh failed: $(<out.txt)"
cat run/table.txt
awk '
  function is(name, low, high) {
    if (index($0, name) == 1 && $NF > low && $NF < high) met++
  }
  { is("guessing", 3.673, 3.675); is("RoPE, causal", 3.6, 4); is("ALiBi, causal", 3.6, 4)
    is("RoPE, StableMask", -0.001, 0.2); is("ALiBi, StableMask", -0.001, 0.2) }
  END { exit met != 5 }' run/table.txt || fail "the table is not as expected"
# Four bars, four legends and the background, in well-formed XML.
(($(grep -c '^<rect ' run/position.svg) == 9)) || fail "the picture lacks bars"
[[ $(tail -n 1 run/position.svg) == '</svg>' ]] || fail "the picture is incomplete"
