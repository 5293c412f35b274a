"""Builds the native parts of segops. The metadata is in pyproject.toml.

SEGOPS_BUILD=auto  what this machine can build; without torch or a compiler, a pure-Python package (the default)
SEGOPS_BUILD=0     pure Python: the reference and the Triton kernels
SEGOPS_BUILD=cpu   the CPU library; whatever it lacks is an error
SEGOPS_BUILD=cuda  the CPU and the CUDA library; whatever they lack is an error
TORCH_CUDA_ARCH_LIST and MAX_JOBS mean what they mean to every torch extension.
"""

import glob
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Every native source and every flag is named here and nowhere else.
CPU_SOURCES = [
    "csrc/cpu/library.cpp",
    "csrc/cpu/permutohedral_filter.cpp",
    "csrc/cpu/gaussian_filter_exact.cpp",
    "csrc/cpu/lovasz_grad.cpp",
    "csrc/cpu/lovasz_hinge.cpp",
    "csrc/cpu/lovasz_softmax.cpp",
    "csrc/cpu/mean_field.cpp",
    "csrc/cpu/aspp.cpp",
    "csrc/cpu/atrous_conv2d.cpp",
    "csrc/cpu/criss_cross_attention.cpp",
    "csrc/cpu/dense_crf.cpp",
    "csrc/cpu/point_sample.cpp",
    "csrc/cpu/point_scatter.cpp",
    "csrc/cpu/topk_uncertain_grid.cpp",
    "csrc/cpu/subdivide.cpp",
    "csrc/cpu/uncertain_points.cpp",
    "csrc/cpu/em_attention.cpp",
    "csrc/cpu/encoding.cpp",
    "csrc/cpu/nonlocal_attention.cpp",
    "csrc/cpu/nonlocal_concatenation.cpp",
    "csrc/cpu/pyramid_pool.cpp",
    "csrc/cpu/psa.cpp",
    "csrc/cpu/psa_mask.cpp",
    "csrc/cpu/interlaced_attention.cpp",
    "csrc/cpu/conv_crf.cpp",
    "csrc/cpu/dynamic_depthwise_conv2d.cpp",
    "csrc/cpu/confusion_matrix.cpp",
    "csrc/cpu/distance_transform.cpp",
    "csrc/cpu/segmentation_sums.cpp",
    "csrc/cpu/upsample_argmax.cpp",
    "csrc/cpu/upsample_cross_entropy.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/library.cpp",
    "csrc/cuda/permutohedral_filter.cu",
    "csrc/cuda/mean_field.cu",
    "csrc/cuda/lovasz.cu",
    "csrc/cuda/lovasz_softmax.cu",
    "csrc/cuda/lovasz_hinge.cu",
]
HOST_SOURCES = ["csrc/host/host.cpp"]

# Python's own flags bring -g, which would make the libraries several times larger: hence -g0. The two warnings concern
# functions that take or return wide vectors, and none of ours is called from outside its own library.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi", "-Wno-ignored-attributes"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
TORCH_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # 2.10, the oldest torch that one binary serves
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fvisibility=hidden,-fno-math-errno,-fno-trapping-math"]
CUDA_FLAGS = ["-DUSE_CUDA"]
CUDA_ARCHS = "8.0+PTX;9.0a"  # the PTX serves every later GPU

HERE = os.path.dirname(os.path.abspath(__file__))
INCLUDE = os.path.join(HERE, "csrc", "include")
PATH_FLAG = f"-fmacro-prefix-map={HERE}/="  # error messages name csrc/cpu/..., not a folder of this machine
MIN_TORCH = (2, 10)
MODE = os.environ.get("SEGOPS_BUILD") or "auto"

# pip installs the ninja program beside python, a folder that is on PATH only in an activated environment.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


class Missing(Exception):
    """Something a library needs and this machine lacks, worded to follow 'needs'."""


def output_of(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return result.stdout


def need_compiler():
    if os.name == "nt":
        raise Missing("GCC or Clang, so on Windows segops is pure Python")
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler.split()[0]) is None:
        raise Missing(f"a C++20 compiler, and `{compiler}` is not on PATH")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        raise Missing("Python's headers (on Debian and Ubuntu: the package python3-dev)")
    return compiler


