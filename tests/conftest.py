"""What every test gets: Triton's interpreter, unless it is the GPU that is tested, and the same random numbers."""

import os
import random
import sys

import numpy as np
import pytest
import torch

if os.environ.get("SEGOPS_TEST_DEVICE") != "cuda":  # before anything imports triton: its kernels run on CPU tensors
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before the tests chose its interpreter")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code that draws from NumPy's global generator
    torch.manual_seed(0)
