"""A folder of images by class, decoded batch by batch.

scans/normal/0001.png                     the class folder is the label
scans/train/normal/0001.png               with the splits as top folders: train, validation, test
scans/labels.csv                          optional: file,label[,split]; must agree with the images
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from suture_stitching.data.dataset import Dataset, full_scale, to_range
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.splits import Indices, by_name, carve_validation, stratified
from suture_stitching.errors import SutureError

LABELS_FILE = "labels.csv"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"})
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})
_GREY_MODES = frozenset({"1", "L", "I;16", "I;16L", "I;16B"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class _Sample:
    file: str  # relative to the dataset's folder, with forward slashes on every system
    label: str
    split: str | None


class ImageFolder(Dataset):
    """Images of one size, `(C, H, W)` with C = 1 (grey) or 3 (colour), scaled onto `value_range` (default (0, 1)).

    Only the list of files is held; images are decoded when their batch is asked for.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.task = spec.task
        self.labels = spec.labels
        self.value_range = spec.value_range or (0.0, 1.0)
        self.where = str(spec.path)
        self._root = spec.path
        samples = _list_samples(spec)
        self._files = [sample.file for sample in samples]
        index = {label: i for i, label in enumerate(spec.labels)}
        self._targets = np.array([index[sample.label] for sample in samples], dtype=np.int64)
        height, width, channels = self._check_headers(spec.channels)
        self.input_shape = (channels, height, width)

        keys = [sample.file.encode() for sample in samples]
        classes = self._targets.tolist()
        if any(sample.split for sample in samples):
            names = [sample.split or "" for sample in samples]
            self._splits = carve_validation(by_name(names, where=self.where), keys, classes, spec.split)
        else:
            self._splits = stratified(keys, classes, spec.split)
        self._check_splits()

    def _read(self, indices: Indices) -> tuple[NDArray[np.float32], NDArray[Any]]:
        assert self.value_range is not None
        images = np.empty((len(indices), *self.input_shape), dtype=np.float32)
        for row, index in enumerate(indices):
            pixels = self._decode(self._files[index])
            full = full_scale(pixels.dtype)
            assert full is not None
            images[row] = to_range(pixels.astype(np.float32), full, self.value_range)
        return images, self._targets[indices]

    def _label_counts(self, indices: Indices) -> NDArray[np.int64]:
        return np.bincount(self._targets[indices], minlength=len(self.labels)).astype(np.int64)

    def _decode(self, file: str) -> NDArray[Any]:
        """Return the image as `(C, H, W)` of an unsigned integer type."""
        channels, height, width = self.input_shape
        with _opened(self._root / file, file) as image:
            if (image.height, image.width) != (height, width):
                raise _sizes_differ(self._files[0], (height, width), file, (image.height, image.width))
            if image.mode.startswith("I;16"):
                pixels = np.asarray(image).astype(np.uint16)
                return np.broadcast_to(pixels, (channels, height, width))
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def _check_headers(self, channels: int | None) -> tuple[int, int, int]:
        """Read every image's header (no pixels) and return the common (height, width, channels)."""
        first: tuple[int, int] | None = None
        seen: dict[int, str] = {}
        for file in self._files:
            with _opened(self._root / file, file) as image:
                size = (image.height, image.width)
                mode = image.mode
            if mode not in _GREY_MODES | _COLOUR_MODES:
                raise _unreadable(file, f"pixels of type {mode} are not supported")
            if mode.startswith("I;16") and channels == 3:
                raise _unreadable(file, "a 16-bit grey image cannot be delivered in colour")
            seen.setdefault(1 if mode in _GREY_MODES else 3, file)
            first = first or size
            if size != first:
                raise _sizes_differ(self._files[0], first, file, size)
        if channels is None and len(seen) > 1:
            raise SutureError(
                "dataset.channels_differ",
                f"{seen[1]} is grey and {seen[3]} is in colour",
                where=self.where,
                hint="set channels = 1 (all grey) or channels = 3 (all colour) for this dataset",
            )
        assert first is not None
        return (*first, channels or next(iter(seen)))


@contextmanager
def _opened(path: Path, file: str) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises in the block, for a broken or hostile file, names the file instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A header that claims hundreds of millions of pixels is refused before they are allocated.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                yield image
        except SutureError:
            raise
        except Exception as error:
            raise _unreadable(file, _reason(error)) from None


def _list_samples(spec: DatasetSpec) -> list[_Sample]:
    """Return every image with its label, in order of its name, after checking folders and `labels.csv`."""
    root = spec.path
    images = sorted(_find_images(root))
    if not images:
        raise SutureError(
            "dataset.empty", "there are no images", where=str(root), hint="put images into one folder per class"
        )
    listed = _read_labels_file(root / LABELS_FILE) if (root / LABELS_FILE).exists() else None
    samples = [_sample(file, listed, spec) for file in images]
    if listed:
        present = set(images)
        absent = next((file for file in listed if file not in present), None)
        if absent is not None:
            raise SutureError(
                "dataset.missing_image",
                f"{absent} is listed but there is no such image",
                where=str(root / LABELS_FILE),
                hint="add the image or remove its line; files are relative to the dataset's folder",
            )
    with_split = [sample for sample in samples if sample.split]
    if with_split and len(with_split) < len(samples):
        lone = next(sample.file for sample in samples if not sample.split)
        raise SutureError(
            "dataset.unknown_split",
            f"{lone} belongs to no split while other images do",
            where=str(root),
            hint=f"move it below one of the top folders {', '.join(SPLITS)}, or name its split in {LABELS_FILE}",
        )
    return samples


