#!/usr/bin/env bash
# Runs pytorch_op.py, the test of the operator in Python's torch, on the CPU and on a GPU if there is
# one. Ends with 77 and a reason where PYTHON has not the torch that the operator was built with. The
# part with transformers needs its packages (exported_model.sh --install).
#
#   tests/end_to_end/pytorch_op.sh FOLDER PYTHON TORCH [TEST...]
#         FOLDER  contains the package: build/python
#         TORCH   folder of the torch that the operator was built with
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

main() {
  local folder=$1 python=$2 torch=$3 other
  shift 3
  if other=$(installed_python transformers "$here/transformers_requirements.txt") &&
    has_torch "$other" "$torch"; then
    python=$other
  elif ! has_torch "$python" "$torch"; then
    skip "${python:-no Python} does not import the torch of $torch"
  fi
  HF_HUB_OFFLINE=1 exec "$python" "$here/pytorch_op.py" "$folder" \
    "$root/src/python/examples/llama.py" "$@"
}

# has_torch PYTHON FOLDER: whether its torch is the one in FOLDER.
has_torch() {
  [[ -x $1 && $("$1" -c 'import importlib.util as u
print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null) -ef $2 ]]
}

(($# >= 3)) || die "needs FOLDER, PYTHON and TORCH" 2
main "$@"
