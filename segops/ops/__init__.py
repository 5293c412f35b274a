"""The public operators, one file each."""

from .conv_crf import conv_crf
from .criss_cross_attention import criss_cross_attention
from .dense_crf import dense_crf
from .dynamic_depthwise_conv2d import dynamic_depthwise_conv2d
from .em_attention import em_attention
from .encoding import encoding
from .gaussian_filter_exact import gaussian_filter_exact
from .lovasz_grad import lovasz_grad
from .lovasz_hinge import lovasz_hinge
from .lovasz_softmax import lovasz_softmax
from .mean_field import mean_field
from .permutohedral_filter import permutohedral_filter
from .point_sample import point_sample
from .point_scatter import point_scatter
from .subdivide import subdivide
from .topk_uncertain_grid import topk_uncertain_grid
from .uncertain_points import uncertain_points

__all__ = [
    "conv_crf",
    "criss_cross_attention",
    "dense_crf",
    "dynamic_depthwise_conv2d",
    "em_attention",
    "encoding",
    "gaussian_filter_exact",
    "lovasz_grad",
    "lovasz_hinge",
    "lovasz_softmax",
    "mean_field",
    "permutohedral_filter",
    "point_sample",
    "point_scatter",
    "subdivide",
    "topk_uncertain_grid",
    "uncertain_points",
]

from .. import _registry as _registry

_registry.load_all()
