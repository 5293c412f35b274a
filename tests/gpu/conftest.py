"""These tests need a CUDA device, and a process in which Triton compiles: SEGOPS_TEST_DEVICE=cuda, `make test-gpu`."""

import os

import torch

if os.environ.get("SEGOPS_TEST_DEVICE") == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # which conv2d does by default, and atrous_conv2d with it
else:
    collect_ignore_glob = ["*"]
