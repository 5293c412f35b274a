"""Every public function, its checks included, goes through torch.compile whole, with symbolic sizes and numbers."""

from __future__ import annotations

import pytest
import torch

import segops

LOGITS, LABELS = torch.randn(2, 4, 9, 10), torch.randint(0, 4, (2, 9, 10))
POINTS, CELLS = torch.rand(2, 7, 2), torch.randint(0, 90, (2, 7))
VALUES, FEATURES = torch.rand(2, 3, 40), torch.randn(2, 2, 40)
MASKS = torch.randn(2, 9, 9, 10)
BASES = torch.nn.functional.normalize(torch.randn(1, 4, 3), dim=1)

CALLS = {
    "asymmetric_nonlocal": lambda x: segops.asymmetric_nonlocal(x, x[..., 1:], x[:, :3, :, 1:], sizes=(1, (2, 3))),
    "aspp": lambda x: segops.aspp(x, [torch.ones(2, 4, 3, 3), torch.ones(3, 4, 1, 1)], None, [4, 1], combine="concat"),
    "atrous_conv2d": lambda x: segops.atrous_conv2d(x, torch.ones(2, 4, 3, 3), torch.ones(2), dilation=4),
    "confusion_matrix": lambda x: segops.confusion_matrix(x, LABELS, 4),
    "conv_crf": lambda x: segops.conv_crf(x, x[:, :3], filter_size=5, blur=2, iterations=1),
    "criss_cross_attention": lambda x: segops.criss_cross_attention(x, x, x),
    "cross_entropy_dice_focal": lambda x: segops.cross_entropy_dice_focal(x, LABELS, label_smoothing=0.1),
    "dense_crf": lambda x: segops.dense_crf(x, x[:, :3], iterations=2),
    "distance_transform": lambda x: segops.distance_transform(x[:, 0] > 0),
    "dynamic_depthwise_conv2d": lambda x: segops.dynamic_depthwise_conv2d(x, torch.ones(4, 3, 3), dilation=(2, 3)),
    "em_attention": lambda x: segops.em_attention(x, BASES)[0],
    "encoding": lambda x: segops.encoding(x, BASES[0].mT, -torch.ones(3)),
    "gaussian_filter_exact": lambda x: segops.gaussian_filter_exact(VALUES, FEATURES),
    "interlaced_attention": lambda x: segops.interlaced_attention(x, x, x, relation="local", down_factor=(4, 3)),
    "lovasz_grad": lambda x: segops.lovasz_grad(x > 0),
    "lovasz_hinge": lambda x: segops.lovasz_hinge(x, x > 0),
    "lovasz_softmax": lambda x: segops.lovasz_softmax(x, LABELS, classes=[1, 2], per_image=True),
    "mean_field": lambda x: segops.mean_field(VALUES, [FEATURES], [1.5], iterations=2),
    "nonlocal_attention": lambda x: segops.nonlocal_attention(x, x[..., 1:], x[:, :3, :, 1:], scale=0.5),
    "nonlocal_concatenation": lambda x: segops.nonlocal_concatenation(x[:, 0, 0], x[:, 1, 1], x[:, 2]),
    "permutohedral_filter": lambda x: segops.permutohedral_filter(VALUES, FEATURES),
    "point_sample": lambda x: segops.point_sample([x, x], POINTS),
    "point_scatter": lambda x: segops.point_scatter(x, CELLS, torch.ones(2, 4, 7)),
    "pyramid_pool": lambda x: segops.pyramid_pool(x, (1, 2, (3, 4))),
    "psa_collect": lambda x: segops.psa_collect(x, MASKS, 3),
    "psa_distribute": lambda x: segops.psa_distribute(x, MASKS, (3, 3), softmax=False),
    "psa_mask": lambda x: segops.psa_mask(MASKS, "collect", 3),
    "segmentation_sums": lambda x: segops.segmentation_sums(x, LABELS).focal,
    "subdivide": lambda x: segops.subdivide(x, x, lambda fine, coarse: coarse - fine, num_points=5),
    "topk_uncertain_grid": lambda x: segops.topk_uncertain_grid(x, 5)[0],
    "uncertain_points": lambda x: segops.uncertain_points(x, 6),
    "upsample_argmax": lambda x: segops.upsample_argmax(x, (20, 31)),
    "upsample_cross_entropy": lambda x: segops.upsample_cross_entropy(x[..., :3], LABELS, label_smoothing=0.1),
}


def test_the_table_covers_every_public_operator():
    assert sorted(CALLS) == sorted(segops.ops.__all__)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_compiles_whole(name, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=dynamic)(LOGITS)
    eager = CALLS[name](LOGITS)
    if name == "uncertain_points":  # compiled code draws other numbers
        assert compiled.shape == eager.shape and bool(((compiled >= 0) & (compiled <= 1)).all())
    else:
        torch.testing.assert_close(compiled, eager)
