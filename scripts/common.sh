# Helpers of the other scripts; sourced, never run.
# shellcheck shell=bash disable=SC2034

# A script that sources this file sets `root` first.
build="${root:?}/build"
cache="${STABLEMASK_CACHE:-${HOME:-/root}/.cache/stablemask}"

die() {
  printf '%s: error: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

# One line for each argument.
note() { printf '%s\n' "$@"; }

# step NAME COMMAND…: runs the command quietly and prints NAME with the seconds it took. A command
# that fails shows the end of what it printed, or what explain_failure says of it.
step() {
  local name=$1 start=$SECONDS status=0 log
  shift
  log=$(mktemp)
  printf '%-46s' "$name"
  if [[ -t 1 ]]; then printf ' …'; fi
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if [[ -t 1 ]]; then printf '\b\b'; fi
  if ((status == 0)); then
    printf ' %4d s\n' $((SECONDS - start))
    rm -f "$log"
    return 0
  fi
  printf ' failed after %d s\n' $((SECONDS - start))
  tail -n 40 "$log" >&2
  note "(everything it printed: $log)" >&2
  return "$status"
}

# show_help FILE: the comment block at the top of a script is its manual.
show_help() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"; }

# free_gb FOLDER: whole gigabytes free where FOLDER is or will be.
free_gb() {
  local folder=$1
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1048576) }'
}

# own_folder FOLDER MARKER: makes FOLDER, or finds it, with the file MARKER; a folder with something
# else in it is refused.
own_folder() {
  if [[ -e $1 && ! -e $1/$2 && -n $(ls -A "$1") ]]; then
    die "$1 holds something else; choose another folder with --out" 2
  fi
  mkdir -p "$1" || die "cannot make $1; choose another folder with --out"
  touch "$1/$2"
}

# Checks of options; a value that fails ends the script with 2.
# require_count OPTION VALUE
require_count() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number ≥ 1" 2; }

# require_stablemask: the program, $stablemask.
require_stablemask() {
  [[ -x $stablemask ]] || die "$stablemask is not there; run scripts/setup.sh, or state --binary"
}

# require_models NAME…: presets of a model's size.
require_models() {
  local name
  for name in "$@"; do
    [[ $name =~ ^(71m|160m|400m|1\.4b)$ ]] || die "--models: '$name' is none of 71m, 160m, 400m, 1.4b" 2
  done
}

# require_device NAME
require_device() {
  [[ $1 =~ ^(cuda|cpu)$ ]] || die "--device: '$1' is neither cuda nor cpu" 2
}

# use_gpu NUMBER: of this shell's programs; "" or cpu: none in particular.
use_gpu() {
  if [[ ${1:-cpu} != cpu ]]; then export CUDA_VISIBLE_DEVICES=$1; fi
}

# spread_over_gpus LIST COMMAND LOGS: runs `COMMAND WORKER COUNT` once for each GPU of the list 0,1,…,
# all at a time, WORKER from 0; without a list once on the CPU. When one fails the script ends with its
# status and names LOGS.
spread_over_gpus() {
  local workers worker=0 gpu pids=() pid status=0
  IFS=, read -r -a workers <<<"${1:-cpu}"
  for gpu in "${workers[@]}"; do
    {
      use_gpu "$gpu"
      "$2" "$worker" "${#workers[@]}"
    } &
    pids+=($!)
    worker=$((worker + 1))
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  ((status == 0)) || die "a run failed; its output is in $3" "$status"
}

