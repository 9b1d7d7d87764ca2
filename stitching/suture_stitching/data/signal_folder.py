"""Signals in files of their own, `.npy` or text, decoded batch by batch: `(C, T)`, all of one length."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import to_range
from suture_stitching.data.axes import channels_first
from suture_stitching.data.folder import FolderDataset
from suture_stitching.data.samples import Sample, unreadable
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices
from suture_stitching.data.text_table import sniff

_SUFFIXES = (".npy", ".csv", ".tsv", ".txt", ".dat")
#: A header that claims more numbers is refused before they are allocated.
_MOST = 1 << 26


class SignalFolder(FolderDataset[tuple[int, ...]]):
    """Signals `(C, T)` of one length; a file with one column or row is one channel."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec, _SUFFIXES)
        self.value_range = spec.value_range

    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        signals = np.stack([self._signal(self._samples[index].file) for index in indices])
        return signals, self._targets[indices]

    def _signal(self, file: str) -> NDArray[np.float32]:
        values = self._load(file)
        if values.shape != self.input_shape:
            raise _differ(file, self._samples[0].file)
        spec = self._spec
        if spec.intensity is not None:
            return to_range(values, spec.intensity, spec.value_range or (0.0, 1.0), clip=True)
        if spec.value_range is not None and (values.min() < spec.value_range[0] or values.max() > spec.value_range[1]):
            raise SutureError(
                "dataset.value_range",
                f"the signal has values outside the declared range {spec.value_range[0]} to {spec.value_range[1]}",
                where=file,
                hint="say which stored values become the ends of that range: intensity = [low, high]",
            )
        return values

    def _load(self, file: str) -> NDArray[np.float32]:
        path = self._root / file
        try:
            values = _npy(path) if path.suffix.lower() == ".npy" else _text(path)
        except SutureError:
            raise
        except (OSError, ValueError, EOFError):
            raise unreadable(file, "the file is damaged, or holds more than numbers") from None
        if values.size == 0 or not np.isfinite(values).all():
            raise unreadable(file, "it holds no numbers, or NaN or infinity")
        if values.ndim == 2 and 1 in values.shape:
            values = values.reshape(-1)
        if values.ndim == 1:
            return values[None]
        return np.ascontiguousarray(channels_first(values[None], self._spec)[0][0])

    def _header(self, sample: Sample) -> tuple[int, ...]:
        return self._load(sample.file).shape

    def _shape(self, files: list[str], headers: list[tuple[int, ...]]) -> tuple[int, ...]:
        for file, shape in zip(files, headers, strict=True):
            if shape != headers[0]:
                raise _differ(file, files[0])
        return headers[0]

    def _check_content(self, sample: Sample) -> None:
        self._load(sample.file)

    def _mask(self, sample: Sample) -> NDArray[Any]:
        raise SutureError(
            "dataset.wrong_task", "signals in files have no masks", where=self.where, hint="give them in an .npz file"
        )


def _npy(path: Path) -> NDArray[np.float32]:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.size > _MOST or mapped.dtype.kind not in "buif":
        raise ValueError
    return np.asarray(mapped, dtype=np.float32)


def _text(path: Path) -> NDArray[np.float32]:
    form = sniff(path)
    with path.open(encoding=form.encoding, newline="") as text:
        rows = [row for row in csv.reader(text, delimiter=form.delimiter) if any(cell.strip() for cell in row)]
    if form.decimal == ",":
        rows = [[cell.replace(",", ".") for cell in row] for row in rows]
    try:
        float(rows[0][0])
    except ValueError:
        rows = rows[1:]  # names of the channels
    return np.array([[float(cell) for cell in row if cell.strip()] for row in rows], dtype=np.float32)


def _differ(file: str, first: str) -> SutureError:
    return SutureError(
        "dataset.sizes_differ",
        f"{file} has another number of channels or another length than {first}",
        where=file,
        hint="cut or pad all signals to one length beforehand",
    )


__all__ = ["SignalFolder"]
