"""Volumes as they are stored: NIfTI by nibabel, NRRD and MetaImage by SimpleITK, DICOM series by pydicom.

All are given as values `(C, X, Y, Z)` in RAS (the axes run to the patient's right, front and head) with an affine
in mm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_stitching.data import dicom
from suture_stitching.data.detached import HEADERS, data_file
from suture_stitching.data.samples import unreadable

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = (*_NIFTI, *_ITK, *dicom.SUFFIXES)
#: A volume of more voxels (1 GiB as float32) is refused: most likely a header that lies.
_MOST_VOXELS = 1 << 28
#: By how much directions may differ that are the same; other tools round them.
_ANGLE = 1e-3
#: By which part voxel sizes may differ that are the same.
_SAME_SIZE = 0.02
#: What says how far the slices of one file lie apart, the surest first.
_STEPS = ("SpacingBetweenSlices", "SliceThickness")
#: From the patient's left, back and head, as DICOM and ITK have it, to right, front and head.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class StoredVolume(ABC):
    """A volume whose header is read: `shape` and `spacing` in mm of its axes in RAS, and its `channels`.

    It is not `measured` where the file does not say its spacing, or not in mm, and not `oriented` where it does not say
    which side is the patient's left. `whose` is as in `DicomHeader`.
    """

    shape: tuple[int, ...]
    spacing: NDArray[np.float64]
    channels: int
    affine: NDArray[np.float64]
    measured: bool = True
    oriented: bool = True
    whose: tuple[str, str] = ("", "")

    @abstractmethod
    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the values `(C, X, Y, Z)` in RAS, and their affine."""

    def _describe(self, shape: tuple[int, ...], affine: NDArray[np.float64], file: str) -> None:
        """Take the sizes of axes as stored, in RAS."""
        if 0 in shape or not np.isfinite(affine).all() or not abs(float(np.linalg.det(affine[:3, :3]))) > 0:
            raise unreadable(file, "the header names no size or no orientation")
        if np.prod([float(size) for size in (*shape, self.channels)]) > _MOST_VOXELS:
            raise unreadable(file, "it claims far too many voxels")
        axes = nibabel.io_orientation(affine)[:, 0].astype(int)
        spacing, turned = np.empty(3), np.empty(3, dtype=int)
        spacing[axes], turned[axes] = voxel_sizes(affine), shape
        self.spacing, self.shape = spacing, tuple(int(size) for size in turned)
        orientation = nibabel.io_orientation(affine)
        self.affine = affine @ nibabel.orientations.inv_ornt_aff(orientation, shape)


def open_volume(path: Path, file: str) -> StoredVolume:
    """Return the volume, its values still on disk. Raises `SutureError` (`dataset.*`)."""
    lowered = path.name.lower()
    if path.is_dir() or lowered.endswith(dicom.SUFFIXES):
        return _Series(path, file)
    if lowered.endswith(_ITK):
        return _Itk(path, file)
    return _Nifti(path, file)


class _Nifti(StoredVolume):
    def __init__(self, path: Path, file: str) -> None:
        try:
            image = nibabel.load(path)
            kind = image.get_data_dtype().kind
            affine = np.asarray(image.affine, dtype=np.float64)
        except Exception:
            raise unreadable(file, "the file is damaged or not NIfTI") from None
        shape = image.shape
        # (X, Y, Z, 1, C) is how NIfTI itself has channels; (X, Y, Z, 1) is a volume with an axis to spare.
        self._axes = shape[:3] + shape[4:] if len(shape) == 5 and shape[3] == 1 else shape
        if not isinstance(image, nibabel.Nifti1Image) or len(self._axes) not in (3, 4) or kind not in "iuf":
            raise unreadable(file, "a volume is (X, Y, Z) or (X, Y, Z, channels) numbers")
        self._image, self._file = image, file
        # Hardly any file says metres; that it does not say is usual, and means millimetres.
        self.measured = image.header.get_xyzt_units()[0] not in ("meter", "micron")
        # Then nibabel takes x to run to the patient's left, as Analyze had it, and other tools do not.
        self.oriented = any(int(image.header[code]) for code in ("qform_code", "sform_code"))
        self.channels = self._axes[3] if len(self._axes) == 4 else 1
        self._check_forms(file)
        self._describe(tuple(self._axes[:3]), affine, file)

    def _check_forms(self, file: str) -> None:
        """Raise where NIfTI's two ways to say its place, of which programs follow one or the other, say two things."""
        header = self._image.header
        if not all(int(header[code]) for code in ("qform_code", "sform_code")):
            return
        try:
            forms = header.get_qform(), header.get_sform()
        except Exception:
            raise unreadable(file, "its qform is damaged") from None
        ways = [nibabel.io_orientation(form) for form in forms]
        sizes = [voxel_sizes(form) for form in forms]
        if not np.array_equal(ways[0], ways[1]) or not np.allclose(sizes[0], sizes[1], rtol=_SAME_SIZE):
            raise unreadable(
                file,
                "its qform and its sform name different orientations or voxel sizes: set the wrong one to the other, "
                "by fslorient or by set_qform and set_sform of nibabel",
            )

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        try:
            stored = nibabel.as_closest_canonical(self._image)
            values = stored.get_fdata(dtype=np.float32, caching="unchanged")
            affine = np.asarray(stored.affine, dtype=np.float64)
        except MemoryError:
            raise
        except Exception:
            raise unreadable(self._file, "the file is damaged or gone") from None
        values = values[:, :, :, 0] if values.ndim == 5 else values
        return np.ascontiguousarray(values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)), affine


