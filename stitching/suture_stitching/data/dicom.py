"""DICOM images by pydicom: what a viewer would show, as numbers. Files may have any name.

The rescale slope and intercept are applied (Hounsfield units, in CT), MONOCHROME1 is turned so that more is brighter,
pixels that are padding become as dark as the darkest other one, and palettes and YBR become RGB. Enhanced images say
these, and where they lie, in functional groups of their frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_stitching.data.samples import unreadable

SUFFIXES = (".dcm", ".dicom", ".ima")
#: In which functional group an enhanced image says it.
_GROUPS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
}
#: A header that claims more pixels is refused before they are allocated.
_MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class DicomHeader:
    """What a file says of its image; `stored` is the range that its bits allow, after rescaling.

    `spacing` are the millimetres from one row to the next, and from one column to the next; None where it does not say.
    `whose` are its PatientID and its StudyInstanceUID, empty where it has none.
    """

    height: int
    width: int
    channels: int
    frames: int
    stored: tuple[float, float]
    rescaled: bool
    spacing: tuple[float, float] | None = None
    whose: tuple[str, str] = ("", "")


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM, by its 128 bytes and four letters; a pipe, which would never end, is none."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # said when it is read
        return False


def read_header(path: Path, file: str) -> DicomHeader:
    """Return what the file says of its image; raises `SutureError` for what is none."""
    data = _opened(path, file, pixels=False)
    frames = int(data.get("NumberOfFrames", 1) or 1)
    rescales = {_rescale(data, frame) for frame in range(frames)}
    bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = sorted(end * slope + intercept for end in (low, high) for slope, intercept in rescales)
    photometric = str(data.PhotometricInterpretation)
    colour = photometric.startswith(("RGB", "YBR", "PALETTE"))
    brightest = 255.0 if photometric.startswith("PALETTE") else float(2**bits - 1)
    return DicomHeader(
        int(data.Rows),
        int(data.Columns),
        3 if colour else 1,
        frames,
        (0.0, brightest) if colour else (ends[0], ends[-1]),
        not colour and (rescales != {(1.0, 0.0)} or "ModalityLUTSequence" in data),
        _spacing(data),
        (_text(data, "PatientID"), _text(data, "StudyInstanceUID")),
    )


def series_of(path: Path) -> str:
    """Return the SeriesInstanceUID of a file, empty where it has none; raises `SutureError` for what is no image."""
    return _text(_opened(path, path.name, pixels=False), "SeriesInstanceUID")


def read_pixels(path: Path, file: str, *, turn: bool = True) -> NDArray[np.float32]:
    """Return the image `(frames, C, H, W)` after rescaling; with `turn`, more is brighter. Raises `SutureError`."""
    data = _opened(path, file, pixels=True)
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    try:
        photometric = str(data.PhotometricInterpretation)
        pixels: NDArray[Any] = data.pixel_array
        frames = int(data.get("NumberOfFrames", 1) or 1)
        if photometric.startswith("PALETTE"):
            pixels = apply_color_lut(pixels, data)
            pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
        colour = photometric.startswith(("RGB", "YBR", "PALETTE"))
        padding = None if colour else _padding(pixels, data)
        if not colour and "ModalityLUTSequence" in data:
            values: NDArray[np.float32] = np.asarray(apply_modality_lut(pixels, data), dtype=np.float32)
        else:  # pydicom rescales only where both are said
            values = np.asarray(pixels if colour else _rescaled(pixels, data, frames), dtype=np.float32)
    except Exception:
        raise unreadable(file, "its pixels cannot be decoded") from None
    values = values if frames > 1 else values[None]
    if colour:
        return np.moveaxis(values, -1, 1)
    if turn and photometric == "MONOCHROME1":
        low, high = read_header(path, file).stored
        values = np.float32(low + high) - values
    if padding is not None:
        padding = padding.reshape(values.shape)
        values[padding] = values[~padding].min()
    return values[:, None]


def _padding(pixels: NDArray[Any], data: Any) -> NDArray[np.bool_] | None:
    """Return which pixels are none of the image, as around the circle of a CT; None where it says none, or all are."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return None
    limit = data.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    if pixels.dtype.kind == "i":  # written as unsigned at times
        ends = [
            end - 2 ** int(data.BitsAllocated) if end >= 2 ** (int(data.BitsAllocated) - 1) else end for end in ends
        ]
    padding = (pixels >= min(ends)) & (pixels <= max(ends))
    return padding if padding.any() and not padding.all() else None


def _spacing(data: Any) -> tuple[float, float] | None:
    try:
        rows, columns = map(float, attribute(data, "PixelSpacing"))
    except (TypeError, ValueError):
        return None
    return (rows, columns) if rows > 0 and columns > 0 else None


def _text(data: Any, name: str) -> str:
    return str(data.get(name) or "").strip()


def attribute(data: Any, name: str, frame: int = 0) -> Any:
    """Return what a file says by this keyword, of the image or, of an enhanced one, of a frame; None where nothing."""
    if data.get(name) is not None:
        return data.get(name)
    of_frames, of_all = data.get("PerFrameFunctionalGroupsSequence"), data.get("SharedFunctionalGroupsSequence")
    for groups in ([of_frames[frame]] if of_frames and frame < len(of_frames) else [], of_all or []):
        for group in groups:
            sequence = group.get(_GROUPS[name])
            if sequence and sequence[0].get(name) is not None:
                return sequence[0].get(name)
    return None


def _rescale(data: Any, frame: int) -> tuple[float, float]:
    return float(attribute(data, "RescaleSlope", frame) or 1), float(attribute(data, "RescaleIntercept", frame) or 0)


def _rescaled(pixels: NDArray[Any], data: Any, frames: int) -> NDArray[Any]:
    slopes, intercepts = np.array([_rescale(data, frame) for frame in range(frames)]).T[:, :, None, None]
    values: NDArray[Any] = pixels.reshape(frames, *pixels.shape[-2:]) * slopes + intercepts
    return values if frames > 1 else values[0]


def _kind(data: Any) -> str:
    """Return what DICOM calls this kind of file; its name is none of a patient's."""
    from pydicom.uid import UID

    kind = UID(_text(data, "SOPClassUID"))
    return kind.name if kind.is_valid and kind.name != kind else "of a kind that it does not say"


def _opened(path: Path, file: str, *, pixels: bool) -> Any:
    if find_spec("pydicom") is None:
        raise SutureError("dataset.missing_package", "DICOM needs pydicom", where=file, hint=how_to_install("imaging"))
    import pydicom

    try:
        data = pydicom.dcmread(path, stop_before_pixels=not pixels)
        if "Rows" not in data:
            raise unreadable(file, f"it is DICOM without an image ({_kind(data)}): put it elsewhere")
        size = int(data.Rows) * int(data.Columns) * int(data.get("NumberOfFrames", 1) or 1)
        bad = size <= 0 or size > _MOST_PIXELS or int(data.BitsAllocated) > 32
    except FileNotFoundError:
        raise unreadable(file, "the file is gone") from None
    except (PermissionError, SutureError):
        raise
    except Exception:
        raise unreadable(file, "the file is damaged, or DICOM without an image") from None
    if bad:
        raise unreadable(file, "it claims far too many pixels, or none")
    return data


__all__ = ["SUFFIXES", "DicomHeader", "attribute", "is_dicom", "read_header", "read_pixels", "series_of"]
