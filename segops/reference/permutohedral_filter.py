"""The permutohedral lattice in plain PyTorch (Adams, Baek and Davis 2010), the oracle of every faster one.

Names follow the paper: a point is *elevated* into the hyperplane sum(x) = 0 of R^(D+1), whose simplices have D+1
vertices, one of each *remainder* 0..D; it is *splatted* onto them with barycentric weights, the vertices are *blurred*
along the D+1 lattice axes, and the result is *sliced* back at the points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Lattice:
    """The lattice of one point set: which vertices a point touches, how strongly, and which vertices are neighbours."""

    vertex: Tensor  # (P, D+1) int64, index of the vertex of each remainder
    weight: Tensor  # (P, D+1) barycentric weights, each row sums to 1
    neighbour: Tensor  # (D+1, 2, M) int64, the vertices before and after along each axis; M where there is none

    @property
    def vertices(self) -> int:
        return self.neighbour.shape[-1]

    @property
    def alpha(self) -> float:
        """Makes the blur (1/2, 1, 1/2) along D+1 axes approximate a Gaussian of height 1."""
        return 1 / (1 + 2.0 ** -(self.vertex.shape[1] - 1))

    def splat(self, values: Tensor) -> Tensor:
        """(V, P) at points to (V, M) at vertices."""
        table = values.new_zeros(values.shape[0], self.vertices)
        for r in range(self.vertex.shape[1]):
            table = table.index_add(1, self.vertex[:, r], values * self.weight[:, r])
        return table

    def blur(self, table: Tensor, reverse: bool = False) -> Tensor:
        """One pass of (1/2, 1, 1/2) along each axis, in order 0..D or, for the adjoint, D..0."""
        axes = range(self.vertex.shape[1])
        for axis in reversed(axes) if reverse else axes:
            padded = torch.nn.functional.pad(table, (0, 1))  # column M: the neighbour that does not exist
            before, after = self.neighbour[axis]
            table = table + 0.5 * (padded[:, before] + padded[:, after])
        return table

    def slice(self, table: Tensor) -> Tensor:
        """(V, M) at vertices to (V, P) at points."""
        return (table[:, self.vertex] * self.weight).sum(2)

    def filter(self, values: Tensor, reverse: bool = False) -> Tensor:
        """(V, P) to (V, P): sum over points j of k(i, j) values[:, j], approximately."""
        return self.alpha * self.slice(self.blur(self.splat(values), reverse))


def elevate(features: Tensor) -> Tensor:
    """Features (D, P) to the hyperplane (D+1, P), scaled so that the blur has unit variance.

    The order of the sums is that of the kernels: on a grid, points lie on faces of the lattice's cells, and the last
    bit decides which vertices exist.
    """
    dim = features.shape[0]
    above, elevated = torch.zeros_like(features[0]), []
    for i in range(dim, 0, -1):
        scaled = features[i - 1] * (math.sqrt(2 / 3) * (dim + 1) / math.sqrt(i * (i + 1)))
        elevated.append(above - scaled * i)
        above = above + scaled
    return torch.stack([above, *reversed(elevated)])


def simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The enclosing simplex of each point: features (D, P) to origin, rank (D+1, P) int64 and weights (P, D+1).

    ``origin`` is the remainder-0 vertex; the vertex of remainder r has the coordinates
    ``origin + r - (D+1) * (rank > D - r)``.
    """
    dim = features.shape[0]
    elevated = elevate(features)
    quotient = torch.floor(elevated * features.new_tensor(1).div(dim + 1) + 0.5)
    delta = elevated - quotient * (dim + 1)
    # rank = how many coordinates have a larger delta; of equal ones, how many have an earlier axis
    axis = torch.arange(dim + 1, device=features.device)
    earlier = (axis[None, :] < axis[:, None])[..., None]  # [i, j]: axis j comes before axis i
    larger = (delta[None] > delta[:, None]) | ((delta[None] == delta[:, None]) & earlier)
    rank = larger.sum(1)
    # bring the sum of the rounded coordinates back to 0 by moving those with the smallest or largest delta
    excess = quotient.sum(0).long()
    rank = rank + excess
    step = (rank < 0).long() - (rank > dim).long()
    rank = rank + step * (dim + 1)
    origin = (quotient.long() + step) * (dim + 1)
    offset = (elevated - origin) / (dim + 1)
    by_rank = torch.empty_like(offset).scatter_(0, rank, offset)
    weight = torch.empty_like(offset)
    weight[0] = 1 + by_rank[dim] - by_rank[0]
    for r in range(1, dim + 1):
        weight[r] = by_rank[dim - r] - by_rank[dim - r + 1]
    return origin, rank, weight.T.contiguous()


def build_lattice(features: Tensor) -> Lattice:
    """The lattice of ``features`` (D, P). A vertex exists only if a point's simplex has it."""
    dim, points = features.shape
    if not torch.isfinite(features).all():
        raise ValueError("features: expected finite values, got NaN or inf")
    origin, rank, weight = simplex(features)
    remainder = torch.arange(dim + 1, device=features.device)
    key = origin[..., None] + remainder - (dim + 1) * (rank[..., None] > dim - remainder)  # (D+1, P, D+1)
    vertices, vertex = torch.unique(key.reshape(dim + 1, -1), dim=1, return_inverse=True)
    step = 1 - (dim + 1) * torch.eye(dim + 1, dtype=torch.int64, device=features.device)  # row: one step along an axis
    index = {tuple(k): i for i, k in enumerate(vertices.T.tolist())}
    neighbour = [
        [[index.get(tuple(k), len(index)) for k in (vertices + sign * s[:, None]).T.tolist()] for sign in (-1, 1)]
        for s in step
    ]
    return Lattice(
        vertex.view(points, dim + 1), weight, torch.tensor(neighbour, device=features.device).view(dim + 1, 2, -1)
    )


def permutohedral_filter(values: Tensor, features: Tensor, reverse: bool) -> Tensor:
    """values (N, V, P), features (N or 1, D, P) to (N, V, P)."""
    if values.numel() == 0:
        return values.clone(memory_format=torch.contiguous_format)
    lattices = [build_lattice(f) for f in features]
    out = [lattices[n % len(lattices)].filter(v, reverse) for n, v in enumerate(values)]
    return torch.stack(out)
