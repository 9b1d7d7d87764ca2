"""Pictures by Pillow, upright as their EXIF mark says: what they are, their values, and the values of masks.

What a picture does not say plainly is refused: which of several pages is meant, what colour a transparent pixel has,
and which three of four channels are its colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from suture_contract.errors import SutureError
from suture_stitching.data.dicom import SUFFIXES as DICOM_SUFFIXES
from suture_stitching.data.samples import unreadable
from suture_stitching.data.spec import PICTURES

_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B"})
#: Numbers that are taken as they are: nothing says from which range they are to be scaled.
_PLAIN_MODES = frozenset({"I", "F"})
GREY_MODES = frozenset({"1", "L", "LA"}) | DEEP_MODES | _PLAIN_MODES
COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"})
#: EXIF's number of orientations in which height and width change places.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
#: Tags of TIFF: what a value means, of which 0 is "more is darker"; the bits of a value; and the number of channels.
_PHOTOMETRIC, _BITS, _CHANNELS = 262, 258, 277


@contextmanager
def opened_picture(path: Path, file: str, page: int | None, *, turn: bool = True) -> Iterator[Image.Image]:
    """Open an image, upright; whatever Pillow raises in the block, for a broken or hostile file, names the file.

    Without `turn` its pixels are not read. `page` is the one to read of several.
    """
    try:
        with Image.open(path) as image:
            # A header that claims hundreds of millions of pixels is refused before they are allocated; Pillow itself
            # only warns about half of them.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            chosen = page_of(getattr(image, "n_frames", 1), file, page)
            if page is not None:
                image.seek(chosen)
            if (channels := getattr(image, "tag_v2", {}).get(_CHANNELS, 1)) > len(image.getbands()):
                raise unreadable(
                    file, f"it has {channels} channels, and a picture has one or three: give them as an array, in .npz"
                )
            yield _turned(image, file) if turn else image
    except SutureError:
        raise
    except Exception as error:
        raise unreadable(file, _reason(error, path)) from None


def page_of(pages: int, file: str, wanted: int | None) -> int:
    """Return the page to read, from 0; raises `SutureError` where it is not said or not there."""
    if pages > 1 and wanted is None:
        raise SutureError(
            "dataset.several_pages",
            f"the file has {pages} pages or frames",
            where=file,
            hint="save each as a file of its own, or say which one is meant, counted from 0: page = 0; slices of a "
            'volume are read as one from DICOM, NIfTI, NRRD or MetaImage, with format = "nifti"',
        )
    page = wanted or 0
    if page >= pages:
        raise unreadable(file, f"it has {pages} page(s), and page {page} (counted from 0) is wanted")
    return page


def range_of(mode: str) -> tuple[float, float] | None:
    """Return the range of a picture's type; None for numbers that may be anything."""
    return None if mode in _PLAIN_MODES else (0.0, 65535.0 if mode in DEEP_MODES else 255.0)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of the picture as its EXIF mark turns it."""
    turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def is_grey(image: Image.Image) -> bool:
    """Whether a picture is grey by its type, or by its palette."""
    if image.mode not in ("P", "PA"):
        return image.mode in GREY_MODES
    palette = np.array(image.getpalette() or [0], dtype=np.int64)
    colours = palette[: len(palette) // 3 * 3].reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def is_halved(image: Image.Image) -> bool:
    """Whether the file has 16 bits per channel, of which Pillow gives the upper 8."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def holds_halved(path: Path) -> bool:
    """Whether a file is a picture that `is_halved`."""
    if not path.name.lower().endswith(PICTURES):
        return False
    with Image.open(path) as image:
        return is_halved(image)


