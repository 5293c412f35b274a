"""segops.inference: scales and mirrors, ensembles, the CRF, and all of them together."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import segops
from segops.inference import crf_refine, ensemble, multi_scale_flip, predict, sliding_window

FLIPS = ["none", "horizontal", "both", "dihedral", True, False]
PIXELS = nn.Conv2d(3, 4, 1)
IMAGE, PHOTO = torch.randn(2, 3, 9, 12), torch.randint(0, 256, (2, 3, 9, 12), dtype=torch.uint8)


@pytest.mark.parametrize("merge", ["logit", "probability"])
@pytest.mark.parametrize("flip", FLIPS)
def test_mirrors_do_not_change_a_model_of_pixels(flip, merge):
    seen = []

    def model(x):
        seen.append(x)
        return PIXELS(x)

    out = multi_scale_flip(model, IMAGE, flip=flip, merge=merge)
    direct = PIXELS(IMAGE).detach()
    torch.testing.assert_close(out, direct if merge == "logit" else direct.log_softmax(1), rtol=1e-5, atol=1e-5)
    count = {"none": 1, False: 1, "both": 4, "dihedral": 8}.get(flip, 2)
    assert len({x.numpy().tobytes() for x in seen}) == len(seen) == count
    assert not out.requires_grad


@pytest.mark.parametrize("flip", FLIPS)
def test_the_average_has_the_symmetry(flip):
    model, image = nn.Conv2d(1, 2, 3, padding=1), torch.randn(1, 1, 7, 7)
    average = partial(multi_scale_flip, model, flip=flip)
    mirrors = {"both": [[2], [3]], "dihedral": [[2], [3]], "none": [], False: []}.get(flip, [[3]])
    for dims in mirrors:
        torch.testing.assert_close(average(image.flip(dims)), average(image).flip(dims), rtol=1e-5, atol=1e-5)
    if flip == "dihedral":
        torch.testing.assert_close(average(image.mT), average(image).mT, rtol=1e-5, atol=1e-5)


def test_scales_are_the_average_over_resized_images():
    model, sizes = nn.Conv2d(3, 4, 3, padding=1), []

    def watched(x):
        sizes.append(tuple(x.shape[2:]))
        return model(x)

    out = multi_scale_flip(watched, IMAGE, scales=(0.5, 1, 1.75), size_divisor=4, flip=False)
    assert sizes == [(4, 8), (12, 12), (16, 24)]
    resize = partial(nn.functional.interpolate, mode="bilinear")
    expected = sum(resize(model(resize(IMAGE, size)), (9, 12)).softmax(1) for size in sizes) / 3
    torch.testing.assert_close(out.softmax(1), expected.detach())


def test_swapped_labels():
    def sides(x):
        """Left of the middle, right of it."""
        ramp = torch.linspace(-1, 1, x.shape[3]).expand(len(x), x.shape[2], -1)
        return torch.stack([-ramp, ramp, 0 * ramp], 1)

    out = multi_scale_flip(sides, IMAGE, swap=[(0, 1)], merge="logit")
    torch.testing.assert_close(out, sides(IMAGE))
    assert multi_scale_flip(sides, IMAGE, merge="logit").abs().max() < 1e-6
    rotated = multi_scale_flip(lambda x: sides(x).flip(1), IMAGE, flip="both", merge="logit")
    assert rotated.isfinite().all()


def test_ensemble():
    models = [nn.Conv2d(3, 4, 1) for _ in range(3)]
    logits = [m(IMAGE).detach() for m in models]
    torch.testing.assert_close(ensemble(models, IMAGE, merge="logit"), sum(logits) / 3)
    expected = (4 * logits[0].softmax(1) + logits[1].softmax(1) + logits[2].softmax(1)) / 6
    torch.testing.assert_close(ensemble(models, IMAGE, weights=[4, 1, 1]).softmax(1), expected)
    binary = [nn.Conv2d(3, 1, 1) for _ in range(2)]
    expected = sum(m(IMAGE).detach().sigmoid() for m in binary) / 2
    torch.testing.assert_close(ensemble(binary, IMAGE).sigmoid(), expected)
    torch.testing.assert_close(ensemble([lambda x: x], IMAGE, merge="logit"), IMAGE)


def test_certain_models_give_finite_logits():
    out = ensemble([lambda x: 1000 * x[:, :2], lambda x: 1000 * x[:, :2]], IMAGE)
    assert out.isfinite().all()
    assert ensemble([lambda x: 1000 * x[:, :1]], IMAGE).isfinite().all()


def test_crf_refine():
    logits = torch.randn(2, 4, 9, 12)
    out = crf_refine(logits, PHOTO, iterations=2)
    torch.testing.assert_close(out.softmax(1), segops.dense_crf(logits, PHOTO, iterations=2))
    one = crf_refine(logits[:, :1].requires_grad_(), PHOTO, iterations=2)
    two = segops.dense_crf(torch.cat([torch.zeros(2, 1, 9, 12), logits[:, :1].detach()], 1), PHOTO, iterations=2)
    torch.testing.assert_close(one.sigmoid(), two[:, 1:])
    assert not one.requires_grad
    with pytest.raises(TypeError, match="return_logits"):
        crf_refine(logits, PHOTO, return_logits=False)
    with pytest.raises(ValueError, match="logits: expected 4 dimensions"):
        crf_refine(logits[0], PHOTO)


def test_predict_is_its_parts():
    models = [nn.Conv2d(3, 4, 3, padding=1) for _ in range(2)]
    window = {"window": 6, "stride": 4, "weight": "gaussian", "batch_size": 3}
    both = partial(ensemble, models)
    windows = partial(sliding_window, both, **window)
    augmented = multi_scale_flip(windows, IMAGE, scales=(1, 1.5), flip="both")
    refined = crf_refine(augmented, PHOTO, iterations=2)
    all_of_it = {"window": window, "scales": (1, 1.5), "flip": "both", "crf": {"iterations": 2}, "photo": PHOTO}
    assert torch.equal(predict(models, IMAGE, **all_of_it), refined)
    assert torch.equal(predict(models, IMAGE, **all_of_it, labels=True), refined.argmax(1).to(torch.uint8))
    assert torch.equal(predict(models, IMAGE, window=window), windows(IMAGE))
    assert torch.equal(
        predict(models, IMAGE, window=window, labels=True), sliding_window(both, IMAGE, labels=True, **window)
    )
    assert torch.equal(predict(models[0], IMAGE, window=5), sliding_window(models[0], IMAGE, window=5))
    assert torch.equal(predict(models, IMAGE), both(IMAGE))
    assert torch.equal(predict(models[0], IMAGE), models[0](IMAGE).detach())
    assert torch.equal(predict(models[0], IMAGE, flip=True), multi_scale_flip(models[0], IMAGE))
    assert torch.equal(predict(models[0], IMAGE, crf=True, photo=PHOTO), crf_refine(models[0](IMAGE).detach(), PHOTO))
    assert torch.equal(predict(models[0], IMAGE, crf=True), crf_refine(models[0](IMAGE).detach(), IMAGE))


def test_predict_evaluates_every_model_and_leaves_it_as_it_was():
    models = [nn.Sequential(PIXELS, nn.Dropout(0.9)) for _ in range(2)]
    for options in ({}, {"window": 5}, {"flip": True}, {"window": 5, "scales": (1, 2)}):
        for model in (models, models[0]):
            assert torch.equal(predict(model, IMAGE, **options), predict(model, IMAGE, **options))
            assert all(m.training for each in models for m in each.modules())


BAD = [
    (TypeError, "image: expected float64", lambda: multi_scale_flip(PIXELS, PHOTO)),
    (ValueError, "scales: expected a list", lambda: multi_scale_flip(PIXELS, IMAGE, scales=())),
    (ValueError, "scales: expected a list", lambda: predict(PIXELS, IMAGE, scales=1.5)),
    (ValueError, r"scales\[1\]: expected a finite number > 0", lambda: multi_scale_flip(PIXELS, IMAGE, scales=[1, 0])),
    (ValueError, "flip: expected one of", lambda: multi_scale_flip(PIXELS, IMAGE, flip="vertical")),
    (ValueError, "merge: expected one of", lambda: predict(PIXELS, IMAGE, merge="vote")),
    (ValueError, "size_divisor: expected an integer >= 1", lambda: multi_scale_flip(PIXELS, IMAGE, size_divisor=0)),
    (ValueError, "swap: expected pairs of labels from 0 to 3", lambda: multi_scale_flip(PIXELS, IMAGE, swap=[(0, 4)])),
    (ValueError, "models: expected a list", lambda: ensemble([], IMAGE)),
    (ValueError, "weights: expected one number or 1", lambda: ensemble([PIXELS], IMAGE, weights=[1, 2])),
    (ValueError, r"models\[1\]: expected 4 classes", lambda: ensemble([PIXELS, lambda x: x], IMAGE)),
    (ValueError, "image: expected 4 dimensions", lambda: predict(PIXELS, IMAGE[0])),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()
