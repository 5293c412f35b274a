"""Rows of point-wise spatial attention with over-complete masks, and the ways to write it in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_types import BFLOAT16, Inputs, Provider, Workload, doubled, with_gradients
from torch import Tensor

import segops

Attend = Callable[[Tensor, Tensor], Tensor]  # of value and attention


def maps(size: int, gradients: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """512 channels; 30 is half of a crop of 465 pixels at stride 8, as in PSANet, 59 the same without the shrinking."""
    g = torch.Generator().manual_seed(0)
    shapes = {"value": (1, 512, size, size), "attention": (1, (2 * size - 1) ** 2, size, size)}
    tensors = {k: torch.randn(s, generator=g).to(dtype).requires_grad_(gradients) for k, s in shapes.items()}
    return {**tensors, "grad": torch.randn(shapes["value"], generator=g).to(dtype)} if gradients else tensors


def provider(make: Callable[[int, int], Attend]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """``make(height, width)`` prepares what depends on the sizes alone, tables of indices say."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        value, attention = inputs["value"], inputs["attention"]
        with value.device:
            function = make(*value.shape[2:])
        if "grad" in inputs:
            return lambda: with_gradients(function, value, attention, grad=inputs["grad"])
        return lambda: [function(value, attention)]

    return prepare


def bytes_moved(inputs: Inputs) -> int:
    """Every tensor once; with gradients value and attention twice, and their gradients once."""
    sizes = {k: t.numel() * t.element_size() for k, t in inputs.items()}
    value, attention = sizes["value"], sizes["attention"]
    return (3 * attention + 6 * value) if "grad" in inputs else attention + 2 * value


def operations(inputs: Inputs) -> float:
    """The product of values and mask; two of that size backward."""
    channels, positions = inputs["value"].shape[1], inputs["value"][0, 0].numel()
    return 2 * channels * positions**2 * (3 if "grad" in inputs else 1)


def table(mode: str, height: int, width: int) -> Tensor:
    """The flat index of the entry of each source and receiver (H W, H W)."""
    y, x, position = torch.arange(height), torch.arange(width), torch.arange(height * width).view(height, width)
    i = y[:, None, None, None] - y[:, None]
    j = x[:, None, None] - x
    own = position[None, None] if mode == "collect" else position[:, :, None, None]
    i, j = (i, j) if mode == "collect" else (-i, -j)
    index = ((i + height - 1) * (2 * width - 1) + j + width - 1) * (height * width) + own
    return index.view(height * width, height * width)


def indexed(mode: str) -> Callable[[int, int], Attend]:
    """The published recipe, mask, softmax, product; the mask by indexing."""

    def make(height: int, width: int) -> Attend:
        index = table(mode, height, width)

        def attend(value: Tensor, attention: Tensor) -> Tensor:
            m = torch.softmax(attention.flatten(1)[:, index], 1)
            return torch.bmm(value.flatten(2), m).view(value.shape)

        return attend

    return make


