"""Files as hospitals keep them, written for a test, and read or refused by their description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.formats import format_of

LABELS = ("benign", "malignant")
DRAWN = np.random.default_rng(0)
PICTURE = InputSpec(num_channels=1, spatial_shape=(8, 8), value_range=(0.0, 1.0))
LEADS = InputSpec(format="signal", num_channels=3, spatial_shape=(40,))
COLUMNS = InputSpec(format="table", num_channels=3)


def described(path: Path, **given) -> DatasetSpec:
    given = {"labels": () if given.get("task") == "regression" else LABELS, "format": format_of(path), **given}
    return DatasetSpec(path=path, **given)


def values(path: Path, **given) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and targets, in the order of the splits."""
    dataset = open_dataset(described(path, **given))
    read = [batch for split in SPLITS for batch in dataset.batches(split, 7)]
    return np.concatenate([x.numpy() for x, _ in read]), np.concatenate([y.numpy() for _, y in read])


def refused(path: Path, code: str, **given) -> str:
    with pytest.raises(SutureError) as error:
        values(path, **given)
    assert error.value.code == code, error.value
    return str(error.value)


def grey(bits: int = 8, size: tuple[int, int] = (8, 8)) -> Image.Image:
    kind = np.uint8 if bits <= 8 else np.uint16
    pixels = DRAWN.integers(0, 2**bits, size, dtype=np.uint32).astype(kind)
    pixels[0, 0] = 2**bits - 1
    return Image.fromarray(pixels)


def folders(root: Path, save, *, names=LABELS, n: int = 10) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(n):
            save(root / name / f"{index:02}.png", index)
    return root


def dicom(path: Path, pixels: np.ndarray, **tags) -> None:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[-2:], 1
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(str(path), enforce_file_format=True)


def table(separator: str = ",", decimal: str = ".", extra: str = "", cell: str = "") -> str:
    head = separator.join(filter(None, [extra and extra.partition("=")[0], "age", "bp", "hr", "label"]))
    lines = [
        separator.join(filter(None, [extra and extra.partition("=")[2].format(row), *numbers, ("no", "yes")[row % 2]]))
        for row in range(40)
        for numbers in [[str(20 + row), f"{100 + row / 8}".replace(".", decimal), cell or str(60 + row % 7)]]
    ]
    return "\n".join([head, *lines]) + "\n"
