#!/usr/bin/env bash
# Makes one self-contained web page (no network needed) of runs: curves, final figures, differences
# of their configs, perplexity by length, pictures of the mask. Runs in progress are shown as far as
# they are. docs/report.md explains the page.
#
#   scripts/report.sh RUN... [--out report.html] [--eval FILE...] [--inspect DIR...]
#     RUN             a run folder of pretrain or finetune
#     --out FILE      the page (default: report.html)
#     --eval FILE     JSON of `stablemask eval --json FILE`; RUN/eval*.json is found without it
#     --inspect DIR   folder of `stablemask inspect --out DIR`; RUN/inspect is found without it
#     --title TEXT    heading of the page
#   scripts/report.sh --install [--dev]
#                     only install the plotting library; --dev: and the packages of its tests
#
# Example: scripts/report.sh runs/quickstart/* --out report.html
#
# The plotting library comes from Python's package registry into a virtual environment in
# ${STABLEMASK_CACHE:-~/.cache/stablemask}, once.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

python_script report "name a run folder" "$@"
