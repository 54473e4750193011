#!/usr/bin/env bash
# Runs foreign_tokenizers.py, a test of tokenizers of Hugging Face's library. Ends with 77 and a
# reason where the packages are not installed (exported_model.sh --install).
#
#   tests/end_to_end/foreign_tokenizers.sh PROGRAM TEXT
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  local python
  (($# == 2)) || die "needs PROGRAM and TEXT" 2
  python=$(python_or_skip transformers "$here/transformers_requirements.txt" transformers)
  exec "$python" "$here/foreign_tokenizers.py" "$@" "$root/scripts/encode/main.py"
}

main "$@"
