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

readonly requirements="$here/openai_requirements.txt"

main() {
  local python
  if [[ ${1-} == --install ]]; then
    python_packages openai "$requirements" >/dev/null
    return
  fi
  (($# == 2)) || die "needs PROGRAM and CHECKPOINT, or --install" 2
  python=$(python_or_skip openai "$requirements" openai)
  exec "$python" "$here/openai_client.py" "$@"
}

main "$@"
