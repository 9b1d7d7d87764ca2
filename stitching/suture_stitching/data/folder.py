"""What all data with one file per sample have in common: only the list of files is held."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import numbered, strata
from suture_stitching.data.dataset import Dataset
from suture_stitching.data.listing import list_samples
from suture_stitching.data.prefetch import ahead, default_workers
from suture_stitching.data.samples import UNREADABLE, Sample
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices, split_samples
from suture_stitching.data.subgroups import as_numbers, read_subgroups
from suture_stitching.data.targets import mask_indices, mixed_masks, two_writings
from suture_stitching.data.words import written_alike

Header = TypeVar("Header")


class FolderDataset(Dataset, Generic[Header]):
    """Lists the files, reads their headers, and divides them; a subclass knows how to read a file.

    A file whose header cannot be read is an error that names it, or with `on_unreadable = "skip"` left out; then all
    files are read to their end at opening, so that the splits hold what can be read.
    """

    def __init__(self, spec: DatasetSpec, suffixes: tuple[str, ...]) -> None:
        self.task = spec.task
        self.labels = spec.names
        self.value_range = spec.value_range or (0.0, 1.0)
        self.where = str(spec.path)
        self.workers = default_workers() if spec.workers is None else spec.workers
        self._spec = spec
        self._root = spec.files
        #: A mask whose largest value is 1, and one in which it is 255; several threads read masks.
        self._largest_in_masks: dict[int, str] = {}
        samples, others, notes = list_samples(spec, suffixes)
        self.notes = tuple(notes)

        checked = list(ahead(self._header_or_error, samples, self.workers))
        known = [(sample, it) for sample, it in zip(samples, checked, strict=True) if not isinstance(it, SutureError)]
        if not known:
            raise _first_error(checked)
        self.input_shape = self._shape([sample.file for sample, _ in known], [header for _, header in known])
        self._samples = self._by_patient(known)
        if spec.on_unreadable == "skip":
            errors = list(ahead(self._content_error, self._samples, self.workers))
            self._samples = [sample for sample, error in zip(self._samples, errors, strict=True) if error is None]
            if not self._samples:
                raise _first_error(errors)
        kept = {sample.file for sample in self._samples}
        self.skipped = (*others, *(sample.file for sample in samples if sample.file not in kept))

        self._targets = self._known_targets()
        grouped = any(sample.group for sample in self._samples)
        # A file of no group is a group of its own.
        groups = [sample.group or f"/{sample.file}" for sample in self._samples] if grouped else None
        self._patients = None if groups is None else numbered(groups)
        self.written_alike = 0 if groups is None else written_alike(groups)
        self._splits = split_samples(
            [sample.file.encode() for sample in self._samples],
            strata(self._targets, self.task),
            spec.split,
            names=[sample.split or "" for sample in self._samples] if self._samples[0].split else None,
            groups=groups,
            where=self.where,
        )
        self.one_class = spec.one_class
        self.subgroups = read_subgroups(spec, self._cells)
        self._check_splits()

    @property
    def samples(self) -> Sequence[str]:
        """The files, relative to the folder."""
        return [sample.file for sample in self._samples]

    @abstractmethod
    def _header(self, sample: Sample) -> Header:
        """Return what the file says about itself; raise `unreadable` if it cannot be read."""

    def _whose(self, header: Header) -> tuple[str, str]:
        """Return what the header says of whom the sample is: the patient, and the study; empty where nothing."""
        return "", ""

    def _by_patient(self, known: Sequence[tuple[Sample, Header]]) -> list[Sample]:
        """Return the samples with the patients that their headers name, where nothing else says whose they are.

        A patient who is the same in all files is a word that stands for nobody; then the studies tell them apart.
        """
        samples = [sample for sample, _ in known]
        if any(sample.group for sample in samples):
            return samples
        for names, what in zip(
            zip(*(self._whose(header) for _, header in known), strict=True),
            ("patient a file is of (PatientID)", "study a file is of (StudyInstanceUID)"),
            strict=True,
        ):
            if len(set(filter(None, names))) > 1:
                self.notes = (*self.notes, f"DICOM says which {what}: those of one are in one split")
                return [replace(sample, group=name or None) for sample, name in zip(samples, names, strict=True)]
        return samples

    @abstractmethod
    def _shape(self, files: list[str], headers: list[Header]) -> tuple[int, ...]:
        """Return the shape `(C, *spatial)` in which all are delivered; raise if they do not go together."""

    @abstractmethod
    def _check_content(self, sample: Sample) -> None:
        """Read the whole sample; raise `unreadable` if that is not possible."""

    @abstractmethod
    def _mask(self, sample: Sample) -> NDArray[Any]:
        """Return the sample's mask `(*spatial)` as stored, in label indices."""

    def _indices_of_mask(self, values: NDArray[Any], file: str) -> NDArray[Any]:
        """Return the label indices that a mask's values stand for."""
        largest = int(values.max(initial=0))
        if largest in (1, 255):
            self._largest_in_masks.setdefault(largest, file)
            if two_writings(self._largest_in_masks, self._spec):
                raise mixed_masks(self._largest_in_masks[1], self._largest_in_masks[255], self.where)
        return mask_indices(values, self._spec, file)

    def _masks(self, indices: Indices) -> Iterable[NDArray[Any]]:
        return ahead(lambda index: self._mask(self._samples[index]), indices, self.workers)

    def _cells(self, column: str, numbers: bool) -> NDArray[Any]:
        """Return what the list says in a column `(N,)`, as numbers or as texts."""
        place = list(self._spec.subgroups).index(column)
        cells = [sample.cells[place] for sample in self._samples]
        return (
            as_numbers(np.array([cell or "nan" for cell in cells]), column, self.where) if numbers else np.array(cells)
        )

    def _known_targets(self) -> NDArray[Any]:
        """Return label indices `(N,)` or values `(N, K)`; for a segmentation nothing `(N, 0)`."""
        targets = [sample.target for sample in self._samples]
        if self.task == "segmentation":
            return np.empty((len(targets), 0), dtype=np.float32)
        if self.task == "classification":
            return np.array([self._spec.labels.index(str(target)) for target in targets], dtype=np.int64)
        return np.array(targets, dtype=np.float32)

    def _header_or_error(self, sample: Sample) -> Header | SutureError:
        try:
            return self._header(sample)
        except SutureError as error:
            if error.code == UNREADABLE and self._spec.on_unreadable == "skip":
                return error
            raise

    def _content_error(self, sample: Sample) -> SutureError | None:
        try:
            self._check_content(sample)
        except SutureError as error:
            if error.code == UNREADABLE:
                return error
            raise
        return None


def _first_error(results: list[Any]) -> SutureError:
    return next(error for error in results if isinstance(error, SutureError))
