"""Volumes, NIfTI, NRRD, MetaImage or folders of DICOM slices, with a label each, or with masks.

Volumes are turned to RAS (the axes run to the patient's right, front and head, in this order), resampled to one
spacing, and their intensities mapped onto `value_range`. What comes out is kept in an unnamed temporary file that is
mapped, 4 bytes per voxel, so that each volume is decompressed and resampled once and memory stays flat.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.folder import FolderDataset
from suture_stitching.data.samples import Sample
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices
from suture_stitching.data.spool import Spool
from suture_stitching.data.volume_files import SUFFIXES, open_volume

#: A volume resampled to more voxels (1 GiB as float32) is refused.
_MOST_VOXELS = 1 << 28
#: Positions of the foreground that are kept per volume to place patches at.
_FOREGROUND = 4096
#: The share of patches that are centred on the foreground, as nnU-Net has it (Isensee et al., 2021) at least.
_ON_FOREGROUND = 0.5
_TOLERANCE = 1e-3
#: Of a voxel, by which affines of one volume and its mask may differ: other tools round them.
_PART = 0.05

Triple: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class _Header:
    channels: int
    spacing: Triple
    measured: bool
    whose: tuple[str, str]
    oriented: bool


@dataclass(frozen=True)
class _Volume:
    """`image` `(C, X, Y, Z)` float32, `mask` `(X, Y, Z)` label indices; `foreground` `(M, 3)` positions."""

    image: NDArray[np.float32]
    mask: NDArray[Any] | None
    foreground: NDArray[np.int64]


class VolumeFolder(FolderDataset[_Header]):
    """Volumes `(C, X, Y, Z)`, read in patches of `window`.

    For a segmentation, `batches` yields patches, half of them centred on the foreground, placed by the seed; `whole`
    yields the volumes in full. For other tasks each volume is cropped or padded around its centre to the window.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        assert spec.window is not None
        self._size = spec.window
        self._prepared: dict[str, _Volume] = {}
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        if spec.task == "segmentation":
            self.window = spec.window
            self.patches = spec.patches
        super().__init__(spec, SUFFIXES)

    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        assert self.value_range is not None
        draw = np.random.default_rng(seed)
        low = self.value_range[0]
        images = np.empty((len(indices), *self.input_shape), dtype=np.float32)
        masks = np.empty((len(indices), *self._size), dtype=np.int64)
        for row, index in enumerate(indices):
            volume = self._volume(self._samples[index])
            start = self._centre(volume) if volume.mask is None else self._place(volume, draw)
            images[row] = _cut(volume.image, start, self._size, low)
            if volume.mask is not None:
                masks[row] = _cut(volume.mask[None], start, self._size, 0)[0]
        return images, masks if self.task == "segmentation" else self._targets[indices]

    def _read_whole(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        volume = self._volume(self._samples[index])
        assert volume.mask is not None
        return volume.image[None], volume.mask[None]

    def _centre(self, volume: _Volume) -> tuple[int, ...]:
        return tuple((have - want) // 2 for have, want in zip(volume.image.shape[1:], self._size, strict=True))

    def _place(self, volume: _Volume, draw: np.random.Generator) -> tuple[int, ...]:
        """Return where a patch begins; a volume smaller than it is in its middle."""
        spaces = [have - want for have, want in zip(volume.image.shape[1:], self._size, strict=True)]
        if draw.random() < _ON_FOREGROUND and len(volume.foreground):
            centre = volume.foreground[draw.integers(len(volume.foreground))]
            wanted = [int(at) - size // 2 for at, size in zip(centre, self._size, strict=True)]
        else:
            wanted = [int(draw.integers(max(0, space) + 1)) for space in spaces]
        return tuple(
            min(max(at, 0), space) if space > 0 else space // 2 for at, space in zip(wanted, spaces, strict=True)
        )

    def _volume(self, sample: Sample) -> _Volume:
        with self._lock:
            lock = self._locks.setdefault(sample.file, threading.Lock())
        # Two batches may want the same volume at once: one prepares it, the other waits.
        with lock:
            if sample.file not in self._prepared:
                self._prepared[sample.file] = self._prepare(sample)
            return self._prepared[sample.file]

    def _prepare(self, sample: Sample) -> _Volume:
        assert self.value_range is not None
        image, affine = self._channels(sample)
        image = _resampled(image, affine, self._spec.spacing, "bilinear")
        _map_intensity(image, self._spec.intensity, self.value_range)
        if self.task != "segmentation":
            return _Volume(_spooled(image), None, np.empty((0, 3), dtype=np.int64))
        # Nearest neighbours: a label between two others would be a third.
        mask = self._mask(sample)[None].astype(np.float32)
        resampled = _resampled(mask, affine, self._spec.spacing, "nearest")[0]
        resampled = resampled.astype(np.min_scalar_type(len(self.labels) - 1))
        shown = np.flatnonzero(resampled)
        if len(shown) > _FOREGROUND:
            shown = np.random.default_rng(0).choice(shown, _FOREGROUND, replace=False)
        return _Volume(_spooled(image), _spooled(resampled), np.stack(np.unravel_index(shown, resampled.shape), axis=1))

    def _channels(self, sample: Sample) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the volume `(C, X, Y, Z)` of all the sample's files, and its affine."""
        image, affine = self._load(sample.file)
        if not sample.more:
            return image, affine
        parts = [image]
        for file in sample.more:
            part, other = self._load(file)
            if part.shape[1:] != image.shape[1:] or not _same_place(affine, other):
                raise _mask_differs(file, "this channel")
            parts.append(part)
        return np.concatenate(parts), affine

    def _load(self, file: str, *, mask: bool = False) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the volume `(C, X, Y, Z)` in RAS and its affine `(4, 4)`."""
        values, affine = open_volume(self._root / file, file).read()
        if not np.isfinite(values).all():
            if self._spec.missing != "lowest" or mask:
                raise SutureError(
                    "dataset.not_finite",
                    "the volume holds NaN or infinity",
                    where=file,
                    hint='replace them beforehand, or say missing = "lowest", by which they become the lowest value',
                )
            known = np.isfinite(values)
            values[~known] = values[known].min() if known.any() else 0.0
        return values, affine

    def _mask(self, sample: Sample) -> NDArray[Any]:
        file = str(sample.target)
        values, _ = self._load(file, mask=True)
        return self._indices_of_mask(values[0], file)

    def _check_content(self, sample: Sample) -> None:
        self._channels(sample)
        if self.task == "segmentation":
            self._mask(sample)

    def _header(self, sample: Sample) -> _Header:
        image = open_volume(self._root / sample.file, sample.file)
        if self.task == "segmentation":
            file = str(sample.target)
            mask = open_volume(self._root / file, file)
            if mask.channels != 1:
                raise _mask_differs(file, f"the mask has {mask.channels} channels, so it")
            if mask.shape != image.shape or not _same_place(image.affine, mask.affine):
                raise _mask_differs(file, "the mask")
        spacing, shape = image.spacing, np.array(image.shape)
        if self._spec.spacing is not None and np.prod(shape * spacing / self._spec.spacing) > _MOST_VOXELS:
            raise SutureError(
                "dataset.huge_array",
                "resampled to the dataset's spacing, the volume has far too many voxels",
                where=sample.file,
                hint="choose a larger spacing, or correct the voxel size in the file",
            )
        return _Header(
            image.channels + len(sample.more), tuple(spacing.tolist()), image.measured, image.whose, image.oriented
        )

    def _whose(self, header: _Header) -> tuple[str, str]:
        return header.whose

    def _shape(self, files: list[str], headers: list[_Header]) -> tuple[int, ...]:
        first = headers[0]
        for file, header in zip(files, headers, strict=True):
            if header.channels != first.channels:
                raise SutureError(
                    "dataset.channels_differ",
                    f"{file} has {header.channels} channel(s), {files[0]} has {first.channels}",
                    where=self.where,
                    hint="all volumes of a dataset need the same channels in the same order",
                )
            if self._spec.spacing is None and not np.allclose(header.spacing, first.spacing, rtol=0.02):
                raise SutureError(
                    "dataset.spacing_differs",
                    f"{file} has other voxel sizes than {files[0]}",
                    where=self.where,
                    hint="set spacing = [x, y, z] in mm, to which all volumes are resampled",
                )
        if unsaid := [file for file, header in zip(files, headers, strict=True) if not header.oriented]:
            self.notes = (
                *self.notes,
                f"{len(unsaid)} volumes, such as {unsaid[0]}, do not say where left is (neither qform nor sform): "
                "their x is taken to run to the patient's left, as nibabel does, so it is turned round",
            )
        self.spacing = (self._spec.spacing or first.spacing) if all(header.measured for header in headers) else None
        return first.channels, *self._size


def _same_place(affine: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two affines put each voxel at the same place, but for a small part of a voxel."""
    voxel = float(voxel_sizes(affine).min())
    return bool(np.allclose(affine, other, rtol=0, atol=_PART * max(voxel, 1e-6)))


def _mask_differs(file: str, what: str) -> SutureError:
    return SutureError(
        "dataset.mask_mismatch",
        f"{what} has another size, spacing or orientation than its volume",
        where=file,
        hint="a mask has one value per voxel of its volume and the same affine; export it again",
    )


def _resampled(
    values: NDArray[np.float32], affine: NDArray[np.float64], spacing: Triple | None, mode: str
) -> NDArray[np.float32]:
    """Return values `(C, X, Y, Z)` with voxels of `spacing` mm."""
    if spacing is None or np.allclose(voxel_sizes(affine), spacing, rtol=_TOLERANCE):
        return values
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    resample = Spacing(pixdim=spacing, mode=mode, padding_mode="border", align_corners=False, dtype=np.float32)
    with torch.no_grad():
        resampled: NDArray[np.float32] = resample(
            MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))
        ).numpy()
    return resampled


def _map_intensity(
    image: NDArray[np.float32], intensity: tuple[float, float] | None, value_range: tuple[float, float]
) -> None:
    """Map stored values onto `value_range` in place, clipping what is beyond; without `intensity`, by channel."""
    low, high = value_range
    for channel in image:
        first, last = intensity or np.percentile(channel, (0.5, 99.5)).tolist()
        channel -= np.float32(first)
        channel *= np.float32((high - low) / (last - first) if last > first else 0.0)
        channel += np.float32(low)
        np.clip(channel, low, high, out=channel)


def _spooled(array: NDArray[Any]) -> NDArray[Any]:
    with Spool() as spool:
        spool.append(array)
        return spool.array(array.shape, array.dtype)


def _cut(values: NDArray[Any], start: Sequence[int], size: Sequence[int], fill: float) -> NDArray[Any]:
    """Return `(C, *size)` of `values` beginning at `start`, which may be outside: there it is `fill`."""
    window = np.full((len(values), *size), fill, dtype=values.dtype)
    ours, theirs = [slice(None)], [slice(None)]
    for at, want, have in zip(start, size, values.shape[1:], strict=True):
        first, last = max(at, 0), min(at + want, have)
        ours.append(slice(first - at, last - at))
        theirs.append(slice(first, last))
    window[tuple(ours)] = values[tuple(theirs)]
    return window
