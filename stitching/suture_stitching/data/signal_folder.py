"""Signals in files of their own, `.npy` or text, decoded batch by batch: `(C, T)`, all of one length."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.arrays import check_used, to_range
from suture_stitching.data.axes import channels_first
from suture_stitching.data.folder import FolderDataset
from suture_stitching.data.samples import Sample, unreadable
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices
from suture_stitching.data.text_table import opened, sniff
from suture_stitching.data.words import is_row_number

_SUFFIXES = (".npy", *(f"{suffix}{zipped}" for suffix in (".csv", ".tsv", ".txt", ".dat") for zipped in ("", ".gz")))
#: As many numbers from 0 in a first line are names of channels.
_COUNT = 3
#: What a first column is called that says when a value was measured.
_TIME = re.compile(r"(?:time|zeit|timestamp|t|samples?|index|frame)(?: ?[\[(]?(?:m?s|sec|seconds|ms|min)[\])]?)?")
#: A header that claims more numbers is refused before they are allocated.
_MOST = 1 << 26


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    lowest: float
    highest: float


class SignalFolder(FolderDataset[_Header]):
    """Signals `(C, T)` of one length; a file with one column or row is one channel."""

    def __init__(self, spec: DatasetSpec) -> None:
        #: Names of first columns that are no channels; several threads read files.
        self._left_out: set[str] = set()
        super().__init__(spec, _SUFFIXES)
        self.value_range = spec.value_range
        self.notes = (
            *self.notes,
            *(
                f"not read: the first column, '{name}', which counts or says the time"
                for name in sorted(self._left_out)
            ),
        )

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
        self._check_range(values, file)
        return values

    def _check_range(self, values: NDArray[np.float32], file: str) -> None:
        spec = self._spec
        if spec.value_range is None or spec.intensity is not None:
            return
        if values.min() < spec.value_range[0] or values.max() > spec.value_range[1]:
            raise SutureError(
                "dataset.value_range",
                f"the signal has values outside the declared range {spec.value_range[0]} to {spec.value_range[1]}",
                where=file,
                hint="say which stored values become the ends of that range: intensity = [low, high]",
            )

    def _load(self, file: str) -> NDArray[np.float32]:
        path = self._root / file
        try:
            if path.suffix.lower() == ".npy":
                values = _npy(path)
            else:
                values, left_out = _text(path, file)
                self._left_out |= set() if left_out is None else {left_out}
        except SutureError:
            raise
        except (OSError, ValueError, EOFError):
            raise unreadable(file, "the file is damaged, or holds more than numbers, or Python objects") from None
        if values.size == 0 or not np.isfinite(values).all():
            raise unreadable(file, "it holds no numbers, or NaN or infinity")
        if values.ndim == 2 and 1 in values.shape:
            values = values.reshape(-1)
        if values.ndim == 1:
            return values[None]
        return np.ascontiguousarray(channels_first(values[None], self._spec)[0][0])

    def _header(self, sample: Sample) -> _Header:
        values = self._load(sample.file)
        self._check_range(values, sample.file)
        return _Header(values.shape, float(values.min()), float(values.max()))

    def _shape(self, files: list[str], headers: list[_Header]) -> tuple[int, ...]:
        shape = headers[0].shape
        for file, header in zip(files, headers, strict=True):
            if header.shape != shape:
                raise _differ(file, files[0])
        if self._spec.value_range is not None and self._spec.intensity is None:
            ends = min(header.lowest for header in headers), max(header.highest for header in headers)
            check_used(ends, self._spec.value_range, self.where, images=False)
        return shape

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


def _text(path: Path, file: str) -> tuple[NDArray[np.float32], str | None]:
    """Return the numbers of a text `(lines, columns)`, and which first column was left out, if one was."""
    form = sniff(path)
    with opened(path, form.zipped) as raw, io.TextIOWrapper(raw, form.encoding, newline="") as text:
        for _ in range(form.skip):
            next(text, "")
        rows = [row for row in csv.reader(text, delimiter=form.delimiter) if any(map(str.strip, row))]
    if all(len(row) == 1 for row in rows):
        rows = [row[0].split() for row in rows]  # by spaces, as numpy.savetxt writes it
    if form.decimal == ",":
        rows = [[cell.replace(",", ".") for cell in row] for row in rows]
    if len(rows[0]) > 1 and not any(row[-1].strip() for row in rows):
        rows = [row[:-1] for row in rows]  # a separator at the end of each line
    names = rows.pop(0) if len(rows) > 1 and _is_header(rows[0], rows[1]) else []
    if not all(len(row) == len(rows[0]) for row in rows):
        raise unreadable(file, "its lines have several numbers of cells")
    if not all(cell.strip() for row in rows for cell in row):
        raise unreadable(file, "some of its cells are empty: fill gaps beforehand")
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        raise unreadable(file, "it holds texts between its numbers") from None
    counts = bool(names) and len(names) == values.shape[1] > 1 and bool((np.diff(values[:, 0]) > 0).all())
    if counts and (is_row_number(names[0].strip()) or _TIME.fullmatch(folded(names[0]))):
        return values[:, 1:].astype(np.float32), names[0].strip()
    return values.astype(np.float32), None


def _is_header(cells: list[str], first: list[str]) -> bool:
    """Whether a first line names channels, by texts, or by numbers from 0 as pandas does; `first` is the line below."""
    names = [cell.strip() for cell in cells]
    counted = [name for name in names if name]
    if len(names) > 1 and counted == [str(place) for place in range(len(counted))]:
        # Of few whole numbers it is open whether they count.
        return len(counted) > _COUNT or not all(cell.strip().lstrip("+-").isdigit() for cell in first if cell.strip())
    try:
        list(map(float, counted))
    except ValueError:
        return True
    return False


def _differ(file: str, first: str) -> SutureError:
    return SutureError(
        "dataset.sizes_differ",
        f"{file} has another number of channels or another length than {first}",
        where=file,
        hint="cut or pad all signals to one length beforehand",
    )


__all__ = ["SignalFolder"]
