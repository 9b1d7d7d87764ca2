"""Images in files of their own, decoded batch by batch; with a label each, or with masks.

Pillow reads pictures, turned as their EXIF mark says; pydicom reads DICOM. What is not plain is refused: files with
several pages, values that do not fill their type, several sizes without a word about how to make them one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from suture_contract.compatibility import LUMA
from suture_contract.errors import SutureError
from suture_stitching.data import dicom
from suture_stitching.data.arrays import bits_error, check_used, seldom_used, to_range, unsigned_error
from suture_stitching.data.folder import FolderDataset
from suture_stitching.data.pictures import (
    COLOUR_MODES,
    DEEP_MODES,
    GREY_MODES,
    holds_halved,
    is_grey,
    is_halved,
    opened_picture,
    page_of,
    picture_mask,
    picture_values,
    range_of,
    upright_size,
)
from suture_stitching.data.samples import Sample, unreadable
from suture_stitching.data.spec import PICTURES, DatasetSpec
from suture_stitching.data.splits import Indices
from suture_stitching.data.targets import whole_numbers

_SUFFIXES = (*PICTURES, *dicom.SUFFIXES)
#: Files that are looked at for how many bits their values take; a set that fills its type shows it soon.
_LOOKED_AT = 64
_BACKGROUND = 0
#: By which part spacings may differ that count as one.
_SAME_SPACING = 0.02


@dataclass(frozen=True)
class _Header:
    """`deep` are images of more than 8 bits, `stored` the range of values that are scaled onto `value_range`.

    `spacing` and `whose` are those of DICOM, the former in mm.
    """

    height: int
    width: int
    channels: int
    deep: bool
    stored: tuple[float, float] | None
    spacing: tuple[float, float] | None = None
    whose: tuple[str, str] = ("", "")


class ImageFolder(FolderDataset[_Header]):
    """Images of one size, `(C, H, W)` with C = 1 (grey) or 3 (colour), scaled onto `value_range` (default (0, 1))."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec, _SUFFIXES)
        self._check_bits()

    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        samples = [self._samples[index] for index in indices]
        images = np.empty((len(indices), *self.input_shape), dtype=np.float32)
        for row, sample in enumerate(samples):
            images[row] = self._decode(sample.file)
        if self.task != "segmentation":
            return images, self._targets[indices]
        return images, np.stack([self._mask(sample) for sample in samples])

    def _decode(self, file: str) -> NDArray[np.float32]:
        """Return the image `(C, H, W)`, in `value_range`."""
        assert self.value_range is not None
        values, stored = self._stored(file)
        values = self._sized(values, file, Image.Resampling.BILINEAR)
        if stored is None:
            return self._checked(values, file)
        return to_range(values, stored, self.value_range, clip=self._spec.intensity is not None)

    def _stored(self, file: str) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
        """Return the values `(C, H, W)` as stored, and the range that is to be scaled; None if they are to stay."""
        values, stored = read_image(self._root / file, file, self.input_shape[0], page=self._spec.page)
        return values, self._spec.intensity or stored

    def _checked(self, values: NDArray[np.float32], file: str) -> NDArray[np.float32]:
        """Return numbers that are not scaled, once they lie in the declared range."""
        assert self.value_range is not None
        low, high = self.value_range
        slack = 1e-5 * (high - low)
        if not np.isfinite(values).all():
            raise unreadable(file, "it holds NaN or infinity")
        if values.min() < low - slack or values.max() > high + slack:
            raise SutureError(
                "dataset.value_range",
                f"the image has values outside the declared range {low} to {high}",
                where=file,
                hint="say which stored values become the ends of that range, intensity = [0, 4095] for example",
            )
        return values

    def _sized(self, values: NDArray[np.float32], file: str, how: Image.Resampling) -> NDArray[np.float32]:
        """Return values `(C, H, W)` in the dataset's size."""
        sized = np.stack([_resized(channel, self._spec, how) for channel in values])
        if sized.shape[1:] != self.input_shape[1:]:
            height, width = self.input_shape[1:]
            raise _sizes_differ(self._samples[0].file, (height, width), file, (sized.shape[1], sized.shape[2]))
        return sized

    def _mask(self, sample: Sample) -> NDArray[Any]:
        file = str(sample.target)
        with opened_picture(self._root / file, file, None) as image:
            values = picture_mask(image, len(self.labels), file)
        if values.shape != self._stored_size(sample.file):
            raise _mask_differs(file)
        sized = self._sized(values[None].astype(np.float32), file, Image.Resampling.NEAREST)[0]
        return self._indices_of_mask(whole_numbers(sized, file), file)

    def _stored_size(self, file: str) -> tuple[int, int]:
        path = self._root / file
        if _is_dicom(path):
            header = dicom.read_header(path, file)
            return header.height, header.width
        with opened_picture(path, file, self._spec.page, turn=False) as image:
            return upright_size(image)

    def _check_content(self, sample: Sample) -> None:
        self._stored(sample.file)
        if self.task == "segmentation":
            self._mask(sample)

    def _header(self, sample: Sample) -> _Header:
        path = self._root / sample.file
        if _is_dicom(path):
            dicom_header = dicom.read_header(path, sample.file)
            page_of(dicom_header.frames, sample.file, self._spec.page)
            if dicom_header.rescaled and self._spec.intensity is None:
                raise SutureError(
                    "dataset.intensity",
                    "the file rescales its values, as CT does to Hounsfield units, so no range follows from its bits",
                    where=sample.file,
                    hint="say which values become the ends of the range that the models read: intensity = [-160, 240] "
                    "for soft tissue in CT, for example",
                )
            deep = dicom_header.stored[1] - dicom_header.stored[0] > 255
            header = _Header(
                dicom_header.height,
                dicom_header.width,
                dicom_header.channels,
                deep,
                dicom_header.stored,
                dicom_header.spacing,
                dicom_header.whose,
            )
        else:
            with opened_picture(path, sample.file, self._spec.page, turn=False) as image:
                mode, (height, width) = image.mode, upright_size(image)
                if mode not in GREY_MODES | COLOUR_MODES:
                    raise unreadable(sample.file, f"pixels of type {mode} are not supported")
                grey = is_grey(image)
                deep = mode in DEEP_MODES or is_halved(image)
                if is_halved(image) and self._spec.intensity is not None:
                    raise unreadable(sample.file, "colours of 16 bits are read as 8, which intensity does not fit")
            header = _Header(height, width, 1 if grey else 3, deep, range_of(mode))
        if self.task == "segmentation":
            file = str(sample.target)
            with opened_picture(self._root / file, file, None, turn=False) as mask:
                if upright_size(mask) != (header.height, header.width):
                    raise _mask_differs(file)
        return header

    def _whose(self, header: _Header) -> tuple[str, str]:
        return header.whose

    def _shape(self, files: list[str], headers: list[_Header]) -> tuple[int, ...]:
        seen: dict[int, str] = {}
        first = _size_of(headers[0].height, headers[0].width, self._spec)
        for file, header in zip(files, headers, strict=True):
            if (size := _size_of(header.height, header.width, self._spec)) != first:
                raise _sizes_differ(files[0], first, file, size, self._spec)
            seen.setdefault(header.channels, file)
        if self._spec.channels is None and len(seen) > 1:
            raise SutureError(
                "dataset.channels_differ",
                f"{seen[1]} is grey and {seen[3]} is in colour",
                where=self.where,
                hint="set channels = 1 (all grey) or channels = 3 (all colour) for this dataset",
            )
        self.spacing = _common_spacing([_spacing_of(header, self._spec) for header in headers])
        self._looked_at = [file for file, header in zip(files, headers, strict=True) if header.stored]
        return self._spec.channels or headers[0].channels, *first

    def _check_bits(self) -> None:
        """Raise where the values take fewer bits than they are stored in; numbers that stay are read by this, too."""
        kept = {sample.file for sample in self._samples}
        step = max(1, len(self._samples) // _LOOKED_AT)
        plain = [self._plain_ends(sample.file) for sample in self._samples[::step][:_LOOKED_AT]]
        if self._spec.intensity is not None:
            return
        if ends := [of_file for of_file in plain if of_file is not None]:
            assert self.value_range is not None
            whole = min(first for first, _ in ends), max(last for _, last in ends)
            check_used(whole, self.value_range, self.where, images=True)
        files = [file for file in self._looked_at if file in kept]
        taken: dict[tuple[float, float], tuple[int, int]] = {}
        for file in files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]:
            values, stored = self._stored(file)
            if stored is None:
                continue
            least, most = taken.get(stored, (int(values.min()), 0))
            taken[stored] = min(least, int(values.min())), max(most, int(values.max()))
            if len(taken) == 1 and stored[0] == 0 and stored[1] > 255 and taken[stored][1] > stored[1] / 2:
                return
        halved = any(holds_halved(self._root / file) for file in files[:1])
        for stored, (least, most) in taken.items():
            self._check_taken(stored, least, most, halved=halved and stored[1] <= 255)

    def _check_taken(self, stored: tuple[float, float], least: int, most: int, *, halved: bool) -> None:
        """Raise where values of `least` to `most` are few of those that are `stored`."""
        top = stored[1]
        kind = np.dtype(np.uint16 if top > 255 or halved else np.uint8)
        if stored[0] < 0 <= least:
            raise unsigned_error(most, stored, self.where)
        most = most * 257 if halved else most
        # DICOM says itself of how many bits a value is, but a scanner does not use the last one at times.
        loose = top > 255 and top != 65535 and most > top / 4
        if not loose and (bits := seldom_used(most, kind)) is not None:
            raise bits_error(bits, kind, self.where)

    def _plain_ends(self, file: str) -> tuple[float, float] | None:
        """Return the lowest and the highest of numbers that are not scaled, once they are checked."""
        values, stored = self._stored(file)
        if stored is not None:
            return None
        self._checked(values, file)
        return float(values.min()), float(values.max())