def need_torch():
    if importlib.util.find_spec("torch") is None:
        raise Missing("torch at build time: install torch first, then build with --no-build-isolation")
    if shutil.which("ninja") is None:
        raise Missing("ninja (pip install ninja)")
    import torch.utils.cpp_extension  # slow, so only where it is used

    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < MIN_TORCH:
        raise Missing(f"torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]}, and this is {torch.__version__}")
    return torch


def need_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) or shutil.which("nvcc")
    if nvcc is None:
        raise Missing("nvcc, and there is none on PATH or under CUDA_HOME")
    return nvcc


def nvcc_release(nvcc):
    return re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version")).group(1)


def host_extension():
    need_compiler()
    if importlib.util.find_spec("pybind11") is None:
        raise Missing("pybind11 (pip install pybind11)")
    import pybind11

    return Extension(
        "segops._host",
        HOST_SOURCES,
        include_dirs=[INCLUDE, pybind11.get_include()],
        extra_compile_args=[*CXX_FLAGS, PATH_FLAG],
        language="c++",
    )


def tensor_extension(name, sources, compile_args, include_dirs=(), link_args=()):
    """A library of the stable ABI: one binary for every Python >= 3.10 and every torch >= MIN_TORCH."""
    need_compiler()
    cpp_extension = need_torch().utils.cpp_extension
    # No rpath: torch is always imported first, and the loader then finds the libraries by name. They must stay
    # NEEDED although a linker may think otherwise, because libtorch is what leads to libtorch_cuda at run time.
    keep, drop = (["-Wl,--no-as-needed"], ["-Wl,--as-needed"]) if sys.platform == "linux" else ([], [])
    return Extension(
        name,
        sources,
        include_dirs=[INCLUDE, *cpp_extension.include_paths(), *include_dirs],
        library_dirs=cpp_extension.library_paths(),
        extra_compile_args=compile_args,
        extra_link_args=[*keep, "-ltorch", "-ltorch_cpu", *drop, *link_args],
        py_limited_api=True,
        language="c++",
    )


def cpu_extension():
    return tensor_extension("segops._C", CPU_SOURCES, {"cxx": [*CXX_FLAGS, *TORCH_FLAGS, PATH_FLAG]})


def cuda_extension():
    nvcc = need_nvcc()
    torch = need_torch()
    release = nvcc_release(nvcc)
    if torch.version.cuda and torch.version.cuda.split(".")[0] != release.split(".")[0]:
        raise Missing(f"an nvcc of CUDA {torch.version.cuda}, which torch was built with; {nvcc} is of CUDA {release}")
    # nvcc may be a wrapper script, so it is asked where its toolkit is.
    dry_run = output_of(nvcc, "--dryrun", "-x", "cu", os.devnull)
    home = os.path.realpath(re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE).group(1))
    torch.utils.cpp_extension.CUDA_HOME = home  # which a CPU-only torch sets to None, whatever the environment says
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS)
    # torch's CUDAExtension links libraries that a CPU-only torch lacks. The stable ABI needs none of them, only the
    # CUDA runtime; linked statically and kept private, it does not care which one torch brings.
    runtime = [f for d in ("lib64", "lib", "targets/*/lib") for f in glob.glob(f"{home}/{d}/libcudart_static.a")]
    if not runtime:
        raise Missing(f"libcudart_static.a, and there is none under {home}")
    return tensor_extension(
        "segops._C_cuda",
        CUDA_SOURCES,
        {
            "cxx": [*CXX_FLAGS, *TORCH_FLAGS, *CUDA_FLAGS, PATH_FLAG],
            "nvcc": [*NVCC_FLAGS, *TORCH_FLAGS, *CUDA_FLAGS, f"-Xcompiler='{PATH_FLAG}'"],
        },
        include_dirs=[f"{home}/include"],
        link_args=["-Wl,--exclude-libs,ALL", runtime[0], "-ldl", "-lrt", "-lpthread"],
    )


