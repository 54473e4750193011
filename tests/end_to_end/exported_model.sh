#!/usr/bin/env bash
# Runs exported_model.py, a test of exported StableMask models in transformers. Ends with 77 and a
# reason where the packages are not installed.
#
#   tests/end_to_end/exported_model.sh PROGRAM CHECKPOINT TEXT
#   tests/end_to_end/exported_model.sh --lm-eval PROGRAM CHECKPOINT TEXT
#         the comparison with the package lm_eval, which it installs first (550 MB)
#   tests/end_to_end/exported_model.sh --install     only install the packages of the first form
#
# transformers, PEFT and their packages come from Python's package registry into a virtual
# environment in ${STABLEMASK_CACHE:-~/.cache/stablemask}, on top of the Python with torch, once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly requirements="$here/transformers_requirements.txt"

main() {
  local python
  case ${1-} in
    --install)
      python_packages transformers "$requirements" "$(torch_python)" >/dev/null
      ;;
    --lm-eval)
      shift
      (($# == 3)) || die "--lm-eval needs PROGRAM, CHECKPOINT and TEXT" 2
      python=$(python_packages lm-eval "$here/lm_eval_requirements.txt" "$(torch_python)")
      exec "$python" "$here/exported_model.py" "$@" --lm-eval
      ;;
    *)
      (($# == 3)) || die "needs PROGRAM, CHECKPOINT and TEXT, or --install" 2
      python=$(python_or_skip transformers "$requirements" transformers)
      exec "$python" "$here/exported_model.py" "$@"
      ;;
  esac
}

main "$@"
