"""segops.nonlocal_concatenation: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import nonlocal_concatenation as reference


def nonlocal_concatenation(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    r"""Attention whose weights are a sum of two scores through ReLU, in :math:`O(P \log P)` and linear memory.

    The concatenation form of Wang et al., *Non-local Neural Networks*, 2018. A linear map of two concatenated vectors
    is a sum of two linear maps, :math:`w^T [\theta_i, \phi_j] = a_i + b_j`, so all that pairs of positions share is

    .. math:: y_i = \frac{1}{K} \sum_j relu(a_i + b_j)\, v_j .

    A key takes part only where :math:`b_j > -a_i`. With the scores sorted, one walk along them gives all sums, and two
    give all gradients: no weight is ever in memory, and nothing cancels that the sum itself does not.

    Args:
        query_score: a, ``(N, Q)``; float64, float32, bfloat16 or float16 (computed in float32, summed in float64).
        key_score: b, ``(N, K)``, the same dtype.
        value: v, ``(N, C, K)``, the same dtype.

    Returns:
        ``(N, C, Q)`` in the dtype of ``value`` (float32 inside autocast), contiguous. ReLU's gradient at exactly 0 is
        0, as torch has it. A score that is not a number spreads as in plain PyTorch; a value that is not one, only to
        the queries whose sum it is in.

    Differentiable once with respect to all three.

    Raises:
        TypeError: for what is no dense floating-point tensor, or for different dtypes.
        ValueError: for shapes or devices that do not fit, no channel, no query or no key.

    Example:
        >>> import torch, segops
        >>> a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[-2.0, 0.5, 1.0]])
        >>> segops.nonlocal_concatenation(a, b, torch.ones(1, 1, 3))
        tensor([[[0.5000, 1.1667]]])
    """
    _scores("query_score", query_score, "(N, Q)")
    _scores("key_score", key_score, "(N, K)")
    _checks.floating("value", _checks.tensor("value", value, 3, "(N, C, K)"))
    for name, x in (("key_score", key_score), ("value", value)):
        _checks.same_device(name, x, "query_score", query_score)
        if x.dtype != query_score.dtype:
            raise TypeError(f"{name}: expected {query_score.dtype} like query_score, got {x.dtype}")
    n, keys = key_score.shape
    if query_score.shape[0] != n:
        raise ValueError(f"query_score: expected shape ({n}, Q) to go with key_score, got {_checks.shape(query_score)}")
    if value.shape[0] != n or value.shape[1] == 0 or value.shape[2] != keys:
        raise ValueError(
            f"value: expected shape ({n}, C, {keys}) with C >= 1 to go with key_score, got {_checks.shape(value)}"
        )
    wide = map(_checks.widened, (query_score, key_score, value))
    return _checks.narrowed(_registry.call(torch.ops.segops.nonlocal_concatenation, *wide), value)


def _scores(name: str, x: Any, form: str) -> None:
    _checks.floating(name, _checks.tensor(name, x, 2, form))
    if x.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one position, got shape {_checks.shape(x)}")


def _fake(query_score: Tensor, key_score: Tensor, value: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], value.shape[1], query_score.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.nonlocal_concatenation_backward(grad, *ctx.saved_tensors)


def _fake_backward(
    grad: Tensor, query_score: Tensor, key_score: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query_score.new_empty(query_score.shape), key_score.new_empty(key_score.shape), value.new_empty(value.shape)


_registry.register(
    "nonlocal_concatenation(Tensor query_score, Tensor key_score, Tensor value) -> Tensor",
    file="nonlocal_concatenation",
    reference=reference.nonlocal_concatenation,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1, 2),
)
_registry.register(
    "nonlocal_concatenation_backward(Tensor grad, Tensor query_score, Tensor key_score, Tensor value)"
    " -> (Tensor, Tensor, Tensor)",
    file="nonlocal_concatenation",
    reference=reference.nonlocal_concatenation_backward,
    fake=_fake_backward,
)
