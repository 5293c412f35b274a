# make demo     the fully connected CRF at work on a picture
# make test     the tests, and the examples in the docstrings
# make test-gpu the operators on a CUDA device, Triton compiled
# make train    a small model trained on drawn streets, or with ARGS on photos of your own
# make bench    every operator against its peers: a quarter of an hour, with ARGS=--quick three minutes
# make lint     ruff, mypy and clang-format; make format mends what they can mend
# make docs     the documentation, into site/
# make build    only the environment and the native libraries
# make clean    remove what was built; make distclean removes .venv too
#
# Each makes .venv and compiles first, where that is still to do. Variables, on the command line or in the environment:
#   PYTHON=python3.12       the Python that .venv is made from
#   TORCH=torch==2.13.0     the torch to install (default: the newest)
#   SEGOPS_BUILD=auto       what to compile: auto, 0 (nothing), cpu, cuda; see setup.py
#   MAX_JOBS=2              compilers, or processes of tests, that run at the same time
#   ARGS="-k crf"           passed on to the demo, to pytest or to the benchmarks

PYTHON ?= python3
TORCH ?= torch
ARGS ?=
export SEGOPS_BUILD ?= auto
export MAX_JOBS ?= 2

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test train test-gpu bench lint format docs build clean distclean

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SAY := @printf '==> %s\n'
# These stamps carry the wish in their name, so that another wish installs or builds again.
TORCH_STAMP := .venv/.stamp-torch-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' '-')
NATIVE_STAMP := .venv/.stamp-native-$(SEGOPS_BUILD)
NATIVE_SOURCES := $(shell find csrc -type f -name '*.*')

CXX_FILES := find csrc \( -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' \) -print0

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(NATIVE_STAMP)
	$(SAY) "Running the demo"
	@$(PY) -m segops demo $(ARGS)

test: $(NATIVE_STAMP) .venv/.stamp-dev
	$(SAY) "Running the tests and the examples of the docstrings (six to fourteen minutes on two cores)"
	@OMP_WAIT_POLICY=passive $(PY) -m pytest --benchmark-disable -n $(MAX_JOBS) --dist worksteal $(ARGS)
	$(SAY) "Tests and examples pass."

train: $(NATIVE_STAMP) .venv/.stamp-train
	$(SAY) "Training"
	@$(PY) -m segops train $(ARGS)

test-gpu: $(NATIVE_STAMP) .venv/.stamp-dev
	$(SAY) "Running the tests that need a CUDA device"
	@SEGOPS_TEST_DEVICE=cuda $(PY) -m pytest tests/gpu $(ARGS)

bench: $(NATIVE_STAMP) .venv/.stamp-dev
	$(SAY) "Measuring; close other programs, the figures are only as calm as the machine"
	@$(PY) -m segops bench --json build/benchmark.json --plot build/plots $(ARGS)
	$(SAY) "Measured. The table is above, every figure is in build/benchmark.json, the plots are in build/plots."

lint: .venv/.stamp-dev
	$(SAY) "ruff, mypy, clang-format"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(CXX_FILES) | xargs -0 .venv/bin/clang-format --dry-run -Werror
	$(SAY) "Nothing to complain about."

format: .venv/.stamp-dev
	@$(PY) -m ruff check --fix --exit-zero .
	@$(PY) -m ruff format .
	@$(CXX_FILES) | xargs -0 .venv/bin/clang-format -i
	$(SAY) "Formatted; 'git diff' shows what changed."

docs: .venv/.stamp-docs
	$(SAY) "Building the documentation"
	@$(PY) -m mkdocs build --strict --quiet
	$(SAY) "The documentation is in site/; open site/index.html."

build: $(NATIVE_STAMP)
	$(SAY) "segops is installed in .venv; '.venv/bin/python -m segops info' shows what was built."

clean:
	@rm -rf build dist site *.egg-info .venv/.stamp-native-* segops/*.so segops/_build_config.json
	$(SAY) "Removed what was built; .venv is kept ('make distclean' removes it too)."

distclean: clean
	@rm -rf .venv
	$(SAY) "Removed .venv."

.venv/.stamp-venv:
	@command -v "$(PYTHON)" >/dev/null || { \
	    echo "There is no '$(PYTHON)'. Install Python 3.10 or newer, or say which one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "segops needs Python 3.10 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version). Say which one: make PYTHON=..."; exit 1; }
	@[ "$$SEGOPS_BUILD" = 0 ] || command -v $${CXX:-c++} >/dev/null || { \
	    echo "There is no C++ compiler. Install g++ (Debian, Ubuntu: apt install g++) or Xcode's tools (macOS),"; \
	    echo "or do without native libraries: make SEGOPS_BUILD=0"; exit 1; }
	@[ "$$SEGOPS_BUILD" = 0 ] || "$(PYTHON)" -c 'import os, sys, sysconfig; \
	    sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { \
	    echo "Python's headers are missing (Debian, Ubuntu: apt install python3-dev),"; \
	    echo "or do without native libraries: make SEGOPS_BUILD=0"; exit 1; }
	$(SAY) "Making .venv with $$("$(PYTHON)" --version) (seconds)"
	@"$(PYTHON)" -m venv .venv || { echo "Could not make .venv (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@touch $@

$(TORCH_STAMP): .venv/.stamp-venv
	$(SAY) "Installing $(TORCH) (the default, with CUDA, is several GB: about three minutes; a CPU build: half a minute)"
	@$(PIP) install '$(TORCH)' numpy 'setuptools>=77' wheel ninja pybind11
	@rm -f .venv/.stamp-torch-* && touch $@

.venv/.stamp-deps: $(TORCH_STAMP) pyproject.toml
	$(SAY) "Installing segops from this folder, and what the command line needs (seconds)"
	@SEGOPS_BUILD=0 $(PIP) install -e '.[cli]'
	@touch $@

# pip installs the Python part (SEGOPS_BUILD=0): it would hide the progress of a compilation and start from nothing
# each time. setup.py compiles here, and again only what has changed.
$(NATIVE_STAMP): .venv/.stamp-deps setup.py $(NATIVE_SOURCES)
	$(SAY) "Compiling the native libraries (four to eight minutes on two cores; log: build/native.log)"
	@mkdir -p build && rm -f .venv/.stamp-native-* segops/*.so
	@$(PY) setup.py build_ext --inplace 2>&1 | tee build/native.log \
	    | awk 'match($$0, /csrc\/[a-z_]+\/[a-z_0-9]+\.(cpp|cu)/) && /^\[[0-9]/ \
	           {print "    " $$1 " " substr($$0, RSTART, RLENGTH); fflush()}' \
	    || { tail -n 40 build/native.log; echo "Compiling failed; the whole log is in build/native.log."; exit 1; }
	@touch $@

.venv/.stamp-dev: .venv/.stamp-deps
	$(SAY) "Installing the tools for tests, benchmarks and formatting (half a minute; the first time up to two)"
	@SEGOPS_BUILD=0 $(PIP) install -e '.[cli,dev,bench,models,train]'
	@touch $@

.venv/.stamp-train: .venv/.stamp-deps
	$(SAY) "Installing timm and Lightning (half a minute)"
	@SEGOPS_BUILD=0 $(PIP) install -e '.[cli,models,train]'
	@touch $@

.venv/.stamp-docs: .venv/.stamp-deps
	$(SAY) "Installing mkdocs-material (seconds)"
	@SEGOPS_BUILD=0 $(PIP) install -e '.[docs]'
	@touch $@
