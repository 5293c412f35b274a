"""Mean field in a fully connected CRF on a GPU (Kraehenbuehl and Koltun 2011): everything small happens at vertices.

Idea. The compatibility C is linear on labels and commutes with blur and slice, so it is applied to the vertices'
tables, and the norm is folded into the lattice's weights. All feature maps, and all items of the batch, make up one
lattice (``join``), so that an update is four steps whatever their number: splat, blur, C, and a kernel that slices,
subtracts the messages from the log-probabilities and takes the softmax.

Backward. Of each update only the blurred table is kept; its marginals are sliced again. The adjoint of an update is
another round over the lattice: the scales of splat and slice change places, C is transposed, the axes run backwards.

Memory. Points are rows of labels, padded by ``new_rows``; a program holds the whole rows of a block of points. The
logits are read once from their own layout, the result is written once to (N, L, P).

Cost of an update: a filtering of L channels (permutohedral_filter.py), and a row read and written for each point.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from segops.kernels.integers import cdiv, next_power_of_2
from segops.kernels.lattice import Lattice, build_lattices, join
from segops.kernels.permutohedral_filter import blur, gather, new_rows, slice_table, splat
from torch import Tensor

EPS = 1e-20  # as in the reference: keeps the norm of an isolated point finite
BAD_LOGITS = (
    "logits: expected finite values (or -inf for labels that are impossible), got NaN, +inf or a point without a "
    "possible label"
)


@triton.jit
def unary_kernel(
    logits, unary, marginals, bad, points, blocks, labels, stride_n, stride_l, stride_p, unary_stride,
    BLOCK: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """The log-softmax and softmax of logits (N, L, P) as rows; ``bad`` of a block is 1 where they do not exist."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = ((tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    label = tl.arange(0, LABELS)[None, :]
    mask = (p < points) & (label < labels)
    x = tl.load(logits + item * stride_n + label.to(tl.int64) * stride_l + p * stride_p, mask=mask, other=0.0)
    x = tl.where(label < labels, x, -float("inf"))
    x -= tl.max(x, axis=1)[:, None]
    q = tl.exp(x)
    total = tl.sum(q, axis=1)[:, None]  # NaN if a logit is, or is +inf, or if all are -inf
    tl.store(bad + tl.program_id(0), tl.max(tl.max((total != total).to(tl.int32), axis=1), axis=0))
    place = (item * points + p) * unary_stride + label
    tl.store(unary + place, x - tl.log(total), mask=mask)
    tl.store(marginals + place, q / total, mask=mask)