class _InLps(StoredVolume):
    """A volume whose place is known in LPS, with axes as `(C, X, Y, Z)` once read."""

    _stored_affine: NDArray[np.float64]
    _file: str

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        values = self._values()
        orientation = nibabel.io_orientation(self._stored_affine)
        turned = [nibabel.apply_orientation(channel, orientation) for channel in values]
        return np.ascontiguousarray(np.stack(turned), dtype=np.float32), self.affine

    @abstractmethod
    def _values(self) -> NDArray[np.float32]: ...


class _Itk(_InLps):
    def __init__(self, path: Path, file: str) -> None:
        if find_spec("SimpleITK") is None:
            raise SutureError(
                "dataset.missing_package",
                "NRRD and MetaImage need SimpleITK",
                where=file,
                hint=how_to_install("imaging"),
            )
        import SimpleITK

        self._path, self._file = path, file
        if path.name.lower().endswith(HEADERS):
            data_file(path, file)
        try:
            reader = SimpleITK.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            size, self.channels = reader.GetSize(), reader.GetNumberOfComponents()
            direction, spacing, origin = reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin()
        except Exception:
            raise unreadable(file, "the file is damaged, or neither NRRD nor MetaImage") from None
        if len(size) != 3:
            raise unreadable(file, "a volume is (X, Y, Z) or (X, Y, Z, channels) numbers")
        affine = np.eye(4)
        affine[:3, :3] = np.array(direction).reshape(3, 3) * np.array(spacing)
        affine[:3, 3] = origin
        self._stored_affine = _LPS_TO_RAS @ affine
        self._describe(tuple(size), self._stored_affine, file)

    def _values(self) -> NDArray[np.float32]:
        import SimpleITK

        try:
            array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(self._path)))  # (Z, Y, X) or (Z, Y, X, C)
        except Exception:
            raise unreadable(self._file, "the file is damaged") from None
        array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        return np.transpose(array, (0, 3, 2, 1)).astype(np.float32)


