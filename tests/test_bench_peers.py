"""Peers of the benchmarks that depend on what is installed, on the device or on the inputs."""

import pytest
import rows_losses
import rows_nonlocal
import torch
from bench_types import Refused, doubled, error


def of_nonlocal_attention(name):
    return next(p for p in rows_nonlocal.PROVIDERS if p.name == name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "channels"), [("sdpa_math", 256), ("sdpa_math", 512), ("sdpa_flash", 256)])
def test_backends_of_sdpa_are_right(name, channels, dtype):
    inputs, provider = rows_nonlocal.maps(channels, 5, dtype), of_nonlocal_attention(name)
    assert error(provider.prepare(inputs)(), rows_nonlocal.oracle(inputs)) <= provider.allowed(inputs)


@pytest.mark.parametrize(
    ("name", "channels", "why"),
    [
        ("sdpa_flash", 512, "the same last dimension"),
        ("sdpa_efficient", 256, "backend"),
        ("sdpa_cudnn", 256, "backend"),
    ],
)
def test_a_backend_of_sdpa_refuses_what_it_cannot_take(name, channels, why, recwarn):
    with pytest.raises(Refused, match=why):
        of_nonlocal_attention(name).prepare(rows_nonlocal.maps(channels, 5))
    assert not recwarn, "torch's reasons are kept, not printed"


@pytest.mark.parametrize("provider", [p for p in rows_losses.PROVIDERS if not p.compiles], ids=lambda p: p.name)
def test_peers_of_the_three_losses_ignore_the_same_pixels(provider):
    if provider.missing():
        pytest.skip(f"{provider.needs} is not installed")
    inputs = rows_losses.batch(2, 3, 64, 64)
    expected = rows_losses.provider(rows_losses.eager)(doubled(inputs))()
    assert (inputs["target"] == 255).any() and error(provider.prepare(inputs)(), expected) <= 1e-6
