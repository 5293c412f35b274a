"""The promise of the native libraries: one binary for every torch >= 2.10, and a NumPy front end that needs no torch.

Both are kept by what the libraries ask of the loader, so that is what these tests read.
"""

import json
import pathlib
import re
import subprocess

import pytest

import segops

PACKAGE = pathlib.Path(segops.__file__).parent
CONFIG = PACKAGE / "_build_config.json"
BUILT = json.loads(CONFIG.read_text())["libraries"] if CONFIG.exists() else []
LIBRARIES = {path.name.split(".")[0]: path for path in PACKAGE.glob("*.so")}
TENSOR_LIBRARIES = [name for name in LIBRARIES if name.startswith("_C")]


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined_symbols(name):
    lines = output_of("nm", "--dynamic", "--demangle", "--undefined-only", LIBRARIES[name]).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


def loader_entries(name):
    return re.findall(r"^\s+(NEEDED|RPATH|RUNPATH)\s+(\S+)", output_of("objdump", "-p", LIBRARIES[name]), re.MULTILINE)


def test_every_library_that_the_build_reports_is_here():
    assert sorted(LIBRARIES) == sorted(BUILT)


@pytest.mark.parametrize("name", TENSOR_LIBRARIES)
def test_tensor_libraries_use_only_the_stable_abi_of_torch(name):
    symbols = undefined_symbols(name)
    assert not [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2)::", s)]
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols)


@pytest.mark.parametrize("name", TENSOR_LIBRARIES)
def test_tensor_libraries_serve_every_python(name):
    assert LIBRARIES[name].name == f"{name}.abi3.so"


@pytest.mark.parametrize("name", TENSOR_LIBRARIES)
def test_tensor_libraries_need_libtorch_and_no_part_that_a_build_may_lack(name):
    needed = {library for kind, library in loader_entries(name) if kind == "NEEDED"}
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert not [
        n for n in needed if n.startswith(("libc10", "libtorch_cuda", "libtorch_python", "libcud", "libpython"))
    ]


def test_host_knows_nothing_of_torch():
    assert not [s for s in undefined_symbols("_host") if re.search(r"torch|\b(at|c10)::", s)]
    assert not [entry for entry in loader_entries("_host") if re.search("torch|c10", entry[1])]


@pytest.mark.parametrize("name", LIBRARIES)
def test_no_library_carries_a_path_of_the_machine_that_built_it(name):
    assert not [entry for entry in loader_entries(name) if entry[0] in ("RPATH", "RUNPATH")]