def plan():
    """The extensions to build, and for each of the others the reason why it is left out."""
    wanted = {"_host": host_extension, "_C": cpu_extension, "_C_cuda": cuda_extension}
    required = {"auto": (), "0": (), "cpu": ("_C",), "cuda": ("_C", "_C_cuda")}
    if MODE not in required:
        sys.exit(f"segops: SEGOPS_BUILD is one of {', '.join(required)}, not {MODE!r}")
    extensions, left_out = [], {}
    for name, make in wanted.items():
        if MODE == "0" or (MODE == "cpu" and name == "_C_cuda"):
            left_out[name] = f"SEGOPS_BUILD={MODE}"
            continue
        try:
            extensions.append(make())
        except Missing as reason:
            if name in required[MODE]:
                sys.exit(f"segops: SEGOPS_BUILD={MODE} needs {reason}")
            left_out[name] = f"needs {reason}"
    return extensions, left_out


EXTENSIONS, LEFT_OUT = plan()
TENSOR_LIBRARIES = [e for e in EXTENSIONS if e.py_limited_api]
BaseBuildExt = need_torch().utils.cpp_extension.BuildExtension if TENSOR_LIBRARIES else build_ext


def write_build_config(folder):
    """Leave beside the package what `python -m segops info` shows of this build."""
    built = [e.name.rpartition(".")[2] for e in EXTENSIONS]
    cuda = "_C_cuda" in built
    config = {
        "SEGOPS_BUILD": MODE,
        "libraries": built,
        "left_out": LEFT_OUT,
        "python": platform.python_version(),
        "torch": need_torch().__version__ if TENSOR_LIBRARIES else None,
        "compiler": output_of(*need_compiler().split(), "--version").splitlines()[0] if built else None,
        "cxx_flags": CXX_FLAGS + TORCH_FLAGS if built else None,
        "nvcc": nvcc_release(need_nvcc()) if cuda else None,
        "nvcc_flags": NVCC_FLAGS + TORCH_FLAGS + CUDA_FLAGS if cuda else None,
        "cuda_archs": os.environ["TORCH_CUDA_ARCH_LIST"] if cuda else None,
    }
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "_build_config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


class BuildPy(build_py):
    def run(self):
        if not self.editable_mode:  # what an earlier build left behind must not get into this wheel
            shutil.rmtree(os.path.join(self.build_lib, "segops"), ignore_errors=True)
        super().run()
        for name, reason in LEFT_OUT.items():
            print(f"segops: without segops/{name}: {reason}")
        if not EXTENSIONS:
            print("segops: pure Python (the reference and the Triton kernels)")
        # An editable install without native parts may find some in place, and the file that tells how they were built.
        if not self.editable_mode or not os.path.exists("segops/_build_config.json"):
            write_build_config("segops" if self.editable_mode else os.path.join(self.build_lib, "segops"))

    def find_package_modules(self, package, package_dir):
        """kernels/*.py belong to segops.kernels, whose stub finds them in a checkout (see segops/kernels)."""
        modules = super().find_package_modules(package, package_dir)
        if package == "segops.kernels":
            for path in sorted(glob.glob("kernels/*.py")):
                modules.append((package, os.path.splitext(os.path.basename(path))[0], path))
        return modules


class BuildExt(BaseBuildExt):
    def run(self):
        super().run()
        write_build_config("segops" if self.inplace else os.path.join(self.build_lib, "segops"))

    def build_extensions(self):
        # Some Pythons were linked with an rpath of the machine that built them, and pass it on.
        for linker in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, linker, None)
            if command:
                setattr(self.compiler, linker, [a for a in command if not a.startswith("-Wl,-rpath")])
        self.drop_stale_cuda_objects()
        super().build_extensions()

    def build_extension(self, extension):
        """In a folder of its own: ninja strikes from its log what the library at hand does not name."""
        temp = self.build_temp
        self.build_temp = os.path.join(temp, extension.name)
        super().build_extension(extension)
        self.build_temp = temp

    def drop_stale_cuda_objects(self):
        """Beside a CPU-only torch, BuildExtension does not track which headers a .cu file includes."""
        newest = max(map(os.path.getmtime, glob.glob("csrc/include/**/*.*", recursive=True)), default=0)
        for source in CUDA_SOURCES:
            built = os.path.join(self.build_temp, "segops._C_cuda", os.path.splitext(source)[0] + ".o")
            if os.path.exists(built) and os.path.getmtime(built) < newest:
                os.remove(built)


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    # pybind11 knows no stable ABI of Python: only a wheel without _host serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if EXTENSIONS and EXTENSIONS == TENSOR_LIBRARIES else {},
)
