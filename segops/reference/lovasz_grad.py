"""The gradient of the Lovasz extension of the Jaccard loss, in closed form (Berman, Rannen Triki and Blaschko 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def jaccard_steps(foreground: Tensor, dtype: torch.dtype) -> Tensor:
    """foreground (..., P) bool, largest error first: by how much each element lets the Jaccard loss grow (section 3).

    Algorithm 1 subtracts neighbouring values of J = 1 - (G - f) / (G + b), with f and b the foreground and background
    counted so far. J is near 1 nearly everywhere, so that the difference is little but rounding. Worked out by hand it
    is 1 / (G + b) at a foreground element and (G - f) / ((G + b) (G + b + 1)) at one of the background, with f and b
    counted before it: quotients of exact integers.
    """
    total = foreground.sum(-1, keepdim=True)
    before = foreground.cumsum(-1) - foreground.long()
    position = torch.arange(foreground.shape[-1], device=foreground.device)
    union = (total + position - before).to(dtype)
    step = torch.where(foreground, 1 / union, (total - before).to(dtype) / (union * (union + 1)))
    return torch.where(total > 0, step, (position == 0).to(dtype))  # no foreground: J is 0, then 1 for ever


def lovasz_grad(sorted_foreground: Tensor) -> Tensor:
    """sorted_foreground (R, P) of zeros and ones to (R, P)."""
    foreground = sorted_foreground != 0
    if not ((sorted_foreground == 1) | ~foreground).all():
        raise ValueError("sorted_foreground: expected zeros and ones, got other values")
    return jaccard_steps(foreground, sorted_foreground.dtype)


def error_slopes(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """errors, foreground, valid (R, P) to the derivative of each row's loss by its errors, (R, P).

    The loss is piecewise linear in the errors (equation 9): it is their product with the slopes, and errors that are
    not positive take no part. Ignored elements go behind all others, where there is nothing left to gain.
    """
    ranked = errors.detach().masked_fill(~valid, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    steps = jaccard_steps((foreground & valid).gather(-1, order), errors.dtype)
    slopes = torch.empty_like(steps).scatter(-1, order, steps)
    return slopes.masked_fill((errors <= 0) | ~valid, 0)


def lovasz_extension(errors: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """The loss of each row, (R,)."""
    return (error_slopes(errors, foreground, valid) * errors.masked_fill(~valid, 0)).sum(-1)
