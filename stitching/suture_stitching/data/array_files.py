"""Arrays in one file, `.npz` or HDF5: images, signals or tables, with labels or masks, and perhaps `split` and `group`.

A file is never unpickled, and a header is believed only as far as there are bytes behind it. Arrays stored without
compression are memory-mapped; others are unpacked, large ones to a temporary file that is mapped. All are converted
batch by batch.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_contract.naming import folded
from suture_stitching.data.arrays import ArrayDataset, chunks
from suture_stitching.data.axes import channels_first
from suture_stitching.data.dataset import NamedSubgroup
from suture_stitching.data.doubts import NoValue
from suture_stitching.data.samples import patient_column
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.spool import Spool
from suture_stitching.data.subgroups import as_numbers, read_subgroups
from suture_stitching.data.targets import masks_of, targets_of
from suture_stitching.data.words import split_of

_LOCAL_HEADER = struct.Struct("<4s22xHH")
#: Compressed arrays up to this size are held in memory.
_HELD_BYTES = 32 * 1024 * 1024
_PIECE = 1024 * 1024
#: Of a file's arrays, that an error names.
_SHOWN = 8
#: What arrays are called, by what they are.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "images": ("images", "image", "imgs", "x", "data", "inputs", "volumes", "signals", "features"),
    "masks": ("masks", "mask", "segmentations", "segmentation", "segs", "seg", "labels", "label", "y", "targets"),
    "labels": ("labels", "label", "y", "targets", "target", "classes"),
    "split": ("split", "splits"),
    "group": ("group", "groups"),
}
_HINT = "name the arrays in the dataset's columns: images, label, split, group"


@dataclass(frozen=True)
class _Contents:
    """The arrays of a file by what they are, as they were read; where labels and groups are, by the arrays' names."""

    images: NDArray[Any]
    labels: NDArray[Any]
    label_name: str
    notes: list[str]
    splits: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    group_name: str | None = None
    subgroups: tuple[NamedSubgroup, ...] = ()


def open_arrays(spec: DatasetSpec) -> ArrayDataset:
    """Open the arrays that `spec.columns` names. Raises `SutureError` (`dataset.*`) naming the array and the sample."""
    path, columns = spec.path, spec.columns
    with _naming_the_file(path), _opened(spec) as file:
        parts = _by_split(file.names) if "images" not in file.names else {}
        if parts and columns.images == "images" and columns.label is None:
            arrays = _read_splits(file, parts, spec)
        else:
            arrays = _read_columns(file, spec)
    where, samples = f"{path}: {arrays.label_name}", len(arrays.images)
    groups = None if arrays.groups is None else _groups(arrays.groups, samples, f"{path}: {arrays.group_name}")
    inputs, axis_notes = channels_first(arrays.images, spec)
    if inputs.ndim == 2:
        columns_of = NoValue([str(place) for place in range(inputs.shape[1])], dict.fromkeys(spec.empty, ()))
        for chunk in chunks(inputs):
            columns_of.take_out(chunk.astype(np.float64))
        columns_of.refuse(str(path), filled=False)
    targets = masks_of if spec.task == "segmentation" else targets_of
    dataset = ArrayDataset(
        inputs,
        targets(arrays.labels, spec, where),
        spec.names,
        task=spec.task,
        split=spec.split if arrays.splits is None else _split_names(arrays.splits, samples, f"{path}: split"),
        groups=groups,
        value_range=spec.value_range,
        intensity=spec.intensity,
        one_class=spec.one_class,
        where=str(path),
    )
    dataset.notes, dataset.subgroups = (*arrays.notes, *axis_notes), arrays.subgroups
    return dataset


def _label_kind(spec: DatasetSpec) -> str:
    return "masks" if spec.task == "segmentation" else "labels"


def _read_splits(file: _Arrays, parts: Mapping[str, Mapping[str, str]], spec: DatasetSpec) -> _Contents:
    """Read a file whose arrays are one for each split: `parts` are their names by split and kind."""
    kind, path = _label_kind(spec), spec.path
    images = _joined([file.read(_required(names, "images", path)) for names in parts.values()], path)
    labels = _joined([file.read(_required(names, kind, path)) for names in parts.values()], path)
    counts = [len(file.read(_required(names, kind, path))) for names in parts.values()]
    splits = np.repeat(np.array(list(parts)), counts)
    return _Contents(images, labels, kind, [f"splits by the arrays' names: {', '.join(parts)}"], splits)


