"""The public operators, one file each."""

from .dense_crf import dense_crf
from .gaussian_filter_exact import gaussian_filter_exact
from .mean_field import mean_field
from .permutohedral_filter import permutohedral_filter
from .subdivide import subdivide
from .topk_uncertain_grid import topk_uncertain_grid
from .uncertain_points import uncertain_points

__all__ = [
    "dense_crf",
    "gaussian_filter_exact",
    "mean_field",
    "permutohedral_filter",
    "subdivide",
    "topk_uncertain_grid",
    "uncertain_points",
]

from .. import _registry as _registry

_registry.load_all()
