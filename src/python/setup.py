"""Builds the operator with the repository's CMake against the torch of this Python.

    pip install --no-build-isolation src/python       (docs/pytorch.md)

Environment: STABLEMASK_CUDA=0 leaves out the CUDA kernels, STABLEMASK_CUDA_ARCHITECTURES names the
GPUs to build for ("80;90a"; default: the GPUs of this machine, or an H100), MAX_JOBS limits the
number of compilers at a time.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME
except ImportError:
    sys.exit("stablemask: no torch in the Python that builds the package. Install torch, then use "
             "pip install --no-build-isolation, which builds against the installed one")

ROOT = Path(__file__).resolve().parents[2]


def cuda_compiler() -> Path | None:
    """nvcc of the major version of CUDA that torch was built for."""
    if os.environ.get("STABLEMASK_CUDA") == "0" or not torch.version.cuda:
        return None
    found = Path(CUDA_HOME or "") / "bin" / "nvcc"
    if not found.is_file():
        print("stablemask: nvcc not found, so the operator is for the CPU only", file=sys.stderr)
        return None
    release = subprocess.run([found, "--version"], capture_output=True, text=True,
                             check=True).stdout
    major = torch.version.cuda.split(".")[0]
    if f"release {major}." not in release:
        sys.exit(f"stablemask: torch was built for CUDA {torch.version.cuda}, and {found} is of "
                 f"another major version: put nvcc {major} on the PATH or in CUDA_HOME, or set "
                 "STABLEMASK_CUDA=0")
    return found


def architectures() -> str:
    if named := os.environ.get("STABLEMASK_CUDA_ARCHITECTURES"):
        return named
    devices = range(torch.cuda.device_count())
    found = {"%d%d" % torch.cuda.get_device_capability(device) for device in devices}
    return ";".join(sorted(name + "a" * (name == "90") for name in found)) or "90a"


class CMakeBuild(build_ext):
    def get_ext_filename(self, name: str) -> str:
        # Loaded by torch, not imported: no Python version in its name.
        return name.replace(".", "/") + ".so"

    def build_extension(self, extension: Extension) -> None:
        if not (ROOT / "CMakeLists.txt").is_file():
            sys.exit(f"stablemask: {ROOT} is not the repository; install from a clone of it")
        build = Path(self.build_temp).resolve() / f"torch-{torch.__version__}"
        compiler = cuda_compiler()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_FLAGS": f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            "STABLEMASK_PYTHON_PACKAGE": "ON",
            "STABLEMASK_DEVELOPER": "OFF",
            "STABLEMASK_TORCH_DIR": Path(torch.__file__).parent,
            "STABLEMASK_CUDA": "ON" if compiler else "OFF",
        }
        if compiler:
            options |= {"CMAKE_CUDA_COMPILER": compiler,
                        "STABLEMASK_CUDA_ARCHITECTURES": architectures()}
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "-S", ROOT, "-B", build, *generator,
                        *(f"-D{name}={value}" for name, value in options.items())], check=True)
        subprocess.run(["cmake", "--build", build, "--parallel", jobs, "--target",
                        "stablemask_python"], check=True)
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / "python" / self.get_ext_filename(extension.name), target)


setup(ext_modules=[Extension("stablemask._attention", [])], cmdclass={"build_ext": CMakeBuild})