def _read_columns(file: _Arrays, spec: DatasetSpec) -> _Contents:
    """Read the arrays that `spec.columns` names, or that are called what such arrays mostly are."""
    path, columns = spec.path, spec.columns
    plain = {name: name for name in file.names}
    image_name = columns.images if columns.images in file.names else None
    if image_name is None and columns.images == "images":
        image_name = _required(plain, "images", path)
    label_name = columns.label or _required(plain, _label_kind(spec), path)
    group_name = columns.group or _maybe(plain, "group")
    group_name = group_name or patient_column(
        file.names, str(path), lambda name: [str(value) for value in file.read(name).reshape(-1).tolist()]
    )
    split_name = columns.split or _maybe(plain, "split")
    for name in (image_name or columns.images, label_name, split_name, group_name):
        if name is not None and name not in file.names:
            raise _missing(name, file.names, path)
    assert image_name is not None
    images = file.read(image_name)
    return _Contents(
        images,
        file.read(label_name),
        label_name,
        [f"read as images: the array '{image_name}'"] if image_name != "images" else [],
        file.read(split_name) if split_name else None,
        file.read(group_name) if group_name else None,
        group_name,
        read_subgroups(spec, lambda name, numbers: _column(file, name, len(images), path, numbers)),
    )


def _groups(groups: NDArray[Any], samples: int, where: str) -> NDArray[Any]:
    groups = groups.reshape(-1) if groups.shape == (samples, 1) else groups
    if groups.dtype.kind == "f" and np.isfinite(groups).all() and (groups == np.trunc(groups)).all():
        groups = groups.astype(np.int64)
    if groups.dtype.kind not in "USbui" or groups.shape != (samples,):
        raise SutureError(
            "dataset.wrong_shape", f"{samples} samples need as many groups, each a number or a name", where=where
        )
    return groups


def _column(file: Any, name: str, samples: int, path: Path, numbers: bool) -> NDArray[Any]:
    """Return an array with a value per sample, as numbers or as texts."""
    if name not in file.names:
        raise _missing(name, file.names, path)
    values = np.asarray(file.read(name)).reshape(-1)
    if len(values) != samples:
        raise SutureError(
            "dataset.subgroups", f"{samples} samples need as many values of '{name}'", where=f"{path}: {name}"
        )
    return as_numbers(values, name, str(path)) if numbers else values.astype(str)


def label_values(path: Path, kind: str, name: str | None = None) -> list[str] | None:
    """Return the distinct labels of the file in order, as text; None where it has masks instead."""
    spec = DatasetSpec(path=path, format="hdf5" if kind == "hdf5" else "npz", task="regression")
    with _naming_the_file(path), _opened(spec) as file:
        parts = _by_split(file.names)
        names = next(iter(parts.values())) if parts else {name: name for name in file.names}
        if name is None and _maybe(names, "labels") is None:
            return None
        stored = file.read(name or _required(names, "labels", path))
    if stored.ndim > 2 or (stored.ndim == 2 and stored.shape[1] > 1):
        return [str(index) for index in range(stored.shape[1])] if stored.ndim == 2 else None
    return [str(value) for value in np.unique(stored).tolist()]


class _Arrays(ABC):
    """Arrays by name, of which large ones are never held in memory."""

    names: list[str]

    @abstractmethod
    def read(self, name: str) -> NDArray[Any]: ...


class _Npz(_Arrays):
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self.names = sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))

    def read(self, name: str) -> NDArray[Any]:
        where = f"{self._path}: {name}"
        archive = self._archive
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
                offset = _data_offset(self._path, entry) + header_bytes
                mapped: NDArray[Any] = np.memmap(str(self._path), dtype, "r", offset, shape, "F" if fortran else "C")
                return mapped
            if size > _HELD_BYTES:
                with Spool() as spool:
                    while piece := stream.read(_PIECE):
                        spool.append(piece)
                    return spool.array(shape, dtype, fortran=fortran)
            held: NDArray[Any] = np.frombuffer(stream.read(), dtype=dtype)
            return held.reshape(shape[::-1]).T if fortran else held.reshape(shape)


