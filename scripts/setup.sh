#!/usr/bin/env bash
# Makes build/stablemask on a fresh Debian or Ubuntu machine, as root or with sudo. Run again, it
# finds what is there and takes a few seconds.
#
#   scripts/setup.sh [options]
#     --cpu          no CUDA kernels (no CUDA compiler needed)
#     --cuda         CUDA kernels again, after --cpu
#     --torch DIR    use this LibTorch folder or Python torch package (it has lib/ and include/)
#     --no-torch     forget an earlier --torch
#     --tests        build the tests too
#     --fast-tests   build the tests without LibTorch and nothing else
#     --dev          --tests, and install the style tools that scripts/check.sh needs, and a browser
#                    and Python packages for tests: report.sh, openai, transformers
#     --packages     only install the system's packages that are missing; build nothing
#     --jobs N       compile N files at a time (default: by cores and memory)
#
# --cpu and --torch are remembered in build/. LibTorch and, if the machine has no CUDA 13 toolkit,
# the CUDA compiler come from Python's package registry into ${STABLEMASK_CACHE:-~/.cache/stablemask}.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/common.sh
source "$root/scripts/common.sh"

readonly torch_version=2.11.0
# Beside LibTorch: numpy for the benchmark's Python peer, cuDNN's headers for the fused attention.
readonly torch_packages=("torch==$torch_version" numpy nvidia-cudnn-frontend==1.23.0)
readonly nvcc_packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-cccl==13.0.85)
readonly torch_disk_gb=12
readonly build_disk_gb=3
readonly memory_per_job_kb=$((3 * 1024 * 1024))
readonly venv="$cache/torch-$torch_version"

main() {
  recall_options
  parse_arguments "$@"
  install_packages
  if ((packages_only)); then return; fi
  if ((dev)); then
    "$root/scripts/report.sh" --install --dev || note "the tests of scripts/report.sh will be skipped"
    "$root/tests/end_to_end/openai_client.sh" --install ||
      note "the test of stablemask serve with the openai package will be skipped"
  fi
  find_torch
  find_nvcc
  exec 9>&-
  if ((dev)); then
    "$root/tests/end_to_end/exported_model.sh" --install ||
      note "the tests with transformers will be skipped"
  fi
  configure
  compile
}

# Options of the last run, so that quickstart.sh and test.sh need not repeat them.
recall_options() {
  cuda=ON torch_option="" tests=0 fast_tests=0 dev=0 packages_only=0 jobs=""
  if [[ -f $build/setup-options ]]; then
    { read -r cuda && read -r torch_option; } <"$build/setup-options" || true
  fi
}

parse_arguments() {
  while (($#)); do
    case $1 in
      --cpu) cuda=OFF ;;
      --cuda) cuda=ON ;;
      --torch)
        [[ $# -ge 2 && -d $2 ]] || die "--torch needs an existing folder, not '${2-}'" 2
        torch_option=$(cd "$2" && pwd)
        shift
        ;;
      --no-torch) torch_option="" ;;
      --tests) tests=1 ;;
      --fast-tests) fast_tests=1 ;;
      --dev) tests=1 dev=1 ;;
      --packages) packages_only=1 ;;
      --jobs)
        [[ ${2-} =~ ^[1-9][0-9]*$ ]] || die "--jobs needs a number ≥ 1, not '${2-}'" 2
        jobs=$2
        shift
        ;;
      -h | --help)
        show_help "${BASH_SOURCE[0]}"
        exit 0
        ;;
      *) die "unknown option '$1' (see --help)" 2 ;;
    esac
    shift
  done
}

