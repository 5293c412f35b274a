"""Folders of the known layouts are found, and what is wrong with a file is said with its path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segops.data.augment import Augmentation
from segops.data.datasets import Folder, Scenes, open_data
from segops.data.files import DataError, read_image, read_mask
from segops.data.layouts import CAMVID, CITYSCAPES, VOC, detect

SIZE = (6, 8)


def photo(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)


def mask(path, value, size=SIZE, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype)).save(path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            photo(tmp_path / split / "images" / f"{i}.jpg")
            mask(tmp_path / split / "masks" / f"{i}.png", i)
    return tmp_path


def voc(root):
    photo(root / "JPEGImages" / "a.jpg")
    mask(root / "SegmentationClass" / "a.png", 20)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return 20, VOC


def cityscapes(root):
    photo(root / "leftImg8bit" / "train" / "ulm" / "ulm_0_leftImg8bit.png")
    mask(root / "gtFine" / "train" / "ulm" / "ulm_0_gtFine_labelIds.png", 26)
    return CITYSCAPES.index("car"), CITYSCAPES


def ade20k(root):
    photo(root / "images" / "training" / "a.jpg")
    mask(root / "annotations" / "training" / "a.png", 150)
    rows = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i}\t0\t0\t0\tthing {i}, other" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(rows))
    return 149, [f"thing_{i}" for i in range(1, 151)]


@pytest.mark.parametrize("make", [voc, cityscapes, ade20k])
def test_layouts_of_the_field(make, tmp_path):
    label, names = make(tmp_path)
    assert detect(tmp_path) == make.__name__
    data = Folder(tmp_path, "train")
    assert len(data) == 1 and data.names == list(names) and len(data.colours) == len(names)
    assert (data[0][1] == label).all()


@pytest.mark.parametrize(
    ("make", "path", "value"),
    [(cityscapes, "gtFine/train/ulm/ulm_0_gtFine_labelIds.png", 9), (ade20k, "annotations/training/a.png", 0)],
)
def test_numbers_that_are_no_labels_of_training_are_ignored(make, path, value, tmp_path):
    make(tmp_path)
    mask(tmp_path / path, value)
    assert (Folder(tmp_path, "train")[0][1] == 255).all()


def test_folder_with_and_without_names(folder):
    data = Folder(folder, "val")
    assert data.names == ["class_0", "class_1", "class_2"] and len(data) == 3 and data.title(2) == "2"
    image, target = data[1]
    assert image.shape == (3, *SIZE) and target.shape == SIZE and (target == 1).all()
    (folder / "classes.txt").write_text("cat\ndog\ncow\n")
    assert Folder(folder).names == ["cat", "dog", "cow"]
    camvid = Folder(folder, names="camvid")
    assert camvid.names == CAMVID and camvid.colours[3].tolist() == [128, 64, 128]
    assert data.frequencies().tolist() == [[48] * 3, [48] * 3]


@pytest.mark.parametrize("size", [(3, 4), (12, 16)])
def test_photos_are_resized_and_masks_of_validation_are_not(size, folder):
    image, target = Folder(folder, "val", size=size)[0]
    assert image.shape == (3, *size) and target.shape == SIZE


def test_what_is_cached_is_read_once_and_augmented_anew(folder):
    options = {"size": (24, 32), "augment": Augmentation((10, 12), scale=(0.5, 2), max_class_ratio=1)}
    plain, cached = Folder(folder, **options), Folder(folder, **options, cache=True)
    first = [[x.clone() for x in cached[epoch, 1]] for epoch in range(3)]
    assert not torch.equal(first[0][0], first[1][0])
    cached.samples = []  # nothing to read from any more
    for epoch in range(3):
        for again, before, read in zip(cached[epoch, 1], first[epoch], plain[epoch, 1], strict=True):
            assert torch.equal(again, before) and torch.equal(again, read)


def missing_mask(root):
    (root / "train" / "masks" / "1.png").unlink()
    return "train/masks/1.png"


def label_out_of_range(root):
    (root / "classes.txt").write_text("a\nb\nc\n")
    mask(root / "train" / "masks" / "1.png", 3)
    return "train/masks/1.png: expected labels from 0 to 2, or 255, got 3"


def other_size(root):
    mask(root / "train" / "masks" / "1.png", 0, (6, 9))
    return "train/masks/1.png: expected 6 x 8 pixels like 1.jpg, got 6 x 9"


def empty(root):
    for i in range(3):
        (root / "train" / "images" / f"{i}.jpg").unlink()
    return "expected pictures of the split 'train', found none"


def cut_off(root):
    path = root / "train" / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return "train/images/1.jpg: expected a picture"


def colour(root):
    photo(root / "train" / "masks" / "1.png")
    return "train/masks/1.png: expected a grey or indexed mask"


def wide(root):
    mask(root / "train" / "masks" / "1.png", 300, dtype=np.uint16)
    return "train/masks/1.png: expected labels from 0 to 255, got 300"


def no_split(root):
    (root / "train" / "images").rename(root / "train" / "photos")
    return "train/images"


@pytest.mark.parametrize(
    "spoil", [missing_mask, label_out_of_range, other_size, empty, cut_off, colour, wide, no_split]
)
def test_what_is_wrong_is_said_with_the_file(spoil, folder):
    message = spoil(folder)
    with pytest.raises(DataError) as error:
        list(Folder(folder, "train"))
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_no_data_set(tmp_path):
    with pytest.raises(DataError, match="expected train/images"):
        open_data(tmp_path, "train")
    with pytest.raises(DataError, match="there is none"):
        open_data(tmp_path / "nothing", "train")
    with pytest.raises(ValueError, match="layout"):
        open_data(tmp_path, "train", layout="coco")
    voc(tmp_path)
    with pytest.raises(ValueError, match="names"):
        Folder(tmp_path, layout="voc", names="coco")


def test_wide_masks_with_small_labels_and_turned_photos(tmp_path):
    mask(tmp_path / "wide.png", 7, dtype=np.uint16)
    assert (read_mask(tmp_path / "wide.png") == 7).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 6, 3)


def test_scenes_are_the_same_each_time_and_other_in_each_split():
    one, again, other = Scenes("train").read(3), Scenes("train").read(3), Scenes("val").read(3)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert (one[1] != other[1]).any()
    labels = np.stack([Scenes("val").read(i)[1] for i in range(16)])
    assert set(np.unique(labels)) == set(range(6))
    with pytest.raises(ValueError, match="split"):
        Scenes("all")
    with pytest.raises(IndexError):
        Scenes("val").read(16)