class _Series(_InLps):
    """A folder of DICOM slices of one series, or one file with several frames; sorted by place, not by name."""

    def __init__(self, path: Path, file: str) -> None:
        self._file = file
        files = (
            [path]
            if path.is_file()
            else sorted(entry for entry in path.iterdir() if entry.is_file() and dicom.is_dicom(entry))
        )
        if not files:
            raise unreadable(file, "the folder holds no DICOM files")
        if find_spec("pydicom") is None:
            raise SutureError(
                "dataset.missing_package", "DICOM needs pydicom", where=file, hint=how_to_install("imaging")
            )
        import pydicom

        headers = [dicom.read_header(entry, file) for entry in files]
        data = [pydicom.dcmread(entry, stop_before_pixels=True) for entry in files]
        self._check_one(headers, data)
        count, self.whose = headers[0].frames, headers[0].whose
        slices = [
            _Slice.of(own, entry, frame)
            for own, entry in zip(data, files, strict=True)
            for frame in range(count if len(files) == 1 else 1)
        ]
        if not all(np.allclose(entry.axes, slices[0].axes, atol=_ANGLE) for entry in slices):
            raise unreadable(file, "the slices of the series lie at several angles")
        rows, columns = slices[0].axes
        normal = np.cross(rows, columns)
        # Frames whose places nobody says stay as they are.
        placed = len(files) > 1 or all(entry.placed for entry in slices)
        spacing = headers[0].spacing or (1.0, 1.0)
        if placed:
            slices.sort(key=lambda entry: float(entry.place @ normal))
            self._check_upright(slices, normal, min(spacing))
        between = next((step for name in _STEPS if (step := dicom.attribute(data[0], name))), None)
        step = self._step(slices, normal) if placed else float(between or 1.0)
        self._order = [(entry.path, entry.frame) for entry in slices]
        height, width, self.channels = headers[0].height, headers[0].width, headers[0].channels
        self.measured = headers[0].spacing is not None and (slices[0].placed if placed else between is not None)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = rows * spacing[1], columns * spacing[0], normal * step
        affine[:3, 3] = slices[0].place
        self._stored_affine = _LPS_TO_RAS @ affine
        self._describe((width, height, len(slices)), self._stored_affine, file)

    def _check_one(self, headers: list[dicom.DicomHeader], data: list[Any]) -> None:
        """Raise where the files are not the slices of one volume."""
        if len({str(own.get("SeriesInstanceUID", "")) for own in data}) > 1:
            raise unreadable(self._file, "the folder holds several series: give each one of its own")
        if len({(header.height, header.width, header.channels) for header in headers}) > 1:
            raise unreadable(self._file, "the slices of the series have several sizes")
        if len(headers) > 1 and any(header.frames > 1 for header in headers):
            raise unreadable(self._file, "several files with several frames each are no series")
        if len(headers) == 1 and headers[0].frames == 1:
            raise unreadable(self._file, "one DICOM slice is no volume")

    def _check_upright(self, slices: list[_Slice], normal: NDArray[np.float64], pixel: float) -> None:
        """Raise where slices are shifted along themselves by more than a `pixel` in mm, as by a tilted gantry."""
        ways = np.stack([entry.place for entry in slices]) - slices[0].place
        if np.linalg.norm(ways - np.outer(ways @ normal, normal), axis=1).max() > pixel:
            raise unreadable(
                self._file,
                "its slices are shifted against each other, as those of a tilted gantry: make it NIfTI by dcm2niix, "
                "which puts them upright",
            )

    def _step(self, slices: list[_Slice], normal: NDArray[np.float64]) -> float:
        """Return the distance of slices in mm; raise where one is missing or there twice."""
        steps = np.diff([float(entry.place @ normal) for entry in slices])
        if steps.min() <= 0 or steps.max() > 1.5 * steps.min():
            raise unreadable(self._file, "slices of the series are missing, or there twice")
        return float(steps.mean())

    def _values(self) -> NDArray[np.float32]:
        # A volume of MONOCHROME1 is none that exists; values stay as rescaled.
        files = {path: dicom.read_pixels(path, self._file, turn=False) for path in dict(self._order)}
        stacked = np.stack([files[path][frame] for path, frame in self._order])  # (Z, C, Y, X)
        return np.ascontiguousarray(np.transpose(stacked, (1, 3, 2, 0)))


@dataclass(frozen=True)
class _Slice:
    """A frame of a file: `axes` `(2, 3)` along its rows and columns, and its `place` in LPS, which it may not say."""

    path: Path
    frame: int
    axes: NDArray[np.float64]
    place: NDArray[np.float64]
    placed: bool

    @classmethod
    def of(cls, data: Any, path: Path, frame: int) -> _Slice:
        axes = dicom.attribute(data, "ImageOrientationPatient", frame) or (1, 0, 0, 0, 1, 0)
        place = dicom.attribute(data, "ImagePositionPatient", frame)
        at = place or (0, 0, data.get("InstanceNumber", 0) or 0)
        several = "ImagePositionPatient" in data and int(data.get("NumberOfFrames", 1) or 1) > 1
        return cls(
            path,
            frame,
            np.array([float(x) for x in axes]).reshape(2, 3),
            np.array([float(x) for x in at]),
            bool(place) and not several,  # one place for all frames is that of the first
        )


__all__ = ["SUFFIXES", "StoredVolume", "open_volume"]
