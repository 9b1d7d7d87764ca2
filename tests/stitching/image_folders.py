"""Folders of images as tests write them, described, read, or refused."""

import pytest
import torch
from PIL import Image

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset

LABELS = ("normal", "pneumonia")


def write_image(path, value=0, size=(6, 4), mode="L"):
    """`size` is (width, height), as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def spec(root, **changes):
    return DatasetSpec(**{"path": root, "format": "image_folder", "labels": LABELS, **changes})


def read(dataset, split, **options):
    inputs, targets = zip(*dataset.batches(split, 3, **options), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def read_all(description):
    dataset = open_dataset(description)
    for split in SPLITS:
        list(dataset.batches(split, 4))


def refused(root, code, **changes):
    with pytest.raises(SutureError) as error:
        read_all(spec(root, **changes))
    assert error.value.code == code, error.value
    return str(error.value)


def write_labels(root, rows, header="file,label"):
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def every_line(root):
    return [f"{file.relative_to(root).as_posix()},{file.parent.name}" for file in sorted(root.rglob("*.png"))]
