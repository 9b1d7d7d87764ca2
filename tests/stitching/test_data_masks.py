"""Folders of images with a mask for each: read with their images, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stitching.image_folders import read, refused, spec, write_image

from suture_stitching.data import SPLITS, SplitRule, open_dataset


def write_pair(root, name, value=0, mask=None, suffix="png"):
    """An image, and a mask whose left half shows the second label."""
    write_image(root / "images" / f"{name}.{suffix}", value)
    path = root / "masks" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = np.zeros((4, 6), dtype=np.uint8)
    halves[:, :3] = 1
    (Image.fromarray(halves) if mask is None else mask).save(path)


@pytest.fixture
def drawn(tmp_path):
    for i in range(10):
        write_pair(tmp_path / "drawn", f"{i:02}", 20 * i, suffix="jpg" if i % 2 else "png")
    return tmp_path / "drawn"


def segmentation(**changes):
    return {"task": "segmentation", "labels": ("background", "polyp"), **changes}


def test_masks_come_with_their_images(drawn):
    dataset = open_dataset(spec(drawn, **segmentation()))
    assert dataset.input_shape == (1, 4, 6)
    assert dataset.counts("train") == {"background": 5, "polyp": 5}
    inputs, targets = read(dataset, "train")
    assert targets.dtype == torch.int64
    assert targets.shape == (5, 4, 6)
    assert targets[:, :, :3].all()
    assert not targets[:, :, 3:].any()
    # Of a mask that shows more, the image is the one of its name.
    whole = Image.fromarray(np.ones((4, 6), dtype=np.uint8))
    write_pair(drawn, "04", 255, whole)
    inputs, targets = read(
        open_dataset(spec(drawn, **segmentation(split=SplitRule(validation=0.1, test=0.1)))), "train"
    )
    assert torch.equal(inputs.mean((1, 2, 3)) > 0.99, targets.flatten(1).all(1))


def test_masks_below_split_folders(tmp_path):
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        for i in range(count):
            write_pair(tmp_path / split, f"{i}", i)
    dataset = open_dataset(spec(tmp_path, **segmentation()))
    assert [dataset.n(split) for split in SPLITS] == [4, 2, 3]


def test_mask_values_say_what_stands_for_each_label(drawn):
    for i in range(10):
        mask = np.full((4, 6), 255, dtype=np.uint8)
        mask[0, 0] = 7
        write_pair(drawn, f"{i:02}", mask=Image.fromarray(mask), suffix="jpg" if i % 2 else "png")
    message = refused(drawn, "dataset.label_out_of_range", **segmentation())
    assert "masks/" in message
    assert "none of 0 to 1" in message
    _, targets = read(open_dataset(spec(drawn, **segmentation(mask_values=(255, 7)))), "train")
    assert targets[:, 0, 0].tolist() == [1] * 5
    assert targets.sum() == 5
    assert "none of mask_values" in refused(drawn, "dataset.label_out_of_range", **segmentation(mask_values=(0, 255)))


def test_masks_with_a_palette_or_one_bit_are_masks(drawn):
    palette = Image.fromarray(np.eye(4, 6, dtype=np.uint8)).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0] + [0] * 762)
    for i in range(10):
        mask = palette if i % 2 else Image.fromarray(np.eye(4, 6, dtype=np.uint8) * 255).convert("1")
        write_pair(drawn, f"{i:02}", mask=mask, suffix="jpg" if i % 2 else "png")
    _, targets = read(open_dataset(spec(drawn, **segmentation())), "train")
    assert torch.equal(targets, torch.eye(4, 6, dtype=torch.int64).expand(5, 4, 6))


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (Image.new("RGB", (6, 4), (9, 8, 7)), "dataset.mask_in_colour"),
        (Image.new("L", (5, 4)), "dataset.mask_mismatch"),
        (Image.new("L", (6, 4), 9), "dataset.label_out_of_range"),
    ],
)
def test_a_mask_in_colour_of_another_size_or_value_is_named(drawn, mask, code):
    write_pair(drawn, "04", mask=mask)
    assert "masks/04.png" in refused(drawn, code, **segmentation(on_unreadable="skip"))


def test_each_image_has_one_mask(drawn):
    (drawn / "masks" / "04.png").rename(drawn / "masks" / "4.png")
    assert "images/04.png" in refused(drawn, "dataset.missing_mask", **segmentation())
    write_pair(drawn, "04")
    assert "masks/4.png" in refused(drawn, "dataset.missing_mask", **segmentation())
    (drawn / "masks" / "4.png").unlink()
    write_pair(drawn, "04", suffix="bmp")
    assert "images/04.bmp and images/04.png" in refused(drawn, "dataset.duplicate", **segmentation())
    (drawn / "images" / "04.bmp").unlink()
    write_image(drawn / "lost.png")
    assert "lost.png" in refused(drawn, "dataset.unlabelled_image", **segmentation())


def test_a_damaged_mask_is_named_or_left_out_with_its_image(drawn):
    path = drawn / "masks" / "04.png"
    path.write_bytes(path.read_bytes()[:45])  # the header is whole
    assert "masks/04.png" in refused(drawn, "dataset.unreadable_image", **segmentation())
    dataset = open_dataset(spec(drawn, **segmentation(on_unreadable="skip")))
    assert dataset.skipped == ("images/04.png",)
    assert sum(dataset.n(split) for split in SPLITS) == 9