# take_options SCRIPT "--NAME…" ARGUMENT…: each `--NAME VALUE` sets the variable NAME, with _ for -;
# --binary sets stablemask, and --set adds to settings. --help prints the head of SCRIPT.
take_options() {
  local of_script=$1 known=$2
  shift 2
  while (($#)); do
    if [[ $1 == -h || $1 == --help ]]; then
      show_help "$of_script"
      exit 0
    fi
    [[ $1 != *' '* && " $known " == *" $1 "* ]] || die "unknown option '$1' (see --help)" 2
    (($# > 1)) || die "$1 needs a value" 2
    case $1 in
      --binary) stablemask=$2 ;;
      --set) settings+=(--set "$2") ;;
      *)
        local variable=${1#--}
        printf -v "${variable//-/_}" '%s' "$2"
        ;;
    esac
    shift 2
  done
}

# shard_tokens SHARD: as its header states them. The program is $stablemask.
shard_tokens() { "$stablemask" data inspect "$1" | sed -nE 's/^ *tokens +([0-9]+) .*/\1/p'; }

# train_shards FOLDER: its train*.shard as a config's data.train.
train_shards() {
  local list
  list=$(printf ',"%s"' "$1"/train*.shard)
  echo "[${list:1}]"
}

# The GPU that this shell's programs use first, or CPU.
card() {
  local names
  if [[ -n ${CUDA_VISIBLE_DEVICES-all} ]] && names=$(nvidia-smi --query-gpu=name \
    --format=csv,noheader ${CUDA_VISIBLE_DEVICES:+-i "$CUDA_VISIBLE_DEVICES"} 2>/dev/null); then
    echo "${names%%$'\n'*}"
  else
    echo CPU
  fi
}

cores() { nproc 2>/dev/null || echo 1; }

# The Python of the torch that scripts/setup.sh installs, or another one with torch.
torch_python() { echo "${STABLEMASK_PYTHON:-$cache/torch-2.11.0/bin/python3}"; }

# python_packages NAME LIST [BASE]: prints the Python of the virtual environment NAME-venv in the
# cache after installing the pinned packages of the file LIST in it, unless that LIST was installed
# before. Several LISTs may share an environment. With BASE, a Python, the environment is made of it
# and sees its packages too. Progress goes to standard error. Needs a network to install.
python_packages() {
  local name=$1 list=$2 base=${3:-python3}
  if ! installed_python "$name" "$list"; then
    mkdir -p "$cache" || die "cannot write $cache; set STABLEMASK_CACHE to a folder that you own"
    (
      flock 8
      step "installing the packages of ${list##*/}" install_python "$name" "$list" "$base" >&2
    ) 8>"$cache/$name-lock" ||
      die "packages not installed; needs a network and, on Debian, the package python3-venv"
    installed_python "$name" "$list"
  fi
}

# installed_python NAME LIST: as python_packages, but fails when that LIST is not installed.
installed_python() {
  local venv="$cache/$1-venv"
  cmp -s "$2" "$venv/complete-${2##*/}" && "$venv/bin/python3" -c '' && echo "$venv/bin/python3"
} 2>/dev/null

# skip REASON: ends a test with 77, which ctest counts as skipped; scripts/test.sh lists the reason.
skip() {
  printf '%s: Skipped\n%s\n' "${0##*/}" "$1" >&2
  exit 77
}

# python_or_skip NAME LIST PACKAGE: as installed_python; a test that assigns its output is skipped
# where PACKAGE is not installed.
python_or_skip() {
  installed_python "$1" "$2" || skip "$3 is not installed: scripts/setup.sh --dev"
}

# python_script NAME MISSING ARGUMENT…: runs scripts/NAME/main.py, the body of a script, with the
# packages of its requirements.txt in the environment NAME. `--install` only installs them, `--install
# --dev` also those of requirements-dev.txt. Without arguments: the script's manual, and the error
# MISSING.
python_script() {
  local name=$1 missing=$2 sources=$root/scripts/$1 python
  shift 2
  case ${1-} in
    '' | -h | --help)
      show_help "$0"
      [[ -n ${1-} ]] || die "$missing" 2
      ;;
    --install)
      python_packages "$name" "$sources/requirements.txt" >/dev/null
      if [[ ${2-} == --dev ]]; then
        python_packages "$name" "$sources/requirements-dev.txt" >/dev/null
      fi
      ;;
    *)
      python=$(python_packages "$name" "$sources/requirements.txt")
      exec "$python" "$sources/main.py" "$@"
      ;;
  esac
}

install_python() {
  local venv="$cache/$1-venv" list=$2 base=$3
  if ! "$venv/bin/python3" -c '' 2>/dev/null; then
    rm -rf "$venv"  # what an interrupted run left
    "$base" -m venv "$venv" || return
    # A virtual environment of a virtual environment does not see the packages of the latter.
    if [[ $base != python3 ]]; then
      "$base" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$(echo "$venv"/lib/python3.*/site-packages)/base.pth" || return
    fi
  fi
  "$venv/bin/python3" -m pip install --quiet --no-cache-dir --retries 3 \
    --disable-pip-version-check --requirement "$list" || return
  cp "$list" "$venv/complete-${list##*/}"
}
