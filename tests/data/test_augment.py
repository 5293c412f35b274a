"""Augmentation: photo and mask stay together, the seed decides, and crops are as asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segops.data import IMAGENET_MEAN as MEAN
from segops.data import IMAGENET_STD as STD
from segops.data.augment import Augmentation, normalized

LABELS = torch.arange(12, dtype=torch.uint8).view(3, 4).repeat_interleave(10, 0).repeat_interleave(10, 1)  # 30 x 40
PHOTO = (20 * LABELS).repeat(3, 1, 1)  # whose colours tell the label


def test_photo_and_mask_stay_together():
    augment = Augmentation((24, 28), jitter=0, max_class_ratio=1)
    for seed in range(30):
        image, target = augment(PHOTO, LABELS, (seed,))
        assert image.shape == (3, 24, 28) and target.shape == (24, 28) and image.dtype == target.dtype == torch.uint8
        told = (image[0].float() / 20).round()
        inside = target != 255
        assert (told == target)[inside].float().mean() > 0.8  # all but the mixed colours between two labels
        mean = torch.tensor(MEAN).mul(255).round()
        assert (image[:, ~inside].float() == mean[:, None]).all()


def test_the_seed_decides_everything():
    augment = Augmentation((20, 20))
    one, again, other = (augment(PHOTO, LABELS, seed) for seed in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    torch.manual_seed(99)
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[1], other[1])


def test_scales_and_mirrors():
    sizes, mirrored = [], 0
    for seed in range(200):
        whole = Augmentation((60, 80), scale=(0.5, 2), jitter=0, max_class_ratio=1)
        _, target = whole(PHOTO, LABELS, (seed,))
        sizes.append(float((target != 255).sum()) / LABELS.numel())
        _, same = Augmentation((30, 40), scale=(1, 1), jitter=0, max_class_ratio=1)(PHOTO, LABELS, (seed,))
        assert torch.equal(same, LABELS) or torch.equal(same, LABELS.flip(-1))
        mirrored += int(torch.equal(same, LABELS.flip(-1)))
    assert 0.24 < min(sizes) < 0.3 and 3.5 < max(sizes) < 4.1
    assert 70 < mirrored < 130


def test_a_crop_with_too_much_of_one_class_is_drawn_again():
    labels = torch.zeros(40, 400, dtype=torch.uint8)
    labels[:, 200:300], labels[:, 300:] = 1, 2
    photo = torch.zeros(3, 40, 400, dtype=torch.uint8)

    def alone(ratio: float) -> float:
        augment = Augmentation((40, 40), scale=(1, 1), flip=0, jitter=0, max_class_ratio=ratio)
        crops = [augment(photo, labels, (seed,))[1] for seed in range(100)]
        return np.mean([float(crop.flatten().bincount().max() / crop.numel()) > ratio for crop in crops])

    assert alone(0.75) < 0.5 < np.mean([len(set(range(left, left + 40)) & {200, 300}) == 0 for left in range(361)])


def test_jitter_changes_photos_and_not_masks():
    augment = Augmentation((30, 40), scale=(1, 1), flip=0, jitter=1, max_class_ratio=1)
    photo = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    changed = 0
    for seed in range(20):
        image, target = augment(photo, LABELS, (seed,))
        changed += int(not torch.equal(image, photo))
        assert torch.equal(target, LABELS) and image.dtype == torch.uint8
    assert changed > 12


def test_distortion_is_as_large_as_asked():
    photo = torch.full((3, 8, 8), 100, dtype=torch.uint8)

    def seen(distortion: tuple[float, ...]) -> torch.Tensor:
        augment = Augmentation((8, 8), scale=(1, 1), jitter=1, max_class_ratio=1, distortion=distortion)
        labels = torch.zeros(8, 8, dtype=torch.uint8)
        return torch.stack([augment(photo, labels, (seed,))[0] for seed in range(300)]).unique()

    grey = seen((0, 0.5, 0.5, 0.5))  # only brightness would show; each of the others may round down
    assert 97 <= grey.min() and grey.max() == 100
    levels = seen((0.4, 0, 0, 0))
    assert 60 <= levels.min() < 66 and 134 < levels.max() <= 140


def test_normalisation():
    photo = torch.tensor(MEAN).mul(255).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert normalized(photo).abs().max() < 1e-6
    assert torch.allclose(normalized(photo + 255 * torch.tensor(STD).view(3, 1, 1)), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"crop": (0, 4)}, "crop"),
        ({"scale": (2, 1)}, "scale"),
        ({"scale": (0, 1)}, "scale"),
        ({"flip": 1.5}, "flip"),
        ({"max_class_ratio": -1}, "max_class_ratio"),
        ({"jitter": "yes"}, "jitter"),
        ({"distortion": (0.1, 0.5, 0.5)}, "distortion"),
        ({"distortion": (1, 0.5, 0.5, 0.05)}, "distortion"),
        ({"distortion": (0.1, 0.5, 0.5, 0.6)}, "distortion"),
        ({"distortion": (-0.1, 0.5, 0.5, 0)}, "distortion"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises((TypeError, ValueError), match=named):
        Augmentation(**{"crop": (4, 4), **options})
