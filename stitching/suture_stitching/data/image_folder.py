"""A folder of images, decoded batch by batch; with a label each, or with masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import full_scale, to_range
from suture_stitching.data.folder import FolderDataset
from suture_stitching.data.listing import Sample, unreadable
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm")
_DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B"})
_GREY_MODES = frozenset({"1", "L"}) | _DEEP_MODES
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "CMYK", "YCbCr"})
#: The value in a mask with a palette is the index of a colour, whatever the colour is.
_MASK_MODES = frozenset({"P"}) | _GREY_MODES


@dataclass(frozen=True)
class _Header:
    height: int
    width: int
    channels: int
    deep: bool


class ImageFolder(FolderDataset[_Header]):
    """Images of one size, `(C, H, W)` with C = 1 (grey) or 3 (colour), scaled onto `value_range` (default (0, 1))."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec, _SUFFIXES)

    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        assert self.value_range is not None
        samples = [self._samples[index] for index in indices]
        images = np.empty((len(indices), *self.input_shape), dtype=np.float32)
        for row, sample in enumerate(samples):
            pixels = self._decode(sample.file)
            full = full_scale(pixels.dtype)
            assert full is not None
            images[row] = to_range(pixels.astype(np.float32), full, self.value_range)
        if self.task != "segmentation":
            return images, self._targets[indices]
        return images, np.stack([self._mask(sample) for sample in samples])

    def _decode(self, file: str) -> NDArray[Any]:
        """Return the image as `(C, H, W)` of an unsigned integer type."""
        channels, height, width = self.input_shape
        with _opened(self._root / file, file) as image:
            if (image.height, image.width) != (height, width):
                raise _sizes_differ(self._samples[0].file, (height, width), file, (image.height, image.width))
            if image.mode in _DEEP_MODES:
                pixels = np.asarray(image).astype(np.uint16)
                return np.broadcast_to(pixels, (channels, height, width))
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def _mask(self, sample: Sample) -> NDArray[Any]:
        file = str(sample.target)
        with _opened(self._root / file, file) as image:
            if (image.height, image.width) != self.input_shape[1:]:
                raise _mask_differs(file)
            values = np.asarray(image)
        return self._indices_of_mask(values.astype(np.int64), file)

    def _check_content(self, sample: Sample) -> None:
        self._decode(sample.file)
        if self.task == "segmentation":
            self._mask(sample)

    def _header(self, sample: Sample) -> _Header:
        with _opened(self._root / sample.file, sample.file) as image:
            mode, height, width = image.mode, image.height, image.width
        if mode not in _GREY_MODES | _COLOUR_MODES:
            raise unreadable(sample.file, f"pixels of type {mode} are not supported")
        if self.task == "segmentation":
            file = str(sample.target)
            with _opened(self._root / file, file) as mask:
                size, kind = (mask.height, mask.width), mask.mode
            if size != (height, width):
                raise _mask_differs(file)
            if kind not in _MASK_MODES:
                raise SutureError(
                    "dataset.mask_in_colour",
                    f"a mask has one value per pixel, not a colour ({kind})",
                    where=file,
                    hint="save it as a grey image or one with a palette, whose values are the labels' indices",
                )
        return _Header(height, width, 1 if mode in _GREY_MODES else 3, mode in _DEEP_MODES)

    def _shape(self, files: list[str], headers: list[_Header]) -> tuple[int, ...]:
        first = headers[0]
        seen: dict[int, str] = {}
        for file, header in zip(files, headers, strict=True):
            if header.deep and self._spec.channels == 3:
                raise unreadable(file, "a 16-bit grey image cannot be delivered in colour")
            if (header.height, header.width) != (first.height, first.width):
                raise _sizes_differ(files[0], (first.height, first.width), file, (header.height, header.width))
            seen.setdefault(header.channels, file)
        if self._spec.channels is None and len(seen) > 1:
            raise SutureError(
                "dataset.channels_differ",
                f"{seen[1]} is grey and {seen[3]} is in colour",
                where=self.where,
                hint="set channels = 1 (all grey) or channels = 3 (all colour) for this dataset",
            )
        return self._spec.channels or first.channels, first.height, first.width


@contextmanager
def _opened(path: Path, file: str) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises in the block, for a broken or hostile file, names the file instead."""
    try:
        with Image.open(path) as image:
            # A header that claims hundreds of millions of pixels is refused before they are allocated; Pillow itself
            # only warns about half of them.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except SutureError:
        raise
    except Exception as error:
        raise unreadable(file, _reason(error)) from None


def _sizes_differ(first: str, size: tuple[int, int], file: str, other: tuple[int, int]) -> SutureError:
    return SutureError(
        "dataset.sizes_differ",
        f"{file} has {other[0]} x {other[1]} pixels, {first} has {size[0]} x {size[1]}",
        where=file,
        hint="all images of a dataset need one size (height x width); resize or crop them beforehand",
    )


def _mask_differs(file: str) -> SutureError:
    return SutureError(
        "dataset.mask_mismatch",
        "the mask has another size than its image",
        where=file,
        hint="each pixel of an image has one in its mask; export the mask again",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "the site may not read it"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it claims far too many pixels"
    return "the file is damaged or not an image"
