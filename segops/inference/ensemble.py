"""segops.inference.ensemble: the average of several models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _checks
from ._model import MERGES, Model, evaluating, from_merge, image_batch, logits_of, to_merge


def ensemble(
    models: Sequence[Model],
    image: Tensor,
    *,
    weights: Sequence[float] | None = None,
    merge: str = "probability",
    align_corners: bool = False,
) -> Tensor:
    r"""Average what several models say of the same images.

    Args:
        models: at least one, each as in :func:`segops.inference.sliding_window`, all with the same classes.
        image: ``(N, C, H, W)``, any dtype that the models take.
        weights: one positive number for each model; their scale does not matter. Default: all the same.
        merge: average ``"probability"`` s (default; softmax, of one class sigmoid) or ``"logit"`` s.
        align_corners: how logits of another size than the image are resized. Default ``False``.

    Returns:
        ``(N, K, H, W)`` float32 (float64, if the models say so) logits; with ``merge="probability"`` their softmax is
        the average.

    Raises:
        TypeError: for arguments of the wrong kind, or a model that returns no tensor.
        ValueError: for shapes and options that do not fit, or models that disagree about the number of classes.

    Example:
        >>> import torch, segops
        >>> models, image = [torch.nn.Conv2d(3, 5, 1) for _ in range(3)], torch.randn(1, 3, 20, 30)
        >>> segops.inference.ensemble(models, image, weights=[2, 1, 1]).shape
        torch.Size([1, 5, 20, 30])
    """
    image = image_batch("image", image)
    if not isinstance(models, Sequence) or not models:
        raise ValueError("models: expected a list of at least one model")
    shares = [1.0] * len(models) if weights is None else _checks.positives("weights", list(weights), len(models))
    _checks.choice("merge", merge, MERGES)
    total: Tensor | None = None
    for i, (model, share) in enumerate(zip(models, shares)):
        with evaluating(model):
            value = to_merge(logits_of(model, image, align_corners), merge) * (share / sum(shares))
        if total is not None and value.shape != total.shape:
            raise ValueError(f"models[{i}]: expected {total.shape[1]} classes like the first, got {value.shape[1]}")
        total = value if total is None else total.add_(value)
    assert total is not None  # there is at least one model
    return from_merge(total, merge)
