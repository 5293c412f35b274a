"""These tests need a CUDA device, and a process in which Triton compiles: SEGOPS_TEST_DEVICE=cuda, `make test-gpu`."""

import os

if os.environ.get("SEGOPS_TEST_DEVICE") != "cuda":
    collect_ignore_glob = ["*"]
