"""Pictures and masks that do not say plainly what their values are: read rightly, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.stitching.kinds import DRAWN, LABELS, folders, grey, refused, values

SEGMENTATION = {"task": "segmentation", "labels": ("background", "polyp")}
HALF = np.repeat([[0], [1]], (4, 4), axis=0).repeat(8, axis=1).astype(np.uint8)


def tiff(path: Path, pixels: np.ndarray, photometric: int, kind: int = 1) -> None:
    """Write `(H, W)` or `(H, W, C)` as an uncompressed TIFF of one strip."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = 8 * pixels.dtype.itemsize
    behind = b"".join(np.array([value] * channels, "<u2").tobytes() for value in (bits, kind)) if channels > 2 else b""
    tags = [
        *((256, 3, 1, pixels.shape[1]), (257, 3, 1, pixels.shape[0])),
        (258, 3, channels, bits if channels < 3 else 158),
        *((259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 158 + len(behind))),
        *((277, 3, 1, channels), (278, 3, 1, pixels.shape[0]), (279, 4, 1, pixels.nbytes), (284, 3, 1, 1)),
        *((338, 3, 1, 0), (339, 3, channels, kind if channels < 3 else 158 + 2 * channels)),
    ]
    tags = [tag for tag in tags if tag[0] != 338 or channels == 4]
    directory = b"".join(np.array([*tag[:2]], "<u2").tobytes() + np.array(tag[2:], "<u4").tobytes() for tag in tags)
    head = b"II*\0" + np.array([8], "<u4").tobytes() + np.array([len(tags)], "<u2").tobytes() + directory + b"\0" * 4
    path.write_bytes(head.ljust(158, b"\0") + behind + pixels.tobytes())


def pairs(root: Path, mask, suffix: str = "png") -> Path:
    """Ten grey images with the masks that `mask(path, index)` writes."""
    for index in range(10):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        grey().save(root / "images" / f"{index}.png")
        mask(root / "masks" / f"{index}.{suffix}", index)
    return root


def test_a_tiff_in_which_more_is_darker_is_turned(tmp_path):
    for name, kind in (("few", np.uint8), ("many", np.uint16)):
        most = np.iinfo(kind).max
        pixels = np.full((8, 8), most // 4, kind)
        root = folders(tmp_path / name, lambda path, _, pixels=pixels: tiff(path.with_suffix(".tif"), pixels, 0))
        assert np.allclose(values(root)[0], 0.75, atol=0.01)
    numbers = np.full((8, 8), 0.25, np.float32)
    root = folders(tmp_path / "numbers", lambda path, _: tiff(path.with_suffix(".tif"), numbers, 0, 3))
    assert "more is darker" in refused(root, "dataset.unreadable_image")


def test_channels_beyond_colours_are_never_left_out(tmp_path):
    pixels = DRAWN.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    root = folders(tmp_path / "four", lambda path, _: tiff(path.with_suffix(".tif"), pixels, 2))
    assert "it has 4 channels" in refused(root, "dataset.unreadable_image")
    tones = DRAWN.uniform(size=(8, 8, 3)).astype(np.float32)
    root = folders(tmp_path / "tones", lambda path, _: tiff(path.with_suffix(".tif"), tones, 2, 3))
    assert "a TIFF of a kind that is not read" in refused(root, "dataset.unreadable_image")


@pytest.mark.parametrize("beneath", [0, 200])
def test_what_transparent_pixels_hide_is_no_part_of_a_picture(tmp_path, beneath):
    def save(path, _):
        colours = DRAWN.integers(1, 256, (8, 8, 3), dtype=np.uint8)
        colours[:4] = beneath
        Image.fromarray(np.dstack([colours, HALF * 255])).save(path)

    root = folders(tmp_path / "cut", save)
    if beneath:
        assert "some pixels are transparent" in refused(root, "dataset.unreadable_image")
    else:
        assert not values(root)[0][:, :, :4].any()


@pytest.mark.parametrize("suffix", ["j2k", "jp2", "jpx", "pnm"])
def test_pictures_by_every_suffix(tmp_path, suffix):
    root = folders(tmp_path / suffix, lambda path, _: grey().save(path.with_suffix(f".{suffix}")))
    assert values(root)[0].max() > 0.9


@pytest.mark.parametrize(
    "drawn",
    [
        np.dstack([np.full((8, 8, 3), 255, np.uint8), HALF * 255]),
        np.dstack([np.zeros((8, 8, 3), np.uint8), HALF * 255]),
        np.dstack([np.ones((8, 8), np.uint8), HALF * 255]),
    ],
    ids=["white", "black", "grey"],
)
def test_a_mask_drawn_by_transparency_is_refused(tmp_path, drawn):
    root = pairs(tmp_path, lambda path, _: Image.fromarray(drawn, "LA" if drawn.shape[2] == 2 else "RGBA").save(path))
    assert "by transparency" in refused(root, "dataset.mask_in_colour", **SEGMENTATION)


def test_a_mask_whose_transparency_says_the_same_is_read(tmp_path):
    drawn = np.dstack([HALF * 255, HALF * 0, HALF * 0, HALF * 255])
    root = pairs(tmp_path, lambda path, _: Image.fromarray(drawn).save(path))
    assert (values(root, **SEGMENTATION)[1] == HALF).all()


def test_a_soft_mask_is_never_cut_to_whole_numbers(tmp_path):
    soft = (HALF * 0.9 + 0.05).astype(np.float32)
    root = pairs(tmp_path / "soft", lambda path, _: tiff(path, soft, 1, 3), "tif")
    assert "not whole numbers" in refused(root, "dataset.not_numbers", **SEGMENTATION)
    root = pairs(tmp_path / "hard", lambda path, _: tiff(path, HALF.astype(np.float32), 1, 3), "tif")
    assert (values(root, **SEGMENTATION)[1] == HALF).all()


def test_the_second_label_is_written_in_one_way(tmp_path):
    """Where 1 is the second label, a lone 255 most likely stands for what is to be ignored."""
    mixed = pairs(tmp_path / "mixed", lambda path, index: Image.fromarray(HALF * (255 if index % 2 else 1)).save(path))
    message = refused(mixed, "dataset.label_out_of_range", **SEGMENTATION)
    assert "1 in masks/" in message
    assert "255 in masks/" in message
    both = np.where(np.arange(8) == 7, 255, HALF).astype(np.uint8)
    ignoring = pairs(tmp_path / "both", lambda path, _: Image.fromarray(both).save(path))
    assert "to be ignored" in refused(ignoring, "dataset.label_out_of_range", **SEGMENTATION)
    masks = np.stack([HALF * (255 if index % 2 else 1) for index in range(20)])
    images = DRAWN.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, masks=masks)
    # Arrays are looked at in pieces; one of them has both.
    message = refused(tmp_path / "a.npz", "dataset.label_out_of_range", **SEGMENTATION)
    assert "to be ignored" in message


def test_what_a_file_is_says_whether_its_mask_lost_something(tmp_path):
    root = pairs(tmp_path, lambda path, _: Image.fromarray(HALF).save(path, "JPEG"))
    labels = (*LABELS, "other")
    assert "compressed with loss" in refused(root, "dataset.label_out_of_range", task="segmentation", labels=labels)
