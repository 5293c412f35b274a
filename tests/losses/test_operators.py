"""segops.losses: the losses that are operators of their own, as modules."""

from __future__ import annotations

import torch

import segops
from segops.losses import (
    CrossEntropyDiceFocalLoss,
    LovaszHingeLoss,
    LovaszSoftmaxLoss,
    UpsampleCrossEntropyLoss,
)


def test_functions_are_the_operators():
    for name in ("lovasz_softmax", "lovasz_hinge", "cross_entropy_dice_focal", "upsample_cross_entropy"):
        assert getattr(segops.losses, name) is getattr(segops, name)


def test_softmax_module_is_the_function():
    x, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    options = {"classes": [0, 2], "per_image": True, "ignore_index": 3, "reduction": "sum"}
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    module = LovaszSoftmaxLoss(class_weight=weight, **options)
    expected = segops.lovasz_softmax(x, target, class_weight=weight, **options)
    assert torch.equal(module(x, target), expected)
    assert module.double()(x.double(), target).dtype == torch.float64
    assert module.class_weight.dtype == torch.float64
    assert not module.state_dict()
    assert "classes=[0, 2]" in repr(module) and "ignore_index=3" in repr(module)


def test_softmax_module_of_probabilities():
    x, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    loss = LovaszSoftmaxLoss(from_logits=False)(x.softmax(1), target)
    torch.testing.assert_close(loss, segops.lovasz_softmax(x, target))


def test_hinge_module_is_the_function():
    x, target = torch.randn(2, 6, 6), torch.randint(0, 3, (2, 6, 6))
    options = {"per_image": False, "ignore_index": 2, "reduction": "sum"}
    module = LovaszHingeLoss(**options)
    assert torch.equal(module(x, target), segops.lovasz_hinge(x, target, **options))
    assert "per_image=False" in repr(module)


def test_fused_module_is_the_function():
    x, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))
    options = {"dice": 0.5, "gamma": 1.0, "class_weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    module = CrossEntropyDiceFocalLoss(**options)
    assert torch.equal(module(x, target), segops.cross_entropy_dice_focal(x, target, **options))
    assert not module.state_dict() and "dice=0.5" in repr(module)


def test_upsampling_module_is_the_function():
    x, target = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 12, 11))
    options = {"align_corners": True, "label_smoothing": 0.1, "reduction": "sum"}
    module = UpsampleCrossEntropyLoss(**options)
    assert torch.equal(module(x, target), segops.upsample_cross_entropy(x, target, **options))
