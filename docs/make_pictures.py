"""Draws the pictures of the documentation with segops itself: python docs/make_pictures.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

import segops
from segops.cli.demo import demo, load, soft_logits
from segops.data import palette
from segops.viz import shade

IMG = Path(__file__).parent / "img"
matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9, "figure.dpi": 160})


def save(figure: Figure, name: str) -> None:
    """Write docs/img/<name>.png."""
    figure.savefig(IMG / f"{name}.png", bbox_inches="tight", pad_inches=0.05, facecolor="white")


def grid(height: int, width: int) -> torch.Tensor:
    """Pixel positions (1, 2, P), x first."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).flatten(1)[None].float()


def dense_crf() -> None:
    """A piece of the demo's photo, before and after 1, 3 and 10 updates."""
    photo, coarse, names = load(None, None, None)
    y, x = slice(10, 200), slice(100, 330)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    logits = soft_logits(torch.from_numpy(coarse), len(names), 0.6)[None]
    figure = Figure(figsize=(10, 2.3), layout="constrained")
    axes = figure.subplots(1, 4)
    for ax, iterations in zip(axes, (0, 1, 3, 10), strict=True):
        marginals = segops.dense_crf(
            logits, image, iterations=iterations, bilateral_sigma_xy=30, bilateral_sigma_rgb=10, bilateral_weight=5
        )
        ax.imshow(shade(photo, marginals[0].argmax(0).numpy(), palette(len(names)))[y, x])
        ax.set_title("the labels that come in" if iterations == 0 else f"{iterations} update{'s' * (iterations > 1)}")
        ax.set_axis_off()
    save(figure, "dense_crf")


def mean_field() -> None:
    """Points in the plane: three arms of a spiral, a few labelled points on each."""
    rng = np.random.default_rng(0)
    arm, t = np.arange(1500) % 3, rng.uniform(0.15, 1, 1500)
    angle, radius = 2 * np.pi * (arm / 3 + 0.9 * t), 3 * t + 0.12 * rng.normal(size=1500)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)])
    given = np.isin(np.arange(1500), rng.choice(1500, 45, replace=False))
    logits = torch.zeros(1, 3, 1500)
    logits[0, arm[given], np.flatnonzero(given)] = 4
    features = torch.from_numpy(points)[None].float() / 0.25
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for ax, iterations in zip(axes, (0, 3, 6, 30), strict=True):
        q = segops.mean_field(logits, [features], [4.0], iterations=iterations)[0].T.numpy()
        sure = (1.5 * q.max(1, keepdims=True) - 0.5).clip(0, 1)  # one third, which is no opinion, is grey
        colours = (1 - sure) * 0.82 + sure * palette(4)[1:][q.argmax(1)] / 255
        ax.scatter(*points, s=3, c=colours)
        if iterations == 0:
            ax.scatter(*points[:, given], s=12, c=colours[given])
        right = (q.argmax(1) == arm).mean()
        ax.set_title(
            f"{iterations} updates: {right:.1%} right" if iterations else f"{given.sum()} of 1500 have a label"
        )
        ax.set(aspect="equal", xticks=[], yticks=[])
    save(figure, "mean_field")


