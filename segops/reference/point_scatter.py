"""Values written back to the cells of a map: the definition, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def check(indices: Tensor, cells: int) -> None:
    """Cells exist; on a GPU the answer is not waited for."""
    inside = ((indices >= 0) & (indices < cells)).all()
    message = f"indices: expected cells from 0 to {cells - 1}"
    if indices.is_cuda:
        torch._assert_async(inside, message)
    elif not inside:
        raise ValueError(f"{message}, got {int(indices.min())} to {int(indices.max())}")


def winners(indices: Tensor, cells: int) -> Tensor:
    """indices (N, P) to the point that each cell (N, cells) gets its value from, the last in order, or -1."""
    check(indices, cells)
    order = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    return indices.new_full((indices.shape[0], cells), -1).scatter_reduce(1, indices, order, "amax")


def point_scatter(input: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """input (N, C, H, W) with values (N, C, P) in the cells indices (N, P)."""
    winner = winners(indices, input.shape[2] * input.shape[3])[:, None]
    padded = torch.cat([values, values.new_zeros(*values.shape[:2], 1)], 2)  # which no winner, -1, points to
    written = padded.gather(2, winner.remainder(padded.shape[2]).expand(-1, values.shape[1], -1))
    return torch.where(winner >= 0, written, input.flatten(2)).view(input.shape)


def point_scatter_backward(grad: Tensor, indices: Tensor) -> Tensor:
    """The gradient (N, C, P) of the values: that of their cells, 0 for those that a later value replaced."""
    order = torch.arange(indices.shape[1], device=indices.device)
    won = winners(indices, grad.shape[2] * grad.shape[3]).gather(1, indices) == order
    out = grad.flatten(2).gather(2, indices[:, None].expand(-1, grad.shape[1], -1))
    return out.masked_fill(~won[:, None], 0)
