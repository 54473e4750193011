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

readonly sources="$root/scripts/report" venv="$cache/report-venv"

main() {
  case ${1-} in
    '' | -h | --help)
      show_help "${BASH_SOURCE[0]}"
      [[ -n ${1-} ]] || die "name a run folder" 2
      ;;
    --install)
      install_packages requirements.txt
      if [[ ${2-} == --dev ]]; then install_packages requirements-dev.txt; fi
      ;;
    *)
      install_packages requirements.txt
      exec "$venv/bin/python3" "$sources/main.py" "$@"
      ;;
  esac
}

# install_packages FILE: the pinned packages of scripts/report/FILE, if there is one.
install_packages() {
  local list="$sources/$1" stamp="$venv/complete-$1"
  if [[ ! -f $list ]] || cmp -s "$list" "$stamp"; then return; fi
  mkdir -p "$cache" || die "cannot write $cache; set STABLEMASK_CACHE to a folder that you own"
  exec 9>"$cache/report-lock"
  flock 9
  step "installing the packages of $1" pip_install "$list" >&2 ||
    die "packages not installed; needs a network and, on Debian, the package python3-venv"
  cp "$list" "$stamp"
  exec 9>&-
}

pip_install() {
  if ! "$venv/bin/python3" -c '' 2>/dev/null; then
    rm -rf "$venv"  # what an interrupted run left
    python3 -m venv "$venv" || return
  fi
  "$venv/bin/python3" -m pip install --quiet --no-cache-dir --retries 3 \
    --disable-pip-version-check --requirement "$1"
}

main "$@"
