"""segops.encoding: checks and registration; the work is in the layers that share its name."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import encoding as reference


def encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    r"""The encoding layer: how the pixels of an image lie around a few codewords, in an order-free description.

    .. math:: a_{ik} = softmax_k(s_k \|x_i - c_k\|^2), \quad e_k = \sum_i a_{ik} (x_i - c_k),

    of Zhang et al., *Deep TEN: Texture Encoding Network*, 2017, as *Context Encoding for Semantic Segmentation*, 2018,
    uses it. The N x P x K x D residuals are never made: all is products of matrices around the mean codeword, so that
    what cancels is no larger than codewords are apart.

    Args:
        x: features ``(N, D, H, W)`` or ``(N, D, P)``; float64, float32, bfloat16 or float16 (summed in float32).
        codewords: ``(K, D)``; cast to the dtype of the computation, as ``scale``.
        scale: ``(K,)``. The sign is that of the authors' code, which has no minus before it: **negative** scales prefer
            close codewords (the papers write :math:`-s_k`).

    Returns:
        ``(N, K, D)``, contiguous, in the dtype of ``x`` (float32 inside autocast). Not-a-number and infinite values
        spread over their image as in plain PyTorch.

    Differentiable once with respect to all three.

    Raises:
        TypeError: for what is no dense floating-point tensor.
        ValueError: for shapes or devices that do not fit, no pixels, no channels or no codewords.

    Example:
        >>> import torch, segops
        >>> x, codewords = torch.randn(2, 16, 9, 9), torch.randn(4, 16, requires_grad=True)
        >>> encoded = segops.encoding(x, codewords, -torch.rand(4))
        >>> encoded.sum().backward()
        >>> encoded.shape, codewords.grad.shape
        (torch.Size([2, 4, 16]), torch.Size([4, 16]))
    """
    _checks.pixels("x", x)
    _checks.floating("codewords", _checks.tensor("codewords", codewords, 2, "(K, D)"))
    _checks.floating("scale", _checks.tensor("scale", scale, 1, "(K,)"))
    for name, tensor in (("codewords", codewords), ("scale", scale)):
        _checks.same_device(name, tensor, "x", x)
    if codewords.shape[0] == 0 or codewords.shape[1] != x.shape[1]:
        raise ValueError(
            f"codewords: expected shape (K, {x.shape[1]}) with K >= 1 to go with x, got {_checks.shape(codewords)}"
        )
    if scale.shape[0] != codewords.shape[0]:
        raise ValueError(
            f"scale: expected shape ({codewords.shape[0]},) to go with codewords, got {_checks.shape(scale)}"
        )
    sums = _checks.sum_dtype(x)
    out = _registry.call(torch.ops.segops.encoding, x.flatten(2), codewords.to(sums), scale.to(sums))
    return _checks.narrowed(out, x)


def _fake(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], codewords.shape[0], x.shape[1])


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor):
    return torch.ops.segops.encoding_backward(grad, *ctx.saved_tensors)


def _fake_backward(grad: Tensor, x: Tensor, codewords: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    like = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=like),
        torch.empty_like(codewords, memory_format=like),
        torch.empty_like(scale, memory_format=like),
    )


_registry.register(
    "encoding(Tensor x, Tensor codewords, Tensor scale) -> Tensor",
    file="encoding",
    reference=reference.encoding,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0,),
)
_registry.register(
    "encoding_backward(Tensor grad, Tensor x, Tensor codewords, Tensor scale) -> (Tensor, Tensor, Tensor)",
    file="encoding",
    reference=reference.encoding_backward,
    fake=_fake_backward,
)