def read_image(
    path: Path, file: str, channels: int, *, page: int | None = None
) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
    """Return an image `(C, H, W)` with so many channels, 1 or 3, as stored, and the range that is to be scaled.

    The range is None for numbers that are to stay as they are. `file` is what errors call it; `page` is the one to read
    of several. Raises `SutureError` (`dataset.unreadable`, `dataset.pages`).
    """
    if _is_dicom(path):
        header = dicom.read_header(path, file)
        frames = dicom.read_pixels(path, file)
        values = frames[page_of(len(frames), file, page)]
        stored: tuple[float, float] | None = None if header.rescaled else header.stored
    else:
        with opened_picture(path, file, page) as image:
            stored = range_of(image.mode)
            values = picture_values(image, channels, file)
    if len(values) == 1 and channels == 3:
        values = np.repeat(values, 3, axis=0)
    elif len(values) == 3 and channels == 1:
        values = np.tensordot(np.array(LUMA, np.float32), values, 1)[None]
    return values, stored


def _is_dicom(path: Path) -> bool:
    return not path.name.lower().endswith(PICTURES) and path.exists() and dicom.is_dicom(path)


def _resized(values: NDArray[np.float32], spec: DatasetSpec, how: Image.Resampling) -> NDArray[np.float32]:
    """Return `(H, W)` resized, then padded and cropped around its middle."""
    if spec.resize is not None and (size := _after_resize(values.shape[0], values.shape[1], spec)) != values.shape:
        values = np.asarray(Image.fromarray(values, mode="F").resize((size[1], size[0]), how))
    if spec.pad is not None:
        lacking = [max(0, want - have) for want, have in zip(spec.pad, values.shape, strict=True)]
        values = np.pad(values, [(lack // 2, lack - lack // 2) for lack in lacking], constant_values=_BACKGROUND)
    if spec.crop is not None:
        starts = [max(0, (have - want) // 2) for want, have in zip(spec.crop, values.shape, strict=True)]
        values = values[starts[0] : starts[0] + spec.crop[0], starts[1] : starts[1] + spec.crop[1]]
    return values


def _after_resize(height: int, width: int, spec: DatasetSpec) -> tuple[int, int]:
    if isinstance(spec.resize, int):
        shorter = min(height, width)
        return max(1, round(height * spec.resize / shorter)), max(1, round(width * spec.resize / shorter))
    return (height, width) if spec.resize is None else (spec.resize[0], spec.resize[1])


def _spacing_of(header: _Header, spec: DatasetSpec) -> tuple[float, float] | None:
    """Return the millimetres between the rows and between the columns of what is delivered; None where unknown."""
    if header.spacing is None:
        return None
    height, width = _after_resize(header.height, header.width, spec)
    return header.spacing[0] * header.height / height, header.spacing[1] * header.width / width


def _common_spacing(spacings: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """Return the spacing that all images have, None where some do not say theirs, or have another one."""
    known = [spacing for spacing in spacings if spacing is not None]
    if len(known) < len(spacings) or not np.allclose(known, known[0], rtol=_SAME_SPACING):
        return None
    return known[0]


def _size_of(height: int, width: int, spec: DatasetSpec) -> tuple[int, int]:
    """Return the size that an image of this one is delivered in."""
    height, width = _after_resize(height, width, spec)
    if spec.pad is not None:
        height, width = max(height, spec.pad[0]), max(width, spec.pad[1])
    if spec.crop is not None:
        height, width = min(height, spec.crop[0]), min(width, spec.crop[1])
    return height, width


def _sizes_differ(
    first: str, size: Sequence[int], file: str, other: Sequence[int], spec: DatasetSpec | None = None
) -> SutureError:
    wanted = "224, 224"
    if (
        spec is not None
        and spec.input is not None
        and all(spec.input.spatial_shape)
        and len(spec.input.spatial_shape) == 2
    ):
        wanted = ", ".join(map(str, spec.input.spatial_shape))
    return SutureError(
        "dataset.sizes_differ",
        f"{file} has {other[0]} x {other[1]} pixels, {first} has {size[0]} x {size[1]}",
        where=file,
        hint="say how images come to one size (height, width), as the models were trained: "
        f"resize = [{wanted}]; or resize = 256 (the shorter side) and crop = [{wanted}]; or pad = [{wanted}]",
    )


def _mask_differs(file: str) -> SutureError:
    return SutureError(
        "dataset.mask_mismatch",
        "the mask has another size than its image",
        where=file,
        hint="each pixel of an image, turned upright as its EXIF mark says, has one in its mask; export the mask again",
    )


__all__ = ["ImageFolder", "read_image"]
