"""Volumes whose values lie in a file beside their header: MetaImage's `.mhd` and NRRD's `.nhdr`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from suture_stitching.data.samples import unreadable

HEADERS = (".mhd", ".nhdr")
_KEYS = ("elementdatafile", "data file", "datafile")
#: Headers are short; what is read of one at most.
_MOST = 1 << 16


def data_file(path: Path, file: str) -> str | None:
    """Return the file, relative to the header's folder, that holds the values; None where the header's own does.

    Raises `SutureError` `dataset.unreadable_image` for one elsewhere, which is never followed, and for several.
    """
    with path.open("rb") as stream:
        head = stream.read(_MOST).decode("latin-1")
    sign = "=" if path.name.lower().endswith(".mhd") else ":"
    for line in head.splitlines():
        key, _, value = line.partition(sign)
        if key.strip().lower() in _KEYS:
            name = value.strip()
            if name.upper().startswith("LIST") or "%" in name:
                raise unreadable(file, "its slices lie in files of their own: save it as one file, .mha or .nrrd")
            if name.upper() == "LOCAL":
                return None
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise unreadable(file, "its values lie in another folder, which is never followed: put them beside it")
            return name
    return None


__all__ = ["HEADERS", "data_file"]