def permutohedral_filter() -> None:
    """The answer to one bright pixel: lattice and exact, their difference, and both along a line."""
    side, sigma = 81, 8
    features = grid(side, side) / sigma
    impulse = torch.zeros(1, 1, side * side)
    impulse[0, 0, side * side // 2] = 1
    lattice = segops.permutohedral_filter(impulse, features).view(side, side).numpy()
    exact = segops.gaussian_filter_exact(impulse, features).view(side, side).numpy()
    figure = Figure(figsize=(10, 2.5), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.3])
    for ax, (title, answer) in zip(axes, {"exact": exact, "lattice": lattice}.items(), strict=False):
        shown = ax.imshow(answer, vmin=0, vmax=1, cmap="magma")
        ax.contour(answer, levels=[0.1, 0.3, 0.5, 0.7, 0.9], colors="white", linewidths=0.4)
        ax.set_title(title)
    figure.colorbar(shown, ax=axes[:2], location="bottom", shrink=0.5, ticks=[0, 0.5, 1])
    difference = axes[2].imshow(lattice - exact, cmap="RdBu_r", vmin=-0.2, vmax=0.2)
    axes[2].set_title("lattice - exact")
    figure.colorbar(difference, ax=axes[2], location="bottom", ticks=[-0.2, 0, 0.2])
    for ax in axes[:3]:
        ax.set_axis_off()
    offset, middle = (np.arange(side) - side // 2) / sigma, side // 2
    axes[3].plot(offset, exact[middle], color="0.2", label="exact")
    axes[3].plot(offset, lattice[middle], color="#d64550", label="lattice, along x")
    axes[3].plot(offset, lattice[:, middle], color="#2f86d1", label="lattice, along y")
    axes[3].set(xlabel="distance in standard deviations", xlim=(-4, 4), ylim=(0, 1.45), yticks=[0, 0.5, 1])
    axes[3].legend(frameon=False, fontsize=7, loc="upper left")
    axes[3].spines[["top", "right"]].set_visible(False)
    save(figure, "permutohedral_filter")
    print(f"permutohedral_filter: the largest difference is {np.abs(lattice - exact).max():.2f}")


def gaussian_filter_exact() -> None:
    """Position and colour as features: the kernel of one pixel, and a photo smoothed by all of them."""
    photo, _, _ = load(None, None, None)
    piece = torch.from_numpy(photo[150:342, 60:316].copy()).permute(2, 0, 1)[None].float()
    height, width = piece.shape[2:]
    features = torch.cat([grid(height, width) / 20, piece.flatten(2) / 25], 1)
    impulse = torch.zeros(1, 1, height * width)
    y, x = 75, 45
    impulse[0, 0, y * width + x] = 1
    values = torch.cat([piece.flatten(2), torch.ones(1, 1, height * width), impulse], 1)
    pictures = {}
    for name, filter in {"exact": segops.gaussian_filter_exact, "lattice": segops.permutohedral_filter}.items():
        out = filter(values, features)[0].view(5, height, width)
        pictures[f"kernel of that pixel, {name}"] = out[4].clamp(1e-3, 1).numpy()
        if name == "exact":
            smooth = (out[:3] / out[3]).permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(piece[0].permute(1, 2, 0).numpy().astype(np.uint8))
    axes[0].plot(x, y, "o", markerfacecolor="none", markeredgecolor="white", markersize=7)
    axes[0].set_title("photo, one pixel marked")
    for ax, (title, kernel) in zip(axes[1:], pictures.items(), strict=False):
        shown = ax.imshow(kernel, cmap="magma", norm=LogNorm(1e-3, 1))
        ax.set_title(title)
    axes[3].imshow(smooth)
    axes[3].set_title("photo, filtered")
    for ax in axes:
        ax.set_axis_off()
    figure.colorbar(shown, ax=axes[1:3], ticks=[1e-3, 1e-2, 1e-1, 1], pad=0.01, shrink=0.85)
    save(figure, "gaussian_filter_exact")


def published_lovasz_grad(foreground: torch.Tensor) -> torch.Tensor:
    """Algorithm 1 as it is published: neighbouring values of the Jaccard loss subtracted."""
    total = foreground.sum()
    jaccard = 1 - (total - foreground.cumsum(0)) / (total + (1 - foreground).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz_grad() -> None:
    """Steps of the Jaccard loss in float32: differences, and the closed form."""
    g = torch.Generator().manual_seed(0)
    colours = {"differences, as published": "#d64550", "closed form": "#2f86d1"}
    rules = dict(zip(colours, (published_lovasz_grad, segops.lovasz_grad), strict=True))
    sizes = [2**k for k in range(6, 23)]
    errors: dict[str, list[float]] = {name: [] for name in rules}
    zeros: dict[str, list[float]] = {name: [] for name in rules}
    for size in sizes:
        x = (torch.rand(size, generator=g) < 0.05).float()
        exact = segops.lovasz_grad(x.double())
        for name, rule in rules.items():
            steps = rule(x)
            errors[name].append(float((steps - exact).norm() / exact.norm()))
            zeros[name].append(float((steps[exact != 0] == 0).float().mean()))
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axes = figure.subplots(1, 3)
    shown = slice(1000, 1120)
    for name, rule in reversed(rules.items()):
        axes[0].plot(np.arange(1000, 1120), rule((torch.arange(1 << 20) % 20 == 0).float())[shown] * 1e5, ".",
                     color=colours[name], markersize=3)  # fmt: skip
        axes[1].loglog(sizes, np.maximum(errors[name], 1e-9), color=colours[name], label=name)
        axes[2].semilogx(sizes, [100 * z for z in zeros[name]], color=colours[name])
    axes[0].set(title="steps 1000 to 1120 of a million, times $10^5$", xlabel="element, largest error first")
    axes[1].set(title="error of the gradient, relative", xlabel="pixels")
    axes[1].legend(frameon=False, fontsize=7)
    axes[2].set(title="% of pixels that wrongly get 0", xlabel="pixels")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, "lovasz_grad")
    print(f"lovasz_grad: at {sizes[-1]} pixels {errors} {zeros}")


def losses() -> None:
    """Focal loss over the probability of the label, and region losses of a square that is too small or too large."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    p = torch.linspace(0.005, 0.995, 200)
    for gamma in (0, 0.5, 1, 2, 5):
        focal = segops.losses.focal_loss(
            torch.logit(p).view(1, 1, -1), torch.ones(1, 1, 200, dtype=torch.long), gamma=gamma, reduction="none"
        )
        left.plot(p, focal.flatten(), label=f"gamma = {gamma}")
    left.set(title="focal loss", xlabel="probability of the label", ylim=(0, 4), xlim=(0, 1))
    sides = torch.arange(1, 61)
    rows = torch.arange(64)

    def squares(side: torch.Tensor) -> torch.Tensor:
        inside = rows < side.view(-1, 1)
        return inside[:, :, None] & inside[:, None, :]

    logits, target = 200.0 * squares(sides) - 100, squares(torch.full((60,), 30)).long()
    curves = {
        "Dice": segops.losses.dice_loss(logits, target, per_image=True, reduction="none"),
        "Tversky, 0.3 and 0.7": segops.losses.tversky_loss(logits, target, per_image=True, reduction="none"),
        "focal Tversky": segops.losses.focal_tversky_loss(logits, target, per_image=True, reduction="none"),
        "Jaccard (Tversky, 1 and 1)": segops.losses.tversky_loss(
            logits, target, alpha=1, beta=1, per_image=True, reduction="none"
        ),
    }
    for name, curve in curves.items():
        right.plot((sides / 30) ** 2, curve.flatten(), label=name)
    right.set(
        title="region losses of a predicted square", xlabel="its area, of the true one's", xlim=(0, 4), ylim=(0, 1)
    )
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, "losses")


def inference() -> None:
    """Where windows overlap, and the error of a model that is unsure at the borders of its windows."""
    height, width, window = 96, 192, 48
    truth = ((torch.arange(width) // 24 + torch.arange(height)[:, None] // 24) % 2)[None, None].float()
    generator = torch.Generator().manual_seed(0)

    def model(x: torch.Tensor) -> torch.Tensor:
        """Right in the middle of its window, noise towards the border."""
        offset = torch.linspace(-1, 1, window).abs()
        border = torch.maximum(offset[:, None], offset) ** 3
        return 2 * x - 1 + 4 * border * torch.randn(x.shape, generator=generator)

    figure = Figure(figsize=(9, 2.5), layout="constrained")
    axes = figure.subplots(1, 3)
    options = {"without overlap": {"stride": window}, "half a window, uniform": {"stride": window // 2}}
    options["half a window, Gaussian"] = {"stride": window // 2, "weight": "gaussian"}
    for ax, (title, option) in zip(axes, options.items(), strict=True):
        generator.manual_seed(0)
        labels = segops.inference.sliding_window(model, truth, window=window, labels=True, **option)
        wrong = labels != truth[:, 0]
        ax.imshow(segops.viz.error_map(labels[0].numpy(), truth[0, 0].numpy().astype(int)), interpolation="nearest")
        ax.set_title(f"{title}: {wrong.float().mean():.1%} wrong")
        ax.set_axis_off()
    save(figure, "inference")


def viz() -> None:
    """The demo's photo in the pictures that segops.viz makes."""
    photo, coarse, names = load(None, None, None)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    logits = soft_logits(torch.from_numpy(coarse), len(names), 0.6)[None]
    crf = {"iterations": 10, "bilateral_sigma_xy": 30, "bilateral_sigma_rgb": 10, "bilateral_weight": 5}
    refined = segops.inference.crf_refine(logits, image, **crf)[0].argmax(0).numpy()
    colours, piece = palette(len(names)), np.s_[:512:2, :512:2]
    pictures = [
        photo,
        segops.viz.colorize(coarse, colours),
        segops.viz.overlay(photo, refined, colours, alpha=0.6),
        segops.viz.shade(photo, refined, colours),
        segops.viz.error_map(refined, coarse),
    ]
    segops.viz.save(IMG / "viz.png", segops.viz.panel([x[piece] for x in pictures]))


def demo_picture() -> None:
    """What `python -m segops demo` writes, small enough for a README."""
    path = IMG / "demo.png"
    demo(output=path, device="cpu")
    picture = Image.open(path).convert("RGB")
    size = (1440, round(picture.height * 1440 / picture.width))
    picture.resize(size, Image.Resampling.LANCZOS).save(path, optimize=True)


if __name__ == "__main__":
    IMG.mkdir(exist_ok=True)
    for draw in (
        demo_picture,
        dense_crf,
        mean_field,
        permutohedral_filter,
        gaussian_filter_exact,
        lovasz_grad,
        losses,
        inference,
        viz,
    ):
        draw()
    for path in sorted(IMG.glob("*.png")):
        print(f"docs/img/{path.name}: {path.stat().st_size // 1000} KB")
