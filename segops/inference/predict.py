"""segops.inference.predict: windows, scales, mirrors, several models and the CRF in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .. import _checks
from ._model import MERGES, Model, evaluating, image_batch, labels_of, logits_of
from .crf_refine import crf_refine
from .ensemble import ensemble
from .multi_scale_flip import multi_scale_flip
from .sliding_window import sliding_window


def predict(
    model: Model | Sequence[Model],
    image: Tensor,
    *,
    window: int | Sequence[int] | Mapping[str, Any] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool | str = False,
    merge: str = "probability",
    crf: bool | Mapping[str, Any] = False,
    photo: Tensor | None = None,
    labels: bool = False,
) -> Tensor:
    r"""Segment images: a model, or several, with whatever of sliding windows, scales, mirrors and CRF is asked for.

    From the inside out: the models' average (:func:`segops.inference.ensemble`), of windows
    (:func:`segops.inference.sliding_window`), of each resized and mirrored image
    (:func:`segops.inference.multi_scale_flip`), refined (:func:`segops.inference.crf_refine`). Each of them takes a
    model and is one, so that any other order is ``functools.partial`` away.

    Args:
        model: as in :func:`segops.inference.sliding_window`, or a list of models.
        image: ``(N, C, H, W)``, as the model wants it.
        window: size of sliding windows, or a mapping with all options of :func:`segops.inference.sliding_window`
            (``{"window": 512, "weight": "gaussian", "batch_size": 4}``). ``None`` (default): the whole image at once.
        scales: factors of the image's sides. Default: 1 alone.
        flip: mirrors, as in :func:`segops.inference.multi_scale_flip`. Default ``False``.
        merge: what is averaged over models, scales and mirrors: ``"probability"`` (default) or ``"logit"``. Over
            windows it is what ``window`` says, by default logits.
        crf: refine with the dense CRF: ``True``, or a mapping with its options. Default ``False``.
        photo: ``(N, C', H, W)``, what the CRF sees. Default: ``image``, whose colours its sigmas have to fit then.
        labels: return labels in place of logits. With windows alone, the logits of the whole image never exist.

    Returns:
        ``(N, K, H, W)`` logits, or with ``labels=True`` ``(N, H, W)`` uint8 (int64 for more than 256 classes).

    Raises:
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> import torch, segops
        >>> model, photo = torch.nn.Conv2d(3, 5, 1), torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8)
        >>> image = photo / 255
        >>> segops.inference.predict(
        ...     model, image, window=32, scales=(0.75, 1), flip=True, crf={"iterations": 2}, photo=photo, labels=True
        ... ).shape
        torch.Size([1, 60, 80])
    """
    image = image_batch("image", image)
    _checks.choice("merge", merge, MERGES)
    run: Model = partial(ensemble, model, merge=merge) if isinstance(model, Sequence) else model
    options = dict(window) if isinstance(window, Mapping) else {} if window is None else {"window": window}
    augmented = list(scales) != [1.0] if isinstance(scales, Sequence) else True
    augmented |= flip not in (False, "none")
    last = not augmented and not crf
    if options:
        options["labels"] = labels and last
        run = partial(sliding_window, run, **options)
    if options and last:
        return run(image)
    if augmented:
        logits = multi_scale_flip(run, image, scales=scales, flip=flip, merge=merge)
    else:
        with evaluating(run):
            logits = logits_of(run, image)
    if crf:
        crf_options = dict(crf) if isinstance(crf, Mapping) else {}
        logits = crf_refine(logits, image if photo is None else photo, **crf_options)
    return labels_of(logits) if labels else logits
