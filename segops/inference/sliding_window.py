"""segops.inference.sliding_window: an image of any size through a model of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from os import PathLike

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _checks
from ._model import MERGES, Model, evaluating, from_merge, image_batch, labels_of, logits_of, to_merge
from ._progress import reporting
from ._windows import WEIGHTS, Band, profile, starts, total


def sliding_window(
    model: Model,
    image: Tensor,
    *,
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    weight: str = "uniform",
    merge: str = "logit",
    batch_size: int = 1,
    labels: bool = False,
    store: str | PathLike | torch.device | None = None,
    device: str | torch.device | None = None,
    pad_value: float = 0.0,
    align_corners: bool = False,
    progress: bool | Callable[[int, int], None] = False,
) -> Tensor:
    r"""Run a model on overlapping windows of images, and average what it says.

    Only the rows that a window may still add to are held as sums of all classes: ``K x window x W`` numbers, however
    high the image is. Finished rows are written once, to where ``store`` says, or as labels.

    Args:
        model: a module or any callable from images ``(B, C, h, w)`` to logits ``(B, K, h', w')``, or to a mapping with
            them under ``"out"`` (torchvision). Logits of another size are resized bilinearly. A module runs in
            evaluation mode and is left as it was (not one that a callable hides); no gradient is kept.
        image: ``(N, C, H, W)``, any dtype that the model takes.
        window: rows and columns, or one number for both. Smaller images are padded below and on the right.
        stride: from one window to the next; at most the window. Default: two thirds of it. The last window of a row
            or column is shifted back to end with the image.
        weight: of a window's pixels in the average: ``"uniform"`` (default), or ``"gaussian"``, centred, with a
            standard deviation of an eighth of the window (nnU-Net).
        merge: average ``"logit"`` s (default; MMSegmentation, nnU-Net) or ``"probability"`` s (softmax; of one class,
            sigmoid).
        batch_size: windows that go through the model together, from all images. Default 1.
        labels: return the most probable labels in place of logits; the logits of the whole image never exist.
        store: where the result lies: a device, or a path for an ``.npy`` file that the result is mapped to
            (``numpy.memmap``), for more than memory holds. Default: the device of ``image``.
        device: where the windows are moved to, and summed. Default: the device of ``image``.
        pad_value: of pixels outside of the image. Default 0.
        align_corners: how logits of another size are resized. Default ``False``.
        progress: ``True`` shows a bar (needs rich), a callable gets (windows done, windows in all). Default: nothing.

    Returns:
        ``(N, K, H, W)`` float32 (float64, if the model says so) logits; with ``merge="probability"`` their softmax is
        the average. With ``labels=True`` ``(N, H, W)``, uint8 (int64 for more than 256 classes).

    Raises:
        TypeError: for arguments of the wrong kind, or a model that returns no tensor.
        ValueError: for shapes and options that do not fit.
        ModuleNotFoundError: for ``progress=True`` without rich.

    Example:
        >>> import torch, segops
        >>> model = torch.nn.Conv2d(3, 5, 1)
        >>> image = torch.randn(1, 3, 50, 70)
        >>> out = segops.inference.sliding_window(model, image, window=32, weight="gaussian", batch_size=4)
        >>> torch.testing.assert_close(out, model(image).detach())
        >>> segops.inference.sliding_window(model, image, window=32, labels=True).dtype
        torch.uint8
    """
    image = image_batch("image", image)
    size = _checks.pair("window", window, 1)
    step = [max(2 * s // 3, 1) for s in size] if stride is None else _checks.pair("stride", stride, 1)
    if any(a > b for a, b in zip(step, size)):
        raise ValueError(f"stride: expected at most the window, {size}, got {stride}")
    _checks.choice("weight", weight, WEIGHTS)
    _checks.choice("merge", merge, MERGES)
    _checks.count("batch_size", batch_size, 1)
    height, width = image.shape[2:]
    missing = [max(s - n, 0) for s, n in zip(size, (height, width))]
    padded = F.pad(image, (0, missing[1], 0, missing[0]), value=pad_value) if any(missing) else image
    tops, lefts = (starts(n, s, d) for n, s, d in zip(padded.shape[2:], size, step))
    sides = [profile(s, weight) for s in size]
    totals = (total(padded.shape[2], tops, sides[0]), total(padded.shape[3], lefts, sides[1]))
    places = [(n, top, left) for top, n, left in product(tops, range(len(image)), lefts)]
    out = _Output(tuple(image.shape), labels, merge, image.device if store is None else store)
    band: Band | None = None
    with evaluating(model), reporting(progress) as report:
        for place, values in _weighted(
            model, padded, places, sides, merge, batch_size, device or image.device, align_corners, report
        ):
            if band is None:
                sums = values.new_zeros(len(image), len(values), size[0], padded.shape[3])
                band = Band(sums, padded.shape[2], totals, out.write)
            band.add(*place, values)
        assert band is not None  # there is at least one window
        band.close()
    return out.result


def _weighted(
    model: Model,
    image: Tensor,
    places: list[tuple[int, int, int]],
    sides: list[Tensor],
    merge: str,
    batch_size: int,
    device: str | torch.device,
    align_corners: bool,
    report: Callable[[int, int], None],
) -> Iterator[tuple[tuple[int, int, int], Tensor]]:
    """Each place (image, row, column), and what is to be added there: (K, h, w), weighted."""
    height, width = (len(side) for side in sides)
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        crops = [image[n, :, top : top + height, left : left + width] for n, top, left in batch]
        values = to_merge(logits_of(model, torch.stack(crops).to(device), align_corners), merge)
        down, across = (side.to(values) for side in sides)
        yield from zip(batch, values * (down[:, None] * across))
        report(first + len(batch), len(places))


class _Output:
    """Where finished rows go: logits or labels, in memory or in a file."""

    def __init__(self, shape: tuple[int, ...], labels: bool, merge: str, store: str | PathLike | torch.device):
        self.shape, self.labels, self.merge, self.store = shape, labels, merge, store
        self.result: Tensor

    def write(self, top: int, mean: Tensor) -> None:
        """Rows (N, K, h, W) of averages, from row ``top`` on; what is padding is cut off."""
        height, width = self.shape[2:]
        rows = from_merge(mean, self.merge)[:, :, : max(height - top, 0), :width]
        rows = labels_of(rows) if self.labels else rows
        if top == 0:
            self.result = self._allocate((*rows.shape[:-2], height, width), rows.dtype)
        self.result[..., top : top + rows.shape[-2], :].copy_(rows)

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        place = _device_or_path(self.store)
        if isinstance(place, torch.device):
            return torch.empty(shape, dtype=dtype, device=place)
        name = str(dtype).removeprefix("torch.")
        return torch.from_numpy(np.lib.format.open_memmap(place, "w+", np.dtype(name), shape))


def _device_or_path(store: str | PathLike | torch.device) -> str | PathLike | torch.device:
    """A string is a device, if torch knows one of that name."""
    try:
        return torch.device(store) if isinstance(store, str) else store
    except RuntimeError:
        return store
