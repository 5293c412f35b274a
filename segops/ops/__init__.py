"""The public operators, one file each."""

from .dense_crf import dense_crf
from .em_attention import em_attention
from .encoding import encoding
from .gaussian_filter_exact import gaussian_filter_exact
from .mean_field import mean_field
from .permutohedral_filter import permutohedral_filter

__all__ = ["dense_crf", "em_attention", "encoding", "gaussian_filter_exact", "mean_field", "permutohedral_filter"]

from .. import _registry as _registry

_registry.load_all()