def picture_values(image: Image.Image, channels: int, file: str) -> NDArray[np.float32]:
    """Return the picture `(C, H, W)` with so many channels, 1 or 3; grey of many bits and plain numbers as stored."""
    _check_transparency(image, file)
    if image.mode not in DEEP_MODES | _PLAIN_MODES:
        image = image.convert("L" if channels == 1 else "RGB")
    values = np.asarray(image).astype(np.float32)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def picture_mask(image: Image.Image, labels: int, file: str) -> NDArray[Any]:
    """Return one value per pixel `(H, W)`: as stored, or of black and one colour 0 and 255."""
    lossy = file.lower().endswith(_LOSSY) or image.format in ("JPEG", "MPO")
    if image.mode in ("LA", "I;16", "I;16L", "I;16B", "I", "L", "1", "P", "F"):
        values: NDArray[Any] = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        if image.mode == "1":
            return values.astype(np.uint8)
    else:
        colours = np.asarray(image.convert("RGB"))
        grey = bool((colours == colours[..., :1]).all())
        shown = np.unique(colours.reshape(-1, 3), axis=0)
        if not grey and not (labels == 2 and not lossy and len(shown) <= 2 and not shown[0].any()):
            raise SutureError(
                "dataset.mask_in_colour",
                f"a mask has one value per pixel, not a colour ({image.mode})",
                where=file,
                hint="save it as a grey image or one with a palette, whose values are the labels' indices",
            )
        values = colours[..., 0] if grey else np.where(colours.any(axis=2), 255, 0)
    if image.mode in ("LA", "RGBA"):
        _check_drawn(values, np.asarray(image.getchannel("A")), file)
    if lossy:
        if labels != 2:
            raise SutureError(
                "dataset.label_out_of_range",
                "the mask is compressed with loss, which changes its values",
                where=file,
                hint="export masks as PNG",
            )
        # Black and white but for what the compression did around edges.
        white: NDArray[np.uint8] = (values > 127).astype(np.uint8) * np.uint8(255)
        return white
    return values


def _turned(image: Image.Image, file: str) -> Image.Image:
    """Return the picture upright, and with more as brighter; it keeps the name of its file's format."""
    tags = getattr(image, "tag_v2", {})
    upright = ImageOps.exif_transpose(image)
    # Pillow turns grey of 1 and 8 bits itself.
    if tags.get(_PHOTOMETRIC) == 0 and image.mode in DEEP_MODES | _PLAIN_MODES:
        if image.mode not in DEEP_MODES:
            raise unreadable(file, "it says that more is darker, of numbers without an end: save it turned")
        bits = int(tags.get(_BITS, (16,))[0])
        upright = Image.fromarray((2**bits - 1 - np.asarray(upright)).astype(np.uint16))
    upright.format = image.format
    return upright


def _check_transparency(image: Image.Image, file: str) -> None:
    """Raise where some pixels are transparent and hide a colour: a viewer shows another picture than their values."""
    if not image.has_transparency_data:
        return
    pixels = np.asarray(image.convert("RGBA"))
    clear = pixels[..., 3] == 0
    if clear.any() and not clear.all() and pixels[clear, :3].any():
        raise unreadable(
            file,
            "some pixels are transparent, and the colours that they hide are not black: save it without transparency, "
            "as the models should see it",
        )


def _check_drawn(values: NDArray[Any], opacity: NDArray[Any], file: str) -> None:
    """Raise where a mask is drawn by its transparency, and its values do not say the same."""
    if np.ptp(opacity) and (values[opacity == 0].any() or not values.any()):
        raise SutureError(
            "dataset.mask_in_colour",
            "the mask is drawn by transparency, and a mask is read by its values",
            where=file,
            hint='save what is transparent as black, or the opacity alone as a grey image: getchannel("A") in Pillow',
        )


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is a link to a file that is not there" if path.is_symlink() else "the file is gone"
    if isinstance(error, PermissionError):
        return "the site may not read it"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it claims far too many pixels"
    if path.name.lower().endswith(DICOM_SUFFIXES):
        return "it is named as DICOM and lacks DICOM's mark: write it again with it, by dcmconv of dcmtk say"
    if isinstance(error, UnidentifiedImageError) and _begins(path) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return (
            "it is a TIFF of a kind that is not read, of more channels than three or of colours that are no whole "
            "numbers, or damaged: save it as PNG, or give many channels as an array, in .npz"
        )
    return "the file is damaged or not an image"


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError:
        return b""


__all__ = [
    "COLOUR_MODES",
    "DEEP_MODES",
    "GREY_MODES",
    "holds_halved",
    "is_grey",
    "is_halved",
    "opened_picture",
    "page_of",
    "picture_mask",
    "picture_values",
    "range_of",
    "upright_size",
]
