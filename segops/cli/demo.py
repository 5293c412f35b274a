"""``python -m segops demo``: refine a coarse labelling of a photo with the dense CRF and draw what happened."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from segops.data import ASTRONAUT, IGNORE

from ._run import chosen_device, fail

if TYPE_CHECKING:
    import torch

CROP = 64  # side of the square on which the lattice is compared with the exact filter
MOST_LABELS = 64


def demo(
    image: Annotated[
        Path | None, typer.Option(help="A photo. Default: one of an astronaut, from scikit-image.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Its coarse labelling: an indexed or grey picture of the same size, 255 where unlabelled."),
    ] = None,
    names: Annotated[str | None, typer.Option(help="Names of the labels: sky,tree,road")] = None,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("demo.png"),
    confidence: Annotated[float, typer.Option(min=0.01, max=0.99, help="Probability of the given labels.")] = 0.6,
    iterations: Annotated[int, typer.Option(min=0)] = 10,
    spatial_sigma: Annotated[float, typer.Option(help="Pixels.")] = 3.0,
    spatial_weight: float = 3.0,
    bilateral_sigma_xy: Annotated[float, typer.Option(help="Pixels.")] = 30.0,
    bilateral_sigma_rgb: Annotated[float, typer.Option(help="Of 0..255.")] = 10.0,
    bilateral_weight: float = 5.0,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: cuda where there is one.")] = "auto",
) -> None:
    """Refine a coarse labelling of a photo with the dense CRF, and draw photo, labels and confidence side by side."""
    photo, coarse, legend = load(image, labels, names)
    if not output.absolute().parent.is_dir():
        fail(f"there is no folder {output.absolute().parent} to write {output.name} into")

    import torch
    from rich.console import Console

    import segops
    from segops._backends import BackendError

    from .picture import draw

    device = chosen_device(device)
    pixels = torch.from_numpy(photo).to(device).permute(2, 0, 1)[None]
    logits = soft_logits(torch.from_numpy(coarse).to(device), len(legend), confidence)[None]

    def crf(window: tuple[slice, slice], algorithm: str = "lattice") -> torch.Tensor:
        return segops.dense_crf(
            logits[..., window[0], window[1]],
            pixels[..., window[0], window[1]],
            iterations=iterations,
            spatial_sigma=spatial_sigma,
            spatial_weight=spatial_weight,
            bilateral_sigma_xy=bilateral_sigma_xy,
            bilateral_sigma_rgb=bilateral_sigma_rgb,
            bilateral_weight=bilateral_weight,
            algorithm=algorithm,
        )

    console = Console(highlight=False, soft_wrap=True)
    height, width = coarse.shape
    console.print(f"[bold]photo[/]    {image or 'astronaut'}, {width} x {height}, {len(legend)} labels", markup=True)
    try:
        backend = segops.explain("dense_crf", logits, pixels).replace("\n", "\n         ")
        console.print(f"[bold]backend[/]  {backend}")
        with console.status("the first call loads and starts everything, so it is not timed"):
            for algorithm in ("lattice", "exact"):
                crf(np.s_[:16, :16], algorithm)
    except (ValueError, BackendError) as error:
        fail(str(error))
    with console.status("refining"):
        marginals, seconds = timed(lambda: crf(np.s_[:, :]), device)
    sure, refined = (t[0].cpu().numpy() for t in marginals.max(1))
    changed = (refined != coarse) & (coarse != IGNORE)
    console.print(
        f"[bold]time[/]     {duration(seconds)} for everything that dense_crf does: features, two lattices, "
        f"{iterations} iterations (median of up to five calls, after one that is not timed)"
    )
    console.print(
        f"[bold]labels[/]   {changed.sum() / max((coarse != IGNORE).sum(), 1):.1%} of the labelled pixels changed"
    )

    window = busiest(1 - sure, CROP)
    with console.status("comparing with the exact filter"):
        lattice, lattice_seconds = timed(lambda: crf(window), device)
        exact, exact_seconds = timed(lambda: crf(window, "exact"), device)
    same = (lattice.argmax(1) == exact.argmax(1)).float().mean().item()
    y, x = window
    console.print(
        f"[bold]exact[/]    on the least certain {x.stop - x.start} x {y.stop - y.start} pixels (from x = {x.start}, "
        f"y = {y.start}): lattice {duration(lattice_seconds)}, exact {duration(exact_seconds)}; same label on "
        f"{same:.2%} of the pixels, marginals differ by {(lattice - exact).abs().mean():.1e} on average"
    )
    draw(photo, coarse, refined, sure, legend, output)
    console.print(
        f"Refined {len(legend)} labels of {width} x {height} pixels in {duration(seconds)} on {device}; "
        f"photo, coarse labels, refined labels and confidence are side by side in {output}.",
        markup=False,
    )


def load(image: Path | None, labels: Path | None, names: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The photo (H, W, 3), its labels (H, W) as 0, 1, ... or IGNORE, and the name of each label."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError

        if image is None:
            import skimage.data

            photo = skimage.data.astronaut()
    except ModuleNotFoundError as error:
        fail(f"the demo needs {error.name}; install it together with matplotlib, pillow and scikit-image")

    def read(path: Path, what: str) -> Image.Image:
        try:
            picture = Image.open(path)
            picture.load()
        except FileNotFoundError:
            fail(f"{what} {path} does not exist")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            fail(f"{what} {path} can not be read as a picture ({error})")
        return picture

    if image is not None:
        photo = np.asarray(ImageOps.exif_transpose(read(image, "--image")).convert("RGB")).copy()
        if labels is None:
            fail("--image needs --labels: an indexed or grey picture of the same size, 255 where unlabelled")
    known: tuple[str, ...] = ()
    if labels is None:
        mask = np.asarray(Image.open(str(files("segops.data") / "astronaut_labels.png")))
        known = ASTRONAUT
    else:
        picture = read(labels, "--labels")
        if picture.mode not in {"P", "L", "1", "I", "I;16"}:
            fail(f"--labels {labels} is a colour picture ({picture.mode}), expected label numbers: indexed or grey")
        mask = np.asarray(picture).astype(np.int64)
    if mask.shape != photo.shape[:2]:
        fail(
            f"--labels {labels} is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"expected the size of the photo, {photo.shape[1]} x {photo.shape[0]}"
        )

    present = np.unique(mask[mask != IGNORE])
    if not 2 <= len(present) <= MOST_LABELS:
        fail(f"--labels {labels} holds {len(present)} labels (255 is none), expected 2 to {MOST_LABELS}")
    legend = [known[k] if k < len(known) else f"label {k}" for k in present]
    if names is not None:
        legend = [name.strip() for name in names.split(",")]
        if len(legend) != len(present):
            fail(f"--names has {len(legend)} names, and the labelling {len(present)} labels: {present.tolist()}")
    coarse = np.where(mask == IGNORE, IGNORE, np.searchsorted(present, mask))
    return photo, coarse, legend


def soft_logits(coarse: torch.Tensor, labels: int, confidence: float) -> torch.Tensor:
    """Log-probabilities (L, H, W): ``confidence`` for the given label, the rest shared by the others; or uniform."""
    import torch

    given = torch.arange(labels, device=coarse.device)[:, None, None] == coarse
    p = torch.where(given, confidence, (1 - confidence) / (labels - 1))
    return torch.where(coarse == IGNORE, 1 / labels, p).log()


def timed(call: Callable[[], torch.Tensor], device: str) -> tuple[torch.Tensor, float]:
    """The result of a call, and the median of its seconds over up to five calls (one, if it takes long)."""
    import torch

    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < 2:
        start = time.perf_counter()
        result = call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def duration(seconds: float) -> str:
    """For people: 3.1 ms, 143 ms, 2.1 s."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f} ms"


def busiest(doubt: np.ndarray, side: int) -> tuple[slice, slice]:
    """The window (of at most side x side) with the largest sum."""
    h, w = (min(side, n) for n in doubt.shape)
    total = np.pad(doubt.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    y, x = map(int, np.unravel_index(sums.argmax(), sums.shape))
    return slice(y, y + h), slice(x, x + w)
