"""segops.nonlocal_attention: checks, the choice of the mode, and registration of the one with a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks, _registry
from ..reference import nonlocal_attention as reference

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


def nonlocal_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mode: str = "embedded_gaussian", scale: float | None = None
) -> Tensor:
    r"""Attention of every position to all positions, without a matrix of all pairs in memory.

    The non-local operation of Wang et al., *Non-local Neural Networks*, 2018, equation 1,

    .. math:: y_i = \frac{1}{C_i} \sum_j f(\theta_i, \phi_j) \, g_j

    of what its linear maps have made of the input: ``query`` is :math:`\theta`, ``key`` :math:`\phi`, ``value``
    :math:`g`. ``mode`` is the pairwise function:

    - ``"embedded_gaussian"``, ``"gaussian"``: :math:`\exp(s \, \theta_i \cdot \phi_j)` over its sum, a softmax. The two
      differ in what they are given: ``"gaussian"`` takes the input itself as query and key.
    - ``"dot_product"``: :math:`s \, \theta_i \cdot \phi_j` over the number of keys. By associativity values times keys
      come first: linear in the number of positions.
    - ``"concatenation"``: :math:`ReLU(w_\theta^T \theta_i + w_\phi^T \phi_j)` over the number of keys. ``query`` and
      ``key`` are these two linear maps, of **one** channel each.

    Args:
        query: ``(N, D, H, W)`` or ``(N, D, P)``; float64, float32, bfloat16 or float16 (summed in float32).
        key: ``(N, D, H', W')`` or ``(N, D, K)``: as many positions as there are, sub-sampled or pooled ones say.
        value: ``(N, C, H', W')`` or ``(N, C, K)``, with the positions of ``key``; any number of channels.
        mode: see above.
        scale: s. ``None`` (default) is 1, as in the paper: nothing is scaled. mmcv's ``use_scale`` is
            ``scale=D**-0.5``; it scales ``"embedded_gaussian"`` alone. ``"concatenation"`` has no scale.

    Returns:
        ``(N, C, H, W)`` or ``(N, C, P)``: the positions of ``query``, the dtype of ``value``; inside autocast that
        of torch's matrix products, of ``"concatenation"`` float32.

    Differentiable once with respect to all three, in ``"dot_product"`` any number of times. NaN or infinite energies
    make their query NaN.

    Raises:
        TypeError: for what is no dense floating-point tensor, or different dtypes.
        ValueError: for shapes, devices or options that do not fit, no channels or no positions.

    Example:
        >>> import torch, segops
        >>> x = torch.randn(2, 16, 9, 9)
        >>> pooled = torch.nn.functional.max_pool2d(x, 2)
        >>> segops.nonlocal_attention(x, pooled, pooled[:, :6]).shape
        torch.Size([2, 6, 9, 9])
        >>> segops.nonlocal_attention(x, x, x, mode="dot_product", scale=0.25).shape
        torch.Size([2, 16, 9, 9])
    """
    _checks.choice("mode", mode, MODES)
    _check_maps(query, key, value)
    factor = 1.0 if scale is None else _checks.finite("scale", scale)
    q, k, v = query.flatten(2), key.flatten(2), value.flatten(2)
    if mode == "concatenation":
        if scale is not None:
            raise ValueError(f"scale: expected None for mode 'concatenation', got {scale}")
        if query.shape[1] != 1:
            raise ValueError(
                f"query: expected one channel for mode 'concatenation', the linear map's, got {_checks.shape(query)}"
            )
        from .nonlocal_concatenation import nonlocal_concatenation

        out = nonlocal_concatenation(q[:, 0], k[:, 0], v)
    elif mode == "dot_product":
        out = _dot_product(q, k, v, factor)
    else:
        out = _registry.call(torch.ops.segops.nonlocal_attention, *_checks.lowered(q, k, v), factor)[0]
    return out.unflatten(2, query.shape[2:]) if query.dim() == 4 else out


def _check_maps(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        _checks.pixels(name, x)
        _checks.same_device(name, x, "query", query)
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype} like query, got {x.dtype}")
    n, channels = query.shape[:2]
    if key.shape[:2] != query.shape[:2]:
        raise ValueError(f"key: expected shape ({n}, {channels}, ...) to go with query, got {_checks.shape(key)}")
    if value.shape[0] != n or value.shape[2:] != key.shape[2:]:
        form = ", ".join(map(str, (n, "C", *key.shape[2:])))
        raise ValueError(f"value: expected shape ({form}) to go with key, got {_checks.shape(value)}")


def _dot_product(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The keys' number divides while sums are wide: halves neither overflow nor lose digits once more."""
    start = value.new_zeros(1)  # which beta = 0 leaves out
    return torch.baddbmm(start, value, key.mT, beta=0, alpha=scale / key.shape[2]) @ query


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    n, queries = query.shape[0], query.shape[2]
    sums = _checks.sum_dtype(query)
    return query.new_empty(n, value.shape[1], queries), query.new_empty(n, queries, dtype=sums)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _grad_lse: Tensor):
    return *torch.ops.segops.nonlocal_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


def _fake_backward(grad, query, key, value, out, lse, scale) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


_registry.register(
    "nonlocal_attention(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor, Tensor)",
    file="nonlocal_attention",
    reference=reference.nonlocal_attention,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    batch=(0, 1, 2),
    autocast=None,
)
_registry.register(
    "nonlocal_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
    "float scale) -> (Tensor, Tensor, Tensor)",
    file="nonlocal_attention",
    reference=reference.nonlocal_attention_backward,
    fake=_fake_backward,
    autocast=None,
)
