"""What every test gets: Triton's interpreter where there is no GPU, and the same random numbers each time."""

import os
import random

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton: its kernels then run on CPU tensors
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code that draws from NumPy's global generator
    torch.manual_seed(0)
