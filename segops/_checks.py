"""Argument checks that several operators share: each names the argument, what came and what was expected."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .reference.halves import sum_dtype

MAX_FEATURES = 24  # as csrc/include/segops/simplex.h has it


def shape(x: Tensor) -> str:
    """A shape as messages show it."""
    return str(tuple(x.shape))


def dense(name: str, x: Any, form: str) -> Tensor:
    """A dense tensor; ``form`` says which dimensions it has."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor {form}, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}")
    return x


def tensor(name: str, x: Any, dim: int, form: str) -> Tensor:
    """A dense tensor with ``dim`` dimensions; ``form`` says which."""
    if dense(name, x, form).dim() != dim:
        raise ValueError(f"{name}: expected {dim} dimensions {form}, got shape {shape(x)}")
    return x


def floating(name: str, x: Tensor) -> Tensor:
    """A tensor of a real floating dtype."""
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {x.dtype}")
    return x


def logit_map(name: str, x: Any) -> Tensor:
    """A map of logits (N, C, H, W), no dimension but N empty."""
    x = floating(name, tensor(name, x, 4, "(N, C, H, W)"))
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected at least one channel, row and column, got shape {shape(x)}")
    return x


def pixels(name: str, x: Any) -> Tensor:
    """A floating (N, C, H, W) or (N, C, P) with at least one channel and one pixel."""
    x = floating(name, tensor(name, x, 3 if isinstance(x, Tensor) and x.dim() == 3 else 4, "(N, C, H, W) or (N, C, P)"))
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: expected at least one channel and one pixel, got shape {shape(x)}")
    return x


def same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors that live together."""
    if x.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} like {other_name}, got {x.device}")


def query_key_value(query: Any, key: Any, value: Any) -> None:
    """Maps that attention within one map takes: of one dtype, on one device, at least one channel each."""
    for name, x, channels in (("query", query, "D"), ("key", key, "D"), ("value", value, "C")):
        if floating(name, tensor(name, x, 4, f"(N, {channels}, H, W)")).shape[1] == 0:
            raise ValueError(f"{name}: expected at least one channel, got shape {shape(x)}")
    for name, x in (("key", key), ("value", value)):
        same_device(name, x, "query", query)
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype} like query, got {x.dtype}")
    if key.shape != query.shape:
        raise ValueError(f"key: expected shape {shape(query)} like query, got {shape(key)}")
    n, _, height, width = query.shape
    if (value.shape[0], *value.shape[2:]) != (n, height, width):
        raise ValueError(f"value: expected shape ({n}, C, {height}, {width}) to go with query, got {shape(value)}")


def features(name: str, x: Any, batch: int, points: int, like: Tensor, like_name: str) -> Tensor:
    """Feature maps (N or 1, D, P) for ``batch`` images of ``points`` points, in the dtype of the computation."""
    x = floating(name, tensor(name, x, 3, "(N or 1, D, P)"))
    same_device(name, x, like_name, like)
    if x.shape[0] not in (1, batch) or x.shape[2] != points:
        raise ValueError(f"{name}: expected shape ({batch} or 1, D, {points}) to go with {like_name}, got {shape(x)}")
    if not 1 <= x.shape[1] <= MAX_FEATURES:
        raise ValueError(f"{name}: expected 1 to {MAX_FEATURES} features per point, got D = {x.shape[1]}")
    return x


def _is_finite(x: Any) -> bool:
    """As math.isfinite, which torch.compile can not follow where a number is symbolic."""
    return x - x == 0


def positive(name: str, x: Any) -> float:
    """A finite number above 0."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    if not (_is_finite(x) and float(x) > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {x}")
    return float(x)


def positives(name: str, x: Any, count: int) -> list[float]:
    """One positive number for all of ``count``, or one each."""
    if not isinstance(x, Sequence) or isinstance(x, str):
        return [positive(name, x)] * count
    if len(x) != count:
        raise ValueError(f"{name}: expected one number or {count}, got {len(x)}")
    return [positive(f"{name}[{i}]", value) for i, value in enumerate(x)]


def filled(values: Iterable[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers as a tensor (n,) that is filled where it lies: for a copy from the host, the host waits for a GPU,
    and a CUDA graph refuses it."""
    runs = [torch.full((len(list(run)),), x, dtype=dtype, device=device) for x, run in itertools.groupby(values)]
    return runs[0] if len(runs) == 1 else torch.cat(runs or [torch.empty(0, dtype=dtype, device=device)])


def fraction(name: str, x: Any) -> float:
    """A number from 0 to 1."""
    if not 0 <= finite(name, x) <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {x}")
    return float(x)


def finite(name: str, x: Any) -> float:
    """A finite number."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    if not _is_finite(x):
        raise ValueError(f"{name}: expected a finite number, got {x}")
    return float(x)


def integer(name: str, x: Any) -> int:
    """An integer."""
    if isinstance(x, bool) or not isinstance(x, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(x).__name__}")
    return int(x)


def count(name: str, x: Any, least: int = 0) -> int:
    """An integer from ``least`` on."""
    if integer(name, x) < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {x}")
    return int(x)


def labels(name: str, x: Any, like: Tensor, like_name: str) -> Tensor:
    """Integer (or bool) labels (N, ...) as int64; kernels check their range."""
    dense(name, x, "of labels (N, ...)")
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"{name}: expected integer labels, got {x.dtype}")
    same_device(name, x, like_name, like)
    return x.long()


def narrow_labels(name: str, x: Any) -> Tensor:
    """Integer labels in a dtype that kernels read as it is: uint8, int16, int32 or int64; bool as uint8."""
    dense(name, x, "of labels")
    if x.is_floating_point() or x.is_complex():
        raise TypeError(f"{name}: expected integer labels, got {x.dtype}")
    if x.dtype == torch.bool:
        return x.view(torch.uint8)
    return x if x.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64) else x.long()


def class_weight(weight: Any, like: Tensor, like_name: str, name: str = "class_weight") -> Tensor:
    """Weights (C,) of the classes of ``like`` (N, C, ...); no gradient flows into them."""
    floating(name, tensor(name, weight, 1, "(C,)"))
    same_device(name, weight, like_name, like)
    if len(weight) != like.shape[1]:
        raise ValueError(f"{name}: expected shape ({like.shape[1]},), got {shape(weight)}")
    return weight.detach()


def pair(name: str, x: Any, least: int) -> list[int]:
    """Two integers, for rows and columns, or one for both."""
    both = list(x) if isinstance(x, Sequence) and not isinstance(x, str) else [x, x]
    if len(both) != 2:
        raise ValueError(f"{name}: expected one integer or two, got {len(both)}")
    if any(integer(name, value) < least for value in both):
        raise ValueError(f"{name}: expected integers >= {least}, got {x}")
    return [int(value) for value in both]


def choice(name: str, x: Any, choices: Sequence[str]) -> str:
    """One of a few words."""
    if x not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {x!r}")
    return x


def widened(x: Tensor) -> Tensor:
    """Half precision is read and written; the sums are float32."""
    return x.to(sum_dtype(x))


def autocasting(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; meta tensors have none."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def narrowed(out: Tensor, like: Tensor) -> Tensor:
    """Back to the dtype that came in; inside autocast results stay float32, as torch's own reductions do."""
    return out if autocasting(like) else out.to(like.dtype)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inside autocast, the dtype that torch's own matrix products take there; float64 stays."""
    if not autocasting(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
