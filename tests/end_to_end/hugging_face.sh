#!/usr/bin/env bash
# Runs hugging_face.py, a test of `stablemask import` and `export` with transformers on the other side.
# Ends with 77 and a reason where the packages are not installed (exported_model.sh --install).
#
#   tests/end_to_end/hugging_face.sh PROGRAM CHECKPOINT SHARD
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  local python
  (($# == 3)) || die "needs PROGRAM, CHECKPOINT and SHARD" 2
  python=$(python_or_skip transformers "$here/transformers_requirements.txt" transformers)
  exec "$python" "$here/hugging_face.py" "$@"
}

main "$@"