has_package() { [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }

# Whether libFuzzer has a package of its own: since Debian 12 and Ubuntu 23.04.
fuzzer_is_apart() (
  # shellcheck source=/dev/null
  . /etc/os-release
  [[ $ID == debian ]] || dpkg --compare-versions "${VERSION_ID-0}" ge 23.04
)

install_packages() {
  local missing=() name
  command -v dpkg-query >/dev/null || die "needs Debian or Ubuntu (dpkg not found)"
  for name in nlohmann-json3-dev libcli11-dev libsentencepiece-dev libcpp-httplib-dev \
    libgtest-dev; do
    has_package "$name" || missing+=("$name")
  done
  # A tool may also come from elsewhere, for example a newer CMake.
  local -A tools=([c++]=g++ [cmake]=cmake [ninja]=ninja-build [pkg-config]=pkg-config [xz]=xz-utils
    [strace]=strace [curl]=curl [unzip]=unzip [git]=git)
  if ((dev)); then tools+=([clang-format]=clang-format [clang++]=clang); fi
  if ((dev)) && fuzzer_is_apart &&
    ! compgen -G "$(clang++ -print-runtime-dir 2>/dev/null)/libclang_rt.fuzzer*" >/dev/null; then
    missing+=(libclang-rt-dev)
  fi
  # Ubuntu's package is a snap, which needs a service.
  if ((dev)) && grep -qx 'ID=debian' /etc/os-release; then
    tools+=([chromium]=chromium)
    has_package fonts-dejavu-core || missing+=(fonts-dejavu-core)
  fi
  for name in "${!tools[@]}"; do
    command -v "$name" >/dev/null || missing+=("${tools[$name]}")
  done
  if { [[ -z $torch_option ]] || ((dev)); } && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=(python3 python3-venv)
  fi
  if ((${#missing[@]} == 0)); then return; fi
  local sudo=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      die "missing packages and no sudo; as root, run: apt-get install ${missing[*]}"
    sudo=(sudo)
    sudo -n true 2>/dev/null || sudo -v ||
      die "missing packages; as root, run: apt-get install ${missing[*]}"
  fi
  apt_install() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qy install --no-install-recommends "${missing[@]}"
  }
  step "installing ${#missing[@]} packages" apt_install ||
    die "apt-get failed; is there a network? The packages: ${missing[*]}"
}

# Sets torch_dir, torch_package (1: our own virtual environment).
find_torch() {
  if [[ -n $torch_option ]]; then
    torch_dir=$torch_option torch_package=0
    is_torch "$torch_dir" ||
      die "no LibTorch in $torch_dir: it needs include/torch and lib/libtorch_cpu.so"
    if [[ $cuda == ON && ! -e $torch_dir/lib/libtorch_cuda.so ]]; then
      die "$torch_dir is a LibTorch without CUDA: add --cpu, or give another one"
    fi
    return
  fi
  torch_package=1
  mkdir -p "$cache" || die "cannot write $cache; set STABLEMASK_CACHE to a folder that you own"
  exec 9>"$cache/lock"
  flock 9
  [[ $(cat "$venv/complete" 2>/dev/null) == "${torch_packages[*]}" ]] || install_torch
  torch_dir=$(echo "$venv"/lib/python3.*/site-packages/torch)
  is_torch "$torch_dir" || die "$venv is damaged: remove it and run this again"
}

is_torch() {
  [[ -e $1/include/torch/csrc/api/include/torch/torch.h && -e $1/lib/libtorch_cpu.so ]]
}

install_torch() {
  local free
  free=$(free_gb "$cache")
  torch_is_sound || ((free >= torch_disk_gb)) ||
    die "LibTorch needs $torch_disk_gb GB in $cache, $free GB are free; set STABLEMASK_CACHE or give --torch DIR"
  step "installing LibTorch $torch_version" pip_torch ||
    die "LibTorch was not installed; check the network or proxy, or give --torch DIR"
  echo "${torch_packages[*]}" >"$venv/complete"
}

torch_is_sound() {
  "$venv/bin/python3" -c "
import numpy, torch
assert torch.__version__.split('+')[0] == '$torch_version'" >/dev/null 2>&1
}

# pip INSTALL ARGUMENTS…: unpacks beside the target, since /tmp may be small or in memory.
pip_install() {
  mkdir -p "$cache/tmp"
  TMPDIR="$cache/tmp" "$venv/bin/python3" -m pip install --quiet --no-cache-dir --retries 3 \
    --disable-pip-version-check "$@"
  local status=$?
  rm -rf "$cache/tmp"
  return "$status"
}

pip_torch() {
  if ! torch_is_sound; then
    rm -rf "$venv"  # what an interrupted run left
    python3 -m venv "$venv" || return
  fi
  pip_install "${torch_packages[@]}" && torch_is_sound
}

# Sets cuda_flags, from the toolkit on the machine or else from the registry.
find_nvcc() {
  cuda_flags=(-DSTABLEMASK_CUDA="$cuda")
  if [[ $cuda == OFF ]]; then return; fi
  cuda_flags+=(-DSTABLEMASK_CUDA_ARCHITECTURES="$(gpu_architectures)")
  local candidate toolkit
  for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [[ -n $candidate ]] && nvcc_is_usable "$candidate"; then
      cuda_flags+=(-DCMAKE_CUDA_COMPILER="$candidate")
      return
    fi
  done
  ((torch_package)) ||
    die "no CUDA 12.8 or newer on PATH or in /usr/local/cuda: install the toolkit, or add --cpu"
  toolkit=$(dirname "$torch_dir")/nvidia/cu13
  if [[ ! -f $venv/complete-nvcc ]]; then
    step "installing the CUDA compiler" pip_nvcc "$toolkit" ||
      die "the CUDA compiler was not installed; check the network, or add --cpu"
    printf '%s\n' "${nvcc_packages[@]}" >"$venv/complete-nvcc"
  fi
  nvcc_is_usable "$toolkit/bin/nvcc" ||
    die "$toolkit/bin/nvcc does not run; remove $venv/complete-nvcc and run this again, or add --cpu"
  cuda_flags+=(-DCMAKE_CUDA_COMPILER="$toolkit/bin/nvcc" -DCUDAToolkit_ROOT="$toolkit"
    -DCUDA_TOOLKIT_ROOT_DIR="$toolkit")
}

# Those of the GPUs in this machine ("80;90a"); without one an H100's.
gpu_architectures() {
  local found
  found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
    sed -nE 's/^([0-9]+)\.([0-9]+)$/\1\2/p' | sed 's/^90$/90a/' | sort -u | paste -sd ';') || true
  echo "${found:-90a}"
}

# The packaged LibTorch brings CUDA 13 libraries: two majors in one process would not agree.
nvcc_is_usable() {
  local release major minor
  release=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
  [[ -n $release ]] || return 1
  major=${release%.*} minor=${release#*.}
  if ((torch_package)); then ((major == 13)); else ((major > 12 || (major == 12 && minor >= 8))); fi
}

# The four packages of one release, and the names that a toolkit's linker looks for.
pip_nvcc() {
  local library
  pip_install "${nvcc_packages[@]}" || return
  for library in cudart nvrtc cublas cublasLt; do
    ln -sf "lib$library.so.13" "$1/lib/lib$library.so" || return
  done
  ln -sfn lib "$1/lib64"
}

configure() {
  local arguments stamp
  arguments=(-G Ninja -DSTABLEMASK_TORCH_DIR="$torch_dir" "${cuda_flags[@]}")
  # The server is part of the program where its HTTP library is.
  stamp=$(printf '%s\n' "$cuda" "$torch_option" "${arguments[@]}" \
    "httplib $(pkg-config --modversion cpp-httplib 2>/dev/null || true)")
  if [[ -f $build/build.ninja && $(cat "$build/setup-options" 2>/dev/null) == "$stamp" ]]; then
    return
  fi
  mkdir -p "$build"
  step "configuring" cmake -S "$root" -B "$build" "${arguments[@]}" ||
    die "configuring failed; if the options changed a lot, remove build/ and run this again"
  printf '%s\n' "$stamp" >"$build/setup-options"
}

compile() {
  local target=stablemask_binary what="building build/stablemask" free
  if ((tests)); then target=all what="building the program and its tests"; fi
  if ((fast_tests)); then target=fast_tests what="building the tests without LibTorch"; fi
  if ninja -C "$build" -n "$target" 2>/dev/null | grep -q 'no work to do'; then return; fi
  free=$(free_gb "$build")
  ((free >= build_disk_gb)) || die "building needs $build_disk_gb GB in $build, $free GB are free"
  if [[ -t 1 ]]; then
    note "$what"
    ninja -C "$build" -j "${jobs:-$(build_jobs)}" "$target" || die "the build failed"
  else
    step "$what" ninja -C "$build" -j "${jobs:-$(build_jobs)}" "$target" || die "the build failed"
  fi
}

# A file that includes LibTorch takes up to 3 GB to compile.
build_jobs() {
  local memory_kb jobs
  memory_kb=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
  jobs=$((memory_kb / memory_per_job_kb))
  if ((jobs > $(cores))); then jobs=$(cores); fi
  echo $((jobs < 1 ? 1 : jobs))
}

main "$@"
if ((!packages_only && !fast_tests)); then note "ready: $build/stablemask"; fi
