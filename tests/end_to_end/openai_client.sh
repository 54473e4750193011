#!/usr/bin/env bash
# Runs openai_client.py, a test of `stablemask serve` with the openai package as its client. Ends with
# 77 and a reason where the package is not installed.
#
#   tests/end_to_end/openai_client.sh PROGRAM CHECKPOINT
#   tests/end_to_end/openai_client.sh --install       only install the package
#
# The package comes from Python's package registry into a virtual environment in
# ${STABLEMASK_CACHE:-~/.cache/stablemask}, once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly list="$here/openai_requirements.txt" venv="$cache/openai-venv"

main() {
  if [[ ${1-} == --install ]]; then
    install
    return
  fi
  (($# == 2)) || die "needs PROGRAM and CHECKPOINT, or --install" 2
  if ! cmp -s "$list" "$venv/complete"; then
    echo "the openai package is not installed: scripts/setup.sh --dev"
    exit 77
  fi
  exec "$venv/bin/python3" "$here/openai_client.py" "$@"
}

install() {
  if cmp -s "$list" "$venv/complete"; then return; fi
  mkdir -p "$cache" || die "cannot write $cache; set STABLEMASK_CACHE to a folder that you own"
  exec 9>"$cache/openai-lock"
  flock 9
  step "installing the openai package" pip_install ||
    die "not installed; needs a network and, on Debian, the package python3-venv"
  cp "$list" "$venv/complete"
  exec 9>&-
}

pip_install() {
  if ! "$venv/bin/python3" -c '' 2>/dev/null; then
    rm -rf "$venv"  # what an interrupted run left
    python3 -m venv "$venv" || return
  fi
  "$venv/bin/python3" -m pip install --quiet --no-cache-dir --retries 3 \
    --disable-pip-version-check --requirement "$list"
}

main "$@"
