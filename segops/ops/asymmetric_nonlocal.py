"""segops.asymmetric_nonlocal: pyramid_pool of keys and values, then nonlocal_attention."""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from .nonlocal_attention import nonlocal_attention
from .pyramid_pool import Sizes, _grids, pyramid_pool


def asymmetric_nonlocal(
    query: Tensor, key: Tensor, value: Tensor, *, sizes: Sizes = (1, 3, 6, 8), scale: float | None = None
) -> Tensor:
    r"""Attention of every position to a few averages of the map: keys and values are pooled to a pyramid.

    Zhu et al., *Asymmetric Non-local Neural Networks for Semantic Segmentation*, 2019, equations 8 to 10:

    .. math:: y = softmax(s \, q^T P(k)) \, P(v)^T,

    where P, :func:`segops.pyramid_pool`, gives the averages of all levels of ``sizes``, 110 by default. Linear in the
    number of positions; each map is read once for the pyramid, and the softmax is :func:`segops.nonlocal_attention`.

    Args:
        query: ``(N, D, H, W)``; float64, float32, bfloat16 or float16.
        key: ``(N, D, H', W')``, the same dtype: any size, usually that of ``query``.
        value: ``(N, C, H', W')``, the same dtype.
        sizes: of the levels, as for :func:`segops.pyramid_pool`. Default (1, 3, 6, 8).
        scale: s. ``None`` (default) is ``D**-0.5``, as published (:func:`segops.nonlocal_attention` has 1 instead).

    Returns:
        ``(N, C, H, W)`` in the dtype of ``value`` (inside autocast that of torch's matrix
        products).

    The published code pools after the 1x1 convolutions of keys and values, and so do the modules
    :class:`segops.nn.APNB` and :class:`segops.nn.AFNB`: before them would be the same where no ReLU follows.

    Raises:
        TypeError: for what is no dense floating-point tensor, for different dtypes, or sizes that are no integers.
        ValueError: for shapes, devices, sizes or a scale that do not fit, or an empty map.

    Example:
        >>> import torch, segops
        >>> x = torch.randn(2, 16, 9, 9)
        >>> segops.asymmetric_nonlocal(x, x, x[:, :6]).shape
        torch.Size([2, 6, 9, 9])
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        _checks.logit_map(name, x)
        _checks.same_device(name, x, "query", query)
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: expected {query.dtype} like query, got {x.dtype}")
    n, dims = query.shape[:2]
    if key.shape[:2] != query.shape[:2]:
        raise ValueError(f"key: expected shape ({n}, {dims}, H, W) to go with query, got {_checks.shape(key)}")
    if (value.shape[0], *value.shape[2:]) != (n, *key.shape[2:]):
        form = f"({n}, C, {key.shape[2]}, {key.shape[3]})"
        raise ValueError(f"value: expected shape {form} to go with key, got {_checks.shape(value)}")
    _grids(sizes)
    factor = dims**-0.5 if scale is None else _checks.finite("scale", scale)
    keys, values = pyramid_pool(key, sizes), pyramid_pool(value, sizes)
    queries = query.flatten(2).to(keys.dtype)  # inside autocast averages are float32
    out = nonlocal_attention(queries, keys, values, scale=factor)
    return out.unflatten(2, query.shape[2:])