class Gather(torch.autograd.Function):
    """By torch.take, whose gradient needs no sum here, since no entry is taken twice."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = attention.shape
        return torch.take(attention, index)[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        out = grad.new_zeros(ctx.shape)
        out.view(-1)[index.view(-1)] = grad.view(-1)
        return out, None


def taken(mode: str) -> Callable[[int, int], Attend]:
    def make(height: int, width: int) -> Attend:
        index = table(mode, height, width)

        def attend(value: Tensor, attention: Tensor) -> Tensor:
            m = torch.softmax(Gather.apply(attention, index), 1)
            return torch.bmm(value.flatten(2), m).view(value.shape)

        return attend

    return make


class Diagonals(torch.autograd.Function):
    """A strided view of the attention: [other y, other x, own y from the last, own x from the last]."""

    @staticmethod
    def view(attention: Tensor) -> Tensor:
        n, _, height, width = attention.shape
        positions, columns = height * width, 2 * width - 1
        strides = attention.stride(0), columns * positions, positions, columns * positions - width, positions - 1
        return attention.as_strided((n, height, width, height, width), strides, positions - 1)

    @staticmethod
    def forward(ctx: Any, attention: Tensor) -> Tensor:
        ctx.shape = attention.shape
        n, _, height, width = attention.shape
        return Diagonals.view(attention).reshape(n, height * width, height * width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        out = grad.new_zeros(ctx.shape)
        view = Diagonals.view(out)
        view.copy_(grad.view(view.shape))
        return out


def strided(mode: str) -> Callable[[int, int], Attend]:
    """No table of indices: the mask is a copy of a view, in which the own positions run backwards."""

    def attend(value: Tensor, attention: Tensor) -> Tensor:
        m, flat = Diagonals.apply(attention), value.flatten(2)
        if mode == "collect":
            return torch.bmm(flat, torch.softmax(m, 1)).flip(2).view(value.shape)
        return torch.bmm(flat.flip(2), torch.softmax(m, 2).mT).view(value.shape)

    return lambda height, width: attend


def compiled(make: Callable[[int, int], Attend]) -> Callable[[int, int], Attend]:
    return lambda height, width: torch.compile(make(height, width))


FUNCTIONS = {"collect": segops.psa_collect, "distribute": segops.psa_distribute}


def mask(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], list[Tensor]]]:
    """The matrix alone, of the attention and a table of indices, and its gradient."""

    def prepare(inputs: Inputs) -> Callable[[], list[Tensor]]:
        attention, grad = inputs["attention"], inputs["grad"]
        index = table("collect", *attention.shape[2:]).to(attention.device)
        return lambda: with_gradients(lambda x: function(x, index).view(grad.shape), attention, grad=grad)

    return prepare


def mask_inputs() -> Inputs:
    g = torch.Generator().manual_seed(0)
    attention = torch.randn(1, 117**2, 59, 59, generator=g).requires_grad_()
    return {"attention": attention, "grad": torch.randn(1, 59 * 59, 59, 59, generator=g)}


def indexed_mask(attention: Tensor, index: Tensor) -> Tensor:
    return attention.flatten(1)[:, index]


def mask_bytes(inputs: Inputs) -> int:
    """The matrix and its gradient once, the entries in it read and their gradients written."""
    return 4 * (4 * inputs["grad"].numel() + inputs["attention"].numel())


def oracle(mode: str) -> Callable[[Inputs], Any]:
    return lambda inputs: provider(strided(mode))(doubled(inputs))()


def workload(
    mode: str, size: int, gradients: bool = True, dtype: torch.dtype = torch.float32, late: bool = False
) -> Workload:
    return Workload(
        f"psa_{mode}",
        f"512x{size}x{size}{'_bfloat16' * (dtype == torch.bfloat16)}{'_forward_backward' * gradients}",
        partial(maps, size, gradients, dtype),
        bytes_moved,
        oracle(mode),
        threads=(2,) if size == 59 else (1, 2),
        operations=operations,
        late=late,
    )


WORKLOADS = (
    *(
        workload(mode, size, gradients, late=size == 30)
        for mode in FUNCTIONS
        for size in (30, 59)
        for gradients in (False, True)
    ),
    *[workload(mode, 59, dtype=torch.bfloat16, late=True) for mode in FUNCTIONS] * BFLOAT16,
    Workload(
        "psa_mask",
        "59x59_forward_backward",
        mask_inputs,
        mask_bytes,
        lambda inputs: mask(indexed_mask)(doubled(inputs))(),
        threads=(2,),
        late=True,
    ),
)

PROVIDERS = tuple(
    Provider(name, f"psa_{mode}", provider(make), slow_on=slow_on)
    for mode, function in FUNCTIONS.items()
    for name, make, slow_on in (
        ("segops", lambda height, width, function=function: function, ()),
        ("strided", strided(mode), ()),
        ("indexed", indexed(mode), ()),
        ("taken", taken(mode), ()),
        ("compiled_strided", compiled(strided(mode)), ()),
        ("compiled_indexed", compiled(indexed(mode)), ("59x59",)),
    )
)
PROVIDERS += (
    Provider("segops", "psa_mask", mask(lambda attention, _: segops.psa_mask(attention, "collect"))),
    Provider("taken", "psa_mask", mask(Gather.apply)),
    Provider("indexed", "psa_mask", mask(indexed_mask)),
)
