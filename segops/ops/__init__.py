"""The public operators, one file each."""

from .aspp import aspp
from .asymmetric_nonlocal import asymmetric_nonlocal
from .atrous_conv2d import atrous_conv2d
from .confusion_matrix import confusion_matrix
from .conv_crf import conv_crf
from .criss_cross_attention import criss_cross_attention
from .cross_entropy_dice_focal import cross_entropy_dice_focal
from .dense_crf import dense_crf
from .distance_transform import distance_transform
from .dynamic_depthwise_conv2d import dynamic_depthwise_conv2d
from .em_attention import em_attention
from .encoding import encoding
from .gaussian_filter_exact import gaussian_filter_exact
from .interlaced_attention import interlaced_attention
from .lovasz_grad import lovasz_grad
from .lovasz_hinge import lovasz_hinge
from .lovasz_softmax import lovasz_softmax
from .mean_field import mean_field
from .nonlocal_attention import nonlocal_attention
from .nonlocal_concatenation import nonlocal_concatenation
from .permutohedral_filter import permutohedral_filter
from .point_sample import point_sample
from .point_scatter import point_scatter
from .psa import psa_collect, psa_distribute
from .psa_mask import psa_mask
from .pyramid_pool import pyramid_pool
from .segmentation_sums import segmentation_sums
from .subdivide import subdivide
from .topk_uncertain_grid import topk_uncertain_grid
from .uncertain_points import uncertain_points
from .upsample_argmax import upsample_argmax
from .upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "asymmetric_nonlocal",
    "aspp",
    "atrous_conv2d",
    "confusion_matrix",
    "conv_crf",
    "criss_cross_attention",
    "cross_entropy_dice_focal",
    "dense_crf",
    "distance_transform",
    "dynamic_depthwise_conv2d",
    "em_attention",
    "encoding",
    "gaussian_filter_exact",
    "interlaced_attention",
    "lovasz_grad",
    "lovasz_hinge",
    "lovasz_softmax",
    "mean_field",
    "nonlocal_attention",
    "nonlocal_concatenation",
    "permutohedral_filter",
    "point_sample",
    "point_scatter",
    "pyramid_pool",
    "psa_collect",
    "psa_distribute",
    "psa_mask",
    "segmentation_sums",
    "subdivide",
    "topk_uncertain_grid",
    "uncertain_points",
    "upsample_argmax",
    "upsample_cross_entropy",
]

from .. import _registry as _registry

_registry.load_all()