class _Hdf5(_Arrays):
    def __init__(self, path: Path, file: Any) -> None:
        import h5py

        self._path, self._file = path, file
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        self.names = sorted(names)

    def read(self, name: str) -> NDArray[Any]:
        stored = self._file[name]
        where = f"{self._path}: {name}"
        if not stored.shape:
            raise SutureError("dataset.wrong_shape", "a single value where an array is needed", where=where)
        if stored.external or stored.is_virtual:
            raise SutureError(
                "dataset.unreadable",
                "the array lies in other files, which are never followed",
                where=where,
                hint="write the values into this file",
            )
        if stored.dtype.kind == "O":  # text; nothing of HDF5 is unpickled
            return np.array([str(text) for text in stored.asstr()[:]])
        if stored.dtype.kind not in "buifS":
            raise SutureError("dataset.not_numbers", f"an array of type {stored.dtype}, not numbers", where=where)
        if stored.size * stored.dtype.itemsize <= _HELD_BYTES:
            held: NDArray[Any] = stored[:]
            return held
        step = max(1, _PIECE * 8 // max(1, prod(stored.shape[1:]) * stored.dtype.itemsize))
        with Spool() as spool:
            for start in range(0, len(stored), step):
                spool.append(stored[start : start + step])
            return spool.array(stored.shape, stored.dtype)


@contextmanager
def _opened(spec: DatasetSpec) -> Iterator[_Arrays]:
    if spec.format == "npz":
        with zipfile.ZipFile(spec.path) as archive:
            yield _Npz(spec.path, archive)
        return
    if find_spec("h5py") is None:
        raise SutureError(
            "dataset.missing_package", "HDF5 needs h5py", where=str(spec.path), hint=how_to_install("imaging")
        )
    import h5py

    with h5py.File(spec.path, "r") as file:
        yield _Hdf5(spec.path, file)


@contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, OSError, RuntimeError):
        npz = path.suffix.lower() == ".npz"
        raise SutureError(
            "dataset.unreadable",
            "not a complete .npz file" if npz else "not a complete file of arrays",
            where=str(path),
            hint="write it again with numpy.savez or numpy.savez_compressed" if npz else "write it again",
        ) from None


def _by_split(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return, where the arrays are of single splits (`train_images`, `x_test`), their names by split and rest."""
    by_split: dict[str, dict[str, str]] = {}
    for name in names:
        words = [word for word in re.split(r"[_./\s-]+", name) if word]
        splits = [(place, split) for place, word in enumerate(words) if (split := split_of(word)) is not None]
        if len(words) < 2 or len(splits) != 1:
            continue
        place, split = splits[0]
        by_split.setdefault(split, {})["_".join(words[:place] + words[place + 1 :])] = name
    whole = {split: rest for split, rest in by_split.items() if len(rest) > 1}
    return whole if "train" in whole else {}


def _maybe(names: Mapping[str, str], kind: str) -> str | None:
    """Return the array that is what `kind` says, by the first name that it goes by; None where there is none."""
    for wanted in _NAMES[kind]:
        matching = [name for rest, name in names.items() if folded(rest.rpartition("/")[2]) == wanted]
        if len(matching) == 1:
            return matching[0]
        if matching:
            return next((name for name in matching if name == wanted), None)
    return None


def _required(names: Mapping[str, str], kind: str, path: Path) -> str:
    name = _maybe(names, kind)
    if name is None:
        raise _missing(kind, list(names.values()), path)
    return name


def _missing(name: str, names: Sequence[str], path: Path) -> SutureError:
    return SutureError(
        "dataset.missing_column",
        f"there is no array '{name}'; the file holds {', '.join(sorted(names)[:_SHOWN]) or 'none'}"
        + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""),
        where=str(path),
        hint=_HINT,
    )


def _joined(arrays: Sequence[NDArray[Any]], path: Path) -> NDArray[Any]:
    """Return the samples of several arrays one after another."""
    first = arrays[0]
    if any(array.shape[1:] != first.shape[1:] or array.dtype != first.dtype for array in arrays):
        raise SutureError(
            "dataset.wrong_shape", "the arrays of the splits have several sizes or types", where=str(path), hint=_HINT
        )
    with Spool() as spool:
        for array in arrays:
            for chunk in chunks(array):
                spool.append(chunk)
        return spool.array((sum(map(len, arrays)), *first.shape[1:]), first.dtype)


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


def _split_names(splits: NDArray[Any], samples: int, where: str) -> list[str]:
    splits = splits.reshape(-1) if splits.shape == (samples, 1) else splits
    if splits.dtype.kind not in "US" or splits.shape != (samples,):
        raise SutureError(
            "dataset.unknown_split",
            f"{samples} samples need as many split names, each train, validation or test",
            where=where,
        )
    return [name.decode("ascii", "replace") if isinstance(name, bytes) else str(name) for name in splits]


__all__ = ["label_values", "open_arrays"]
