"""A labelled dataset in three splits, read in batches.

Importing this module does not import torch: a site's agent reads specifications and counts samples without it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task
from suture_stitching.data.prefetch import ahead
from suture_stitching.data.spec import Split
from suture_stitching.data.splits import Indices, Splits

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NamedSubgroup:
    """The samples `(N,)` that have a `value` in a `column`, both as the site names them."""

    column: str
    value: str
    samples: NDArray[np.bool_]


class Dataset(ABC):
    """Samples of one task in the splits `train`, `validation` and `test`.

    `labels` are the class names in the order of their index (empty for regression); `input_shape` is `(C, *spatial)`;
    `value_range` is the range all inputs lie in, or None where nothing is promised; `channels` are the names of a
    table's features. `workers` threads read ahead, and what is read is the same for any number of them. `skipped` are
    the files that were left out because they cannot be read.

    Where samples are larger than what a model reads, and of several sizes, `window` is the size in which they are read:
    a pass reads `patches` of them per sample, and `whole` yields the samples as they are.
    """

    task: Task
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = None
    channels: tuple[str, ...] | None = None
    #: Whether the site says itself in which order the models read the channels.
    ordered: bool = False
    window: tuple[int, ...] | None = None
    patches: int = 1
    #: Millimetres along each spatial axis from one position to the next; None where nobody says.
    spacing: tuple[float, ...] | None = None
    workers: int = 0
    skipped: tuple[str, ...] = ()
    where: str
    #: What was decided about the data that they do not say themselves, in words.
    notes: tuple[str, ...] = ()
    _splits: Splits
    #: Label indices `(N,)`, 0 or 1 per label `(N, L)`, or values `(N, K)`; masks where a reader holds them.
    _targets: NDArray[Any]
    #: Whose each sample is `(N,)`, any distinct number per patient; None where every sample is a patient of its own.
    _patients: NDArray[np.int64] | None = None
    #: How many patients' ids are another's but for case and spaces: each counts as a patient of its own.
    written_alike: int = 0
    #: Those that the site names; each is measured on its own.
    subgroups: tuple[NamedSubgroup, ...] = ()
    #: Whether all training samples may have one label: then nothing is trained on labels.
    one_class: bool = False
    #: Whether empty cells were filled with the mean of the others' values.
    filled: bool = False

    @abstractmethod
    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return inputs `(N, C, *spatial)` and targets of these samples, in this order; called by several threads.

        Readers of patches place them by `seed`, for which there is one per batch.
        """

    @abstractmethod
    def _masks(self, indices: Indices) -> Iterable[NDArray[Any]]:
        """Yield the masks `(*spatial)` of these samples of a segmentation, in label indices."""

    def _label_counts(self, indices: Indices) -> NDArray[np.int64]:
        """Return, per label, how many of these samples have it."""
        counts = np.zeros(len(self.labels), dtype=np.int64)
        if self.task == "classification":
            counts += np.bincount(self._targets[indices], minlength=len(self.labels))
        elif self.task == "multilabel":
            counts += self._targets[indices].sum(axis=0).astype(np.int64)
        else:
            for mask in self._masks(indices):
                counts[np.unique(mask)] += 1
        return counts

    def n(self, split: Split) -> int:
        """Return the number of samples in `split`."""
        return len(self._splits[split])

    def patients(self, split: Split) -> int:
        """Return the number of patients (groups) in `split`; without groups every sample is one."""
        return len(np.unique(self.patient_of(split)))

    @property
    def grouped(self) -> bool:
        """Whether the data say which samples are of one patient."""
        return self._patients is not None

    def patients_with(self, split: Split) -> dict[str, int]:
        """Return how many patients have a sample in `split` with each label; empty for regression."""
        if self._patients is None or not self.labels:
            return self.counts(split)
        own = self._splits[split]
        order = own[np.argsort(self._patients[own], kind="stable")]
        starts = np.flatnonzero(np.diff(self._patients[order])) + 1
        having = sum(
            (self._label_counts(patient) > 0).astype(np.int64) for patient in np.split(order, starts) if len(patient)
        )
        return dict(zip(self.labels, np.broadcast_to(having, len(self.labels)).tolist(), strict=True))

    def patient_of(self, split: Split, seed: int | None = None) -> NDArray[np.int64]:
        """Return whose each sample of `split` is `(N,)`, in the order in which `batches` yields them."""
        order = self._sequence(self._splits[split], seed)
        return order.astype(np.int64) if self._patients is None else self._patients[order]

    @property
    def samples(self) -> Sequence[str]:
        """What each sample is called, in order: its row, counted from 0; its file, where it has one of its own."""
        return [str(row) for row in range(sum(len(own) for own in self._splits.values()))]

    def split_of(self) -> list[Split]:
        """Return the split that each of `samples` is in."""
        splits: list[Split] = ["train"] * len(self.samples)
        for split, own in self._splits.items():
            for index in own.tolist():
                splits[index] = split
        return splits

    def split_digest(self) -> str:
        """Return the SHA-256 of which sample is in which split: the same where two divide the same samples alike."""
        lines = sorted(f"{sample}\0{split}\n" for sample, split in zip(self.samples, self.split_of(), strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def counts(self, split: Split) -> dict[str, int]:
        """Return how many samples of `split` have each label (segmentation: show it anywhere); empty for regression."""
        if not self.labels:
            return {}
        return dict(zip(self.labels, self._label_counts(self._splits[split]).tolist(), strict=True))

    def targets(self, split: Split) -> NDArray[Any]:
        """Return label indices `(N,)`, 0 or 1 per label `(N, L)`, or values `(N, K)`, in the order of `batches`."""
        return self._targets[self._splits[split]]

    def has(self, split: Split, subgroup: NamedSubgroup) -> NDArray[np.bool_]:
        """Return which samples `(N,)` of `split` are of a subgroup, in the order of `batches`."""
        return subgroup.samples[self._splits[split]]

    def label_shares(self) -> dict[str, float]:
        """Return the share of each label in the train split; empty where labels do not exclude each other."""
        if self.task != "classification" or not self.n("train"):
            return {}
        return shares_of(self.targets("train"), self.labels)

    def batches(
        self, split: Split, batch_size: int, *, seed: int | None = None, only: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs `(N, C, *spatial)` float32 and their targets, each sample `patches` times; `seed` shuffles them.

        `only` are the numbers of the batches to yield, from 0: the others are not read.
        Targets are `(N,)` int64 label indices (classification), `(N, L)` float32 0 or 1 (multilabel), `(N, *spatial)`
        int64 (segmentation) or `(N, K)` float32 (regression). Once CUDA is in use they lie in pinned memory. Raises
        `SutureError` (`dataset.*`) for an empty split or a sample that cannot be read.
        """
        order = self._sequence(self._order(split), seed)

        def read(start: int) -> tuple[Tensor, Tensor]:
            return self._tensors(*self._read(order[start : start + batch_size], (seed or 0, start)))

        starts = range(0, len(order), batch_size)
        return ahead(read, starts if only is None else [starts[number] for number in only], self.workers)

    def whole(self, split: Split, *, only: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each sample of `split` in full size, one at a time: inputs `(1, C, *spatial)` and targets.

        As `batches` otherwise; only for a dataset with a `window`.
        """
        order = self._order(split)
        order = order if only is None else order[list(only)]
        return ahead(lambda index: self._tensors(*self._read_whole(int(index))), order, min(self.workers, 1))

    def _read_whole(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        raise NotImplementedError("this dataset has no window")

    def _order(self, split: Split) -> Indices:
        if not self.n(split):
            raise SutureError(
                "dataset.empty_split",
                f"the {split} split has no samples",
                where=self.where,
                hint=f"add samples to {split}, or remove the split to have it made from a seed",
            )
        return self._splits[split]

    def _sequence(self, order: Indices, seed: int | None) -> Indices:
        """Return the samples of a split in the order in which a pass reads them."""
        return np.repeat(order if seed is None else np.random.default_rng(seed).permutation(order), self.patches)

    def _tensors(self, inputs: NDArray[np.float32], targets: NDArray[Any]) -> tuple[Tensor, Tensor]:
        import torch

        target_type = np.float32 if self.task in ("regression", "multilabel") else np.int64
        x = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
        y = torch.from_numpy(np.ascontiguousarray(targets, dtype=target_type))
        in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return (x.pin_memory(), y.pin_memory()) if in_use else (x, y)

    def _check_splits(self) -> None:
        """Raise `SutureError` when a split that every job needs is empty, or training data hold a single class."""
        for split in ("validation", "test"):
            if not self.n(split):
                raise SutureError(
                    "dataset.empty_split",
                    f"the {split} split has no samples",
                    where=self.where,
                    hint="add samples, or give each sample a split (train, validation or test)",
                )
        if not self.one_class:
            self.check_classes()

    def check_separate(self) -> None:
        """Raise `SutureError` `privacy.filled` unless each sample holds its own patient's values and nobody else's."""
        if self.filled:
            raise SutureError(
                "privacy.filled",
                "empty cells were filled with the mean of other patients, which no noise covers",
                where=self.where,
                hint="fill them before, by values that are not taken from these data, or name features without gaps",
            )

    def check_classes(self) -> None:
        """Raise `SutureError` `dataset.one_class` when the training split shows a single class, or no label varies."""
        if not self.labels or not self.n("train"):
            return
        train = self._splits["train"]
        if self.task == "multilabel":
            counts = self._label_counts(train)
            if bool(((counts == 0) | (counts == len(train))).all()):
                raise SutureError(
                    "dataset.one_class",
                    "every label is the same for all training samples",
                    where=self.where,
                    hint="at least one label needs samples that have it and samples that do not in the training split",
                )
            return
        present = np.zeros(len(self.labels), dtype=np.bool_)
        # Most often the first masks show two labels; only if they do not, all are read.
        step = 1 if self.task == "segmentation" else len(train)
        for start in range(0, len(train), step):
            present |= self._label_counts(train[start : start + step]) > 0
            if present.sum() > 1:
                return
        label = self.labels[int(np.argmax(present))]
        nothing_else = self.task == "segmentation"
        raise SutureError(
            "dataset.one_class",
            f"the training masks show nothing but '{label}'"
            if nothing_else
            else f"all training samples are labelled '{label}'",
            where=self.where,
            hint="at least two classes are needed in the training split"
            + ("" if nothing_else else "; if this site has one class alone, say one_class = true"),
        )


def shares_of(targets: NDArray[Any], labels: Sequence[str]) -> dict[str, float]:
    """Return the share of each of `labels` among samples of these label indices `(N,)`."""
    counts = np.bincount(targets, minlength=len(labels))
    return dict(zip(labels, (counts / counts.sum()).tolist(), strict=True))


__all__ = ["Dataset", "NamedSubgroup", "shares_of"]