@triton.jit
def update_kernel(
    unary, table, vertex, weight, out, points, blocks, labels, all_points, corners, unary_stride, table_stride,
    out_n, out_l, out_p, LOGITS: tl.constexpr, BLOCK: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """unary minus the slice of the messages' table; unless LOGITS, its softmax."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = ((tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    label = tl.arange(0, LABELS)[None, :]
    row = item * points + p
    x = tl.load(unary + row * unary_stride + label, mask=(p < points) & (label < labels), other=0.0)
    x -= gather(table, vertex, weight, row, p < points, label, labels, all_points, corners, table_stride)
    if not LOGITS:
        x = tl.where(label < labels, x, -float("inf"))
        x = tl.exp(x - tl.max(x, axis=1)[:, None])
        x /= tl.sum(x, axis=1)[:, None]
    place = item * out_n + label.to(tl.int64) * out_l + p * out_p
    tl.store(out + place, x, mask=(p < points) & (label < labels))


@triton.jit
def update_backward_kernel(
    marginals, table, vertex, weight, grad, total, points, labels, corners, stride, table_stride,
    BLOCK: tl.constexpr, LABELS: tl.constexpr,
):  # fmt: skip
    """Minus the slice of ``table`` is the gradient of marginals; that of the softmax's argument goes to ``grad`` and is
    added to ``total``."""
    p = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    label = tl.arange(0, LABELS)[None, :]
    mask = (p < points) & (label < labels)
    place = p * stride + label
    g = -gather(table, vertex, weight, p, p < points, label, labels, points, corners, table_stride)
    q = tl.load(marginals + place, mask=mask, other=0.0)
    g = q * (g - tl.sum(q * g, axis=1)[:, None])
    tl.store(grad + place, g, mask=mask)
    tl.store(total + place, tl.load(total + place, mask=mask, other=0.0) + g, mask=mask)


@triton.jit
def unary_backward_kernel(total, unary, out, points, blocks, labels, stride, BLOCK: tl.constexpr, LABELS: tl.constexpr):
    """Back through the log-softmax, from rows to (N, L, P)."""
    item = (tl.program_id(0) // blocks).to(tl.int64)
    p = ((tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    label = tl.arange(0, LABELS)[None, :]
    mask = (p < points) & (label < labels)
    place = (item * points + p) * stride + label
    g = tl.load(total + place, mask=mask, other=0.0)
    g -= tl.exp(tl.load(unary + place, mask=mask, other=0.0)) * tl.sum(g, axis=1)[:, None]
    tl.store(out + (item * labels + label) * points + p, g, mask=mask)


def launch(items: int, points: int, labels: int) -> tuple[tuple[int], int, dict[str, int]]:
    """Grid, blocks of an item, and tile of a kernel that holds whole rows of labels."""
    width = next_power_of_2(labels)
    block = max(1, min(128, 256 // width))
    blocks = cdiv(points, block)
    return (items * blocks,), blocks, {"BLOCK": block, "LABELS": width, "num_warps": min(32, max(4, width // 64))}


class Field:
    """What the iterations share. Rows are those of the N P points, tables those of the joint lattice's vertices."""

    def __init__(self, logits: Tensor, features: Sequence[Tensor], compatibility: Tensor, normalization: str):
        self.items, self.labels, self.points = logits.shape
        self.like, self.compatibility = logits, compatibility
        self.alpha = [1 / (1 + 2.0 ** -f.shape[1]) for f in features]
        self.grid, self.blocks, self.tile = launch(self.items, self.points, self.labels)
        self.unary, self.first = self.rows(), self.rows()  # log-probabilities, and the marginals to begin with
        bad = torch.empty(self.grid, dtype=torch.int32, device=logits.device)
        unary_kernel[self.grid](
            logits, self.unary, self.first, bad, self.points, self.blocks, self.labels, *logits.stride(),
            self.unary.stride(0), **self.tile,
        )  # fmt: skip
        names = [f"features[{k}]" for k in range(len(features))]
        lattices = build_lattices(features, names, [(bad.amax(), BAD_LOGITS)])
        if lattices:
            self._join(lattices, normalization)

    def _join(self, lattices: list[Lattice], normalization: str) -> None:
        count = self.items * self.points
        scales = [filter_scales(x, normalization) for x in lattices]
        self.lattice = self.adjoint = join([x.scaled(*s) for x, s in zip(lattices, scales)], count)
        if normalization in ("before", "after"):
            self.adjoint = join([x.scaled(*reversed(s)) for x, s in zip(lattices, scales)], count)
        ends = [0, *accumulate(x.vertices * (count // x.vertex.shape[1]) for x in lattices)]
        self.spans = [slice(*pair) for pair in zip(ends, ends[1:])]  # each feature map's rows of a table

    def rows(self, x: Tensor | None = None) -> Tensor:
        """(N, L, P) as rows, or uninitialised ones."""
        rows = new_rows(self.items * self.points, self.labels, self.like)
        if x is not None:
            rows.unflatten(0, (self.items, self.points)).copy_(x.transpose(1, 2))
        return rows

    def coupled(self, table: Tensor, transpose: bool = False) -> Tensor:
        """C (or its transpose) applied to every vertex's row."""
        out = new_rows(*table.shape, table)
        for rows, c in zip(self.spans, self.compatibility):
            if c.dim() == 1:
                torch.mul(table[rows], c, out=out[rows])
            else:
                torch.matmul(table[rows], c if transpose else c.T, out=out[rows])
        return out

    def update(self, messages: Tensor, out: Tensor, logits: bool = False) -> Tensor:
        """Marginals or logits after the messages of a table, to rows or to (N, L, P)."""
        strides = (out.stride(0) * self.points, 1, out.stride(0)) if out.dim() == 2 else out.stride()
        update_kernel[self.grid](
            self.unary, messages, self.lattice.vertex, self.lattice.weight, out, self.points, self.blocks, self.labels,
            self.items * self.points, len(self.lattice.vertex), self.unary.stride(0), messages.stride(0), *strides,
            LOGITS=logits, **self.tile,
        )  # fmt: skip
        return out

    def update_backward(self, marginals: Tensor, messages: Tensor, total: Tensor) -> Tensor:
        """Gradient of the softmax's argument, where that of the marginals is minus the slice of ``messages``."""
        grad, grid = self.rows(), (cdiv(len(total), self.tile["BLOCK"]),)
        update_backward_kernel[grid](
            marginals, messages, self.adjoint.vertex, self.adjoint.weight, grad, total, len(total), self.labels,
            len(self.adjoint.vertex), total.stride(0), messages.stride(0), **self.tile,
        )  # fmt: skip
        return grad

    def unary_backward(self, total: Tensor) -> Tensor:
        out = self.like.new_empty(self.like.shape)
        unary_backward_kernel[self.grid](
            total, self.unary, out, self.points, self.blocks, self.labels, total.stride(0), **self.tile
        )
        return out


def filter_scales(lattice: Lattice, normalization: str) -> tuple[Tensor | None, Tensor | None]:
    """By what to multiply a lattice's points before and after filtering."""
    if normalization == "none":
        return None, None
    points = lattice.vertex.shape[1]
    table = blur(lattice, splat(lattice, lattice.weight.new_ones(points, 1)))
    norm = slice_table(lattice, table, table.new_empty(1, 1, points)).flatten() + EPS
    scale = norm.rsqrt() if normalization == "symmetric" else norm.reciprocal()
    return None if normalization == "after" else scale, None if normalization == "before" else scale


def mean_field(
    logits: Tensor,
    features: Sequence[Tensor],
    compatibility: Tensor,
    iterations: int,
    normalization: str,
    return_logits: bool = False,
) -> Tensor:
    """logits (N, L, P), features (N or 1, D_k, P), compatibility (K, L) or (K, L, L) to (N, L, P)."""
    if logits.numel() == 0:
        return logits.clone(memory_format=torch.contiguous_format)
    field, out = Field(logits, features, compatibility, normalization), logits.new_empty(logits.shape)
    marginals = field.first
    if not features or not iterations:
        rows = field.unary if return_logits else marginals
        return out.copy_(rows.unflatten(0, (field.items, field.points)).transpose(1, 2))
    for left in reversed(range(iterations)):
        messages = field.coupled(blur(field.lattice, splat(field.lattice, marginals)))
        marginals = field.update(messages, field.rows() if left else out, return_logits and not left)
    return out


def mean_field_backward(
    grad: Tensor,
    logits: Tensor,
    features: Sequence[Tensor],
    compatibility: Tensor,
    iterations: int,
    normalization: str,
    return_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and compatibility."""
    grad_compatibility = torch.zeros_like(compatibility, memory_format=torch.contiguous_format)
    if logits.numel() == 0:
        return logits.clone(memory_format=torch.contiguous_format), grad_compatibility
    field, tables = Field(logits, features, compatibility, normalization), []
    marginals = field.first
    for left in reversed(range(iterations if features else 0)):
        tables.append(blur(field.lattice, splat(field.lattice, marginals)))
        if left or not return_logits:
            marginals = field.update(field.coupled(tables[-1]), field.rows())
    above = field.rows(grad)
    if not return_logits:
        above = marginals * (above - (marginals * above).sum(1, keepdim=True))
    total = field.rows().copy_(above)
    while tables:
        table = splat(field.adjoint, above)
        add_compatibility_gradient(grad_compatibility, field, table, tables.pop())
        messages = blur(field.adjoint, field.coupled(table, transpose=True), reverse=True)
        marginals = field.update(field.coupled(tables[-1]), field.rows()) if tables else field.first
        above = field.update_backward(marginals, messages, total)
    return field.unary_backward(total), grad_compatibility


def add_compatibility_gradient(out: Tensor, field: Field, grad_table: Tensor, table: Tensor) -> None:
    """Sums over vertices; both tables carry the splat's alpha, of which one is too many."""
    for k, rows in enumerate(field.spans):
        g, x = grad_table[rows], table[rows]
        out[k] -= ((g * x).sum(0) if out.dim() == 2 else g.T @ x) / field.alpha[k]


_TILES = [launch(1, 10**6, labels)[2] for labels in (21, 2, 150, 2000)]
_MESSAGES = {"table": "*T", "vertex": "*i32", "weight": "*T"}
AOT = [
    (unary_kernel, {"logits": "*T", "unary": "*T", "marginals": "*T", "bad": "*i32"}, _TILES),
    (
        update_kernel,
        {"unary": "*T", "out": "*T", **_MESSAGES},
        [{"LOGITS": logits, **tile} for tile in _TILES for logits in (False, True)],
    ),
    (update_backward_kernel, {"marginals": "*T", "grad": "*T", "total": "*T", **_MESSAGES}, _TILES),
    (unary_backward_kernel, {"total": "*T", "unary": "*T", "out": "*T"}, _TILES),
]
