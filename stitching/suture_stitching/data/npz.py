"""Arrays in an `.npz` file: `images`, `labels` or `masks` and, optionally, `split` and `group`.

The file is never unpickled, and a header is believed only as far as there are bytes behind it. Arrays stored without
compression (`numpy.savez`) are memory-mapped; compressed ones are unpacked, large ones to a temporary file that is
mapped. All are converted batch by batch.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import ArrayDataset, index_labels
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.spool import Spool

_LOCAL_HEADER = struct.Struct("<4s22xHH")
#: Compressed arrays up to this size are held in memory.
_HELD_BYTES = 32 * 1024 * 1024
_PIECE = 1024 * 1024


def open_npz(spec: DatasetSpec) -> ArrayDataset:
    """Open the arrays that `spec.columns` names. Raises `SutureError` (`dataset.*`) naming the array and the sample."""
    path, columns = spec.path, spec.columns
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            masks = spec.task == "segmentation" and "masks" in names
            label_name = columns.label or ("masks" if masks else "labels")
            wanted = (columns.images, label_name, columns.split, columns.group)
            for name in (name for name in wanted if name is not None):
                if name not in names:
                    raise SutureError(
                        "dataset.missing_column",
                        f"there is no array '{name}'; the file holds {', '.join(sorted(names)) or 'none'}",
                        where=str(path),
                        hint="name the arrays in the dataset's columns: images, label, split, group",
                    )
            images = _read_array(archive, path, columns.images)
            labels = _read_array(archive, path, label_name)
            split_name = columns.split or ("split" if "split" in names else None)
            splits = _read_array(archive, path, split_name) if split_name else None
            group_name = columns.group or ("group" if "group" in names else None)
            groups = _read_array(archive, path, group_name) if group_name else None
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise SutureError(
            "dataset.unreadable",
            "not a complete .npz file",
            where=str(path),
            hint="write it again with numpy.savez or numpy.savez_compressed",
        ) from None

    if groups is not None and (groups.dtype.kind not in "USbui" or groups.shape != (len(images),)):
        raise SutureError(
            "dataset.wrong_shape",
            f"{len(images)} samples need as many groups, each a number or a name",
            where=f"{path}: {group_name}",
        )
    if spec.task == "classification" and labels.dtype.kind in "USbui":
        labels = index_labels(labels, spec.labels, where=f"{path}: {label_name}")
    return ArrayDataset(
        _channels_first(images, spec),
        labels,
        spec.names,
        task=spec.task,
        split=spec.split if splits is None else _split_names(splits, len(images), f"{path}: {split_name}"),
        groups=groups,
        value_range=spec.value_range,
        where=str(path),
    )


def _read_array(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[Any]:
    where = f"{path}: {name}"
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as stream:
        shape, fortran, dtype, header_bytes = _read_header(stream, where)
        size: int = prod(shape) * dtype.itemsize
        if size != entry.file_size - header_bytes:
            raise SutureError(
                "dataset.huge_array",
                f"the header claims the shape {shape}, which does not fit the {entry.file_size} bytes stored",
                where=where,
                hint="the file is damaged; write it again",
            )
        if entry.compress_type == zipfile.ZIP_STORED and size:
            offset = _data_offset(path, entry) + header_bytes
            mapped: NDArray[Any] = np.memmap(str(path), dtype, "r", offset, shape, "F" if fortran else "C")
            return mapped
        if size > _HELD_BYTES:
            with Spool() as spool:
                while piece := stream.read(_PIECE):
                    spool.append(piece)
                return spool.array(shape, dtype, fortran=fortran)
        held: NDArray[Any] = np.frombuffer(stream.read(), dtype=dtype)
        return held.reshape(shape[::-1]).T if fortran else held.reshape(shape)


def _read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, type and length of the header; refuse what would need unpickling."""
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        # Numpy refuses a header too long to be parsed safely.
        shape, fortran, dtype = read(stream)
    except (ValueError, KeyError):
        raise SutureError(
            "dataset.unreadable", "not an array of numbers", where=where, hint="write it again with numpy.savez"
        ) from None
    if dtype.hasobject:
        raise SutureError(
            "dataset.pickled",
            "the array holds pickled Python objects, which are never loaded",
            where=where,
            hint="convert it to numbers or to fixed-width text before saving",
        )
    return shape, fortran, dtype, stream.tell()


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return where the entry's bytes start: behind its local header, whose two last lengths vary."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        signature: bytes
        name_length: int
        extra_length: int
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile
    return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _channels_first(images: NDArray[Any], spec: DatasetSpec) -> NDArray[Any]:
    """Return `(N, C, *spatial)`: a channel is added to `(N, H, W)`, and `(N, H, W, 3)` is turned."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.moveaxis(images, -1, 1)
    if images.ndim not in (2, 4, 5):
        raise SutureError(
            "dataset.wrong_shape",
            f"inputs have the shape {images.shape}",
            where=f"{spec.path}: {spec.columns.images}",
            hint="images are (N, H, W), (N, C, H, W), (N, H, W, C) or (N, C, D, H, W); tables are (N, C)",
        )
    return images


def _split_names(splits: NDArray[Any], samples: int, where: str) -> list[str]:
    if splits.dtype.kind not in "US" or splits.shape != (samples,):
        raise SutureError(
            "dataset.unknown_split",
            f"{samples} samples need as many split names, each train, validation or test",
            where=where,
        )
    return [name.decode("ascii", "replace") if isinstance(name, bytes) else str(name) for name in splits]
