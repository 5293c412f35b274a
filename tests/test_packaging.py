"""What goes into the source archive and the wheel, and what `import segops` may cost."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import segops

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "build", "dist", "site", "*.egg-info", "*.so", "__pycache__"
)


def call_backend(folder, hook, out):
    """What pip and `python -m build` do, in this environment and without compiling."""
    code = f"import setuptools.build_meta as backend, sys; print(backend.{hook}(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=folder,
        env={**os.environ, "SEGOPS_BUILD": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return out / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive of this checkout, and the pure-Python wheel built from that archive."""
    tmp = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, tmp / "checkout", ignore=NOT_SOURCE)
    sdist = call_backend(tmp / "checkout", "build_sdist", tmp)
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp / "unpacked", filter="data")
    (source,) = (tmp / "unpacked").iterdir()
    wheel = call_backend(source, "build_wheel", tmp)
    with zipfile.ZipFile(wheel) as z:
        files = z.namelist()
    return wheel, files, source


def python_files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.py")}


def test_the_wheel_is_pure_and_holds_nothing_but_the_package(archives):
    wheel, files, _ = archives
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {f.split("/")[0] for f in files} == {"segops", f"segops-{segops.__version__}.dist-info"}
    assert not [f for f in files if f.endswith((".so", ".cpp", ".cu", ".h", ".pyc"))]


def test_the_wheel_holds_every_module_and_every_triton_kernel(archives):
    _, files, _ = archives
    modules = {f"segops/{name}" for name in python_files(ROOT / "segops")}
    kernels = {f"segops/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}
    data = {f"segops/data/{p.name}" for p in (ROOT / "segops" / "data").glob("*") if p.is_file()}
    assert kernels, "kernels/ holds the Triton sources"
    assert {f for f in files if f.endswith(".py")} == modules | kernels
    assert data | {"segops/py.typed", "segops/_build_config.json"} <= set(files)


def test_the_source_archive_can_build_everything(archives):
    _, _, source = archives
    for folder in ("csrc", "kernels"):
        ours = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*.*") if "__pycache__" not in p.parts}
        theirs = {p.relative_to(source) for p in (source / folder).rglob("*.*")}
        assert ours == theirs
    assert not list(source.rglob("*.so"))
    assert not (source / "segops" / "_build_config.json").exists()


def test_kernels_does_not_shadow_the_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_segops_kernels_finds_the_triton_sources_of_this_checkout():
    import segops.kernels

    assert str(ROOT / "kernels") in list(segops.kernels.__path__)


def test_importing_segops_does_not_import_torch():
    code = "import segops, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_version_is_that_of_the_metadata(archives):
    _, _, source = archives
    assert f"\nVersion: {segops.__version__}\n" in (source / "PKG-INFO").read_text()


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_a_demanded_library_that_can_not_be_built_is_one_clear_sentence(mode):
    run = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "SEGOPS_BUILD": mode, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    assert f"SEGOPS_BUILD={mode} needs a C++20 compiler" in run.stderr