def _sample(file: str, listed: dict[str, tuple[str, str | None]] | None, spec: DatasetSpec) -> _Sample:
    folders = PurePosixPath(file).parts[:-1]
    folder_split = folders[0] if folders and folders[0] in SPLITS and folders[0] not in spec.labels else None
    if folder_split:
        folders = folders[1:]
    folder = folders[0] if folders else None
    if listed is None:
        if folder not in spec.labels:
            raise SutureError(
                "dataset.unlabelled_image" if folder is None else "dataset.unknown_label",
                f"{file} lies in no class folder" if folder is None else f"the folder of {file} is none of the labels",
                where=str(spec.path),
                hint=f"labels are {', '.join(spec.labels)}; name the folder after one of them, or add it to labels",
            )
        return _Sample(file, folder, folder_split)
    where = str(spec.path / LABELS_FILE)
    if file not in listed:
        raise SutureError(
            "dataset.unlabelled_image",
            f"{file} has no line",
            where=where,
            hint="add a line for it, or move the image out of the dataset's folder",
        )
    label, split = listed[file]
    if label not in spec.labels:
        raise SutureError(
            "dataset.unknown_label",
            f"the label of {file} is not among the dataset's labels",
            where=where,
            hint=f"labels are {', '.join(spec.labels)}; correct the line, or add its label to labels",
        )
    if split and split not in SPLITS:
        raise SutureError(
            "dataset.unknown_split",
            f"the split of {file} is not one of {', '.join(SPLITS)}",
            where=where,
            hint="correct the line, or leave out the column to have the split made from a seed",
        )
    if folder in spec.labels and folder != label:
        raise SutureError(
            "dataset.contradiction",
            f"{file} is listed as '{label}' but lies in the folder '{folder}'",
            where=where,
            hint="correct the line or move the image",
        )
    if split and folder_split and split != folder_split:
        raise SutureError(
            "dataset.contradiction",
            f"{file} is listed in split '{split}' but lies in the folder '{folder_split}'",
            where=where,
            hint="correct the line or move the image",
        )
    return _Sample(file, label, split or folder_split)


def _find_images(root: Path) -> Iterator[str]:
    """Yield every image below `root`, relative to it; refuse a file in a class folder that is not an image."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder) != root
        for name in files:
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            file = (Path(folder) / name).relative_to(root).as_posix()
            if Path(name).suffix.lower() in _SUFFIXES:
                yield file
            elif inside:
                raise _unreadable(file, "not a kind of image this reader knows")


def _read_labels_file(path: Path) -> dict[str, tuple[str, str | None]]:
    """Return (label, split) by file, from a CSV file with the columns file, label and optionally split."""
    listed: dict[str, tuple[str, str | None]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            columns = rows.fieldnames or []
            if not {"file", "label"} <= set(columns) or not set(columns) <= {"file", "label", "split"}:
                raise SutureError(
                    "dataset.missing_column",
                    "the first line must name the columns file,label or file,label,split",
                    where=str(path),
                )
            for row in rows:
                line = rows.line_num
                file = (row["file"] or "").strip().replace("\\", "/").removeprefix("./")
                if not file or not row["label"] or None in row:
                    raise SutureError(
                        "dataset.incomplete_line",
                        f"line {line} does not have a value for each column",
                        where=str(path),
                        hint="each line is file,label or file,label,split",
                    )
                if file in listed:
                    raise SutureError(
                        "dataset.duplicate",
                        f"line {line}: {file} is listed a second time",
                        where=str(path),
                        hint="keep one line per image",
                    )
                listed[file] = (row["label"].strip(), (row.get("split") or "").strip() or None)
    except (UnicodeDecodeError, csv.Error):
        raise SutureError(
            "dataset.unreadable", "not a CSV file in UTF-8", where=str(path), hint="save it as CSV (UTF-8)"
        ) from None
    return listed


def _sizes_differ(first: str, size: tuple[int, int], file: str, other: tuple[int, int]) -> SutureError:
    return SutureError(
        "dataset.sizes_differ",
        f"{file} has {other[0]} x {other[1]} pixels, {first} has {size[0]} x {size[1]}",
        where=file,
        hint="all images of a dataset need one size (height x width); resize or crop them beforehand",
    )


def _unreadable(file: str, reason: str) -> SutureError:
    return SutureError(
        "dataset.unreadable_image",
        f"cannot be read as an image: {reason}",
        where=file,
        hint="replace or remove the file",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "the site may not read it"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it claims far too many pixels"
    return "the file is damaged or not an image"
