"""The parties' data: samples of each party, and their division into splits for a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task
from suture_local.study.nets import network
from suture_stitching.data import ArrayDataset

SplitNames = NDArray[np.str_]
#: Part of the samples for validation and test; the rest is to train on.
TABLE_SHARES, IMAGE_SHARES = (0.2, 0.3), (0.15, 0.25)
#: Fewer samples or patients than these say nothing of a method: one of them is five points and more.
_FEW_TESTED = 20


@dataclass(frozen=True)
class PartySamples:
    """One party's samples of all splits.

    `inputs` are uint8 (of 0 to 255) or float32 `(N, C, *spatial)`, `targets` `(N,)` or `(N, *spatial)` integers, and
    `split` names each sample's split, and `group` its patient, where that is known.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    split: SplitNames
    group: NDArray[Any] | None = None

    def part(self, split: str, device: torch.device) -> Part:
        """Return the samples of one split on `device`."""
        chosen = np.flatnonzero(self.split == split)
        return Part(
            torch.from_numpy(np.ascontiguousarray(self.inputs[chosen])).to(device),
            torch.from_numpy(np.ascontiguousarray(self.targets[chosen])).to(device),
        )


@dataclass(frozen=True)
class Part:
    """bSamples in memory: `x` uint8 or float32 `(N, C, *spatial)`, `y` integers, `soft` a teacher's probabilities."""

    x: Tensor
    y: Tensor
    soft: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def inputs(self, index: Tensor | slice) -> Tensor:
        """Return the inputs of these samples as float32; images of 8 bits in 0..1."""
        x = self.x[index]
        return x.float() / 255 if x.dtype == torch.uint8 else x.float()

    def targets(self, index: Tensor | slice) -> Tensor:
        """Return the targets of these samples as int64."""
        return self.y[index].long()


def joined(parts: Sequence[Part]) -> Part:
    """Return all samples of `parts` together."""
    return Part(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))


@dataclass(frozen=True)
class Study:
    """A task and its parties; `divide` gives each party's data for a seed. `notes` say what was done to them."""

    name: str
    task: Task
    labels: tuple[str, ...]
    parties: tuple[str, ...]
    divide: Callable[[int], dict[str, PartySamples]]
    #: Whether the images look as natural when they are turned, mirrored and recoloured.
    augment: bool = False
    channels: tuple[str, ...] | None = None
    notes: list[str] = field(default_factory=list)
    #: Untrained networks by design and seed, where they are not those of `nets`.
    networks: Callable[[int, int], nn.Module] | None = None

    def untrained(self, design: int, input_shape: Sequence[int], seed: int) -> nn.Module:
        """Return the untrained network of `design`, the same for the same seed."""
        if self.networks is not None:
            return self.networks(design, seed)
        return network(self.task, design, input_shape, len(self.labels), seed=seed)

    def dataset(self, party: str, data: PartySamples) -> ArrayDataset:
        """Return a party's data as the engine reads them."""
        one_class = self.task == "classification" and len(np.unique(data.targets[data.split == "train"])) < 2
        scaled = data.inputs.dtype == np.uint8 or data.inputs.ndim > 2
        return ArrayDataset(
            data.inputs,
            data.targets,
            self.labels,
            task=self.task,
            split=by_split(data.split),
            groups=data.group,
            value_range=(0.0, 1.0) if scaled else None,
            channels=self.channels,
            one_class=one_class,
            where=party,
        )


def by_split(names: SplitNames) -> dict[Literal["train", "validation", "test"], NDArray[np.int64]]:
    """Return the indices of each split."""
    return {
        "train": np.flatnonzero(names == "train"),
        "validation": np.flatnonzero(names == "validation"),
        "test": np.flatnonzero(names == "test"),
    }


@dataclass(frozen=True)
class UndividedSamples:
    """One party's samples before they are divided; samples of one `group` (a patient, say) stay in one split."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    group: NDArray[Any] | None = None


def divided(samples: Mapping[str, UndividedSamples], seed: int, shares: tuple[float, float]) -> dict[str, PartySamples]:
    """Return each party's samples with the split of each."""
    return {
        party: PartySamples(own.inputs, own.targets, split_names(own.targets, own.group, seed, shares), own.group)
        for party, own in samples.items()
    }


def split_names(
    targets: NDArray[Any], group: NDArray[Any] | None, seed: int, shares: tuple[float, float]
) -> SplitNames:
    """Return a split for each sample: class by class (masks: together), whole groups, one sample each at least."""
    rng = np.random.default_rng(seed)
    if len(targets) < 3 or (group is not None and len(np.unique(group)) < 3):
        raise SutureError("study.too_few", "a party needs three samples or groups at least, one for each split")
    groups, of = (
        (np.arange(len(targets)), np.arange(len(targets))) if group is None else np.unique(group, return_inverse=True)
    )
    classes = targets if targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    # A group counts for the class that most of its samples have.
    stratum = np.array([np.bincount(classes[of == index]).argmax() for index in range(len(groups))])
    names = np.full(len(groups), "train", dtype="<U10")
    for value in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == value))
        validation, test = (round(share * len(members)) for share in shares)
        names[members[:test]] = "test"
        names[members[test : test + validation]] = "validation"
    for split in ("validation", "test"):
        if not (names == split).any():
            spare = np.flatnonzero(names == "train")
            names[rng.choice(spare)] = split
    return names[of]


def few_tested(
    targets: Mapping[str, NDArray[Any]], groups: Mapping[str, NDArray[Any] | None], shares: tuple[float, float]
) -> list[str]:
    """Return a note for each party whose test data are too few for its figures to mean much."""
    notes = []
    for party, own in targets.items():
        group = groups[party]
        units, what = (len(own), "samples") if group is None else (len(np.unique(group)), "patients")
        if (tested := max(1, round(shares[1] * units))) < _FEW_TESTED:
            notes.append(f"{party}: of {units} {what} about {tested} are tested in a seed. Its figures mean little.")
    return notes


def tables_study(
    name: str,
    tables: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64], NDArray[Any] | None]],
    labels: Sequence[str],
    channels: Sequence[str],
    kinds: NDArray[np.bool_],
    notes: Sequence[str] = (),
) -> Study:
    """Return a study of tables `party: (features (N, F), labels (N,), groups)`; empty cells are NaN.

    `kinds` says which features are numbers: these are brought to mean 0 and deviation 1 by the party's own training
    samples. Empty cells become 0 (the mean), and each feature with empty cells gets another that says where.
    """
    few = few_tested(
        {party: own[1] for party, own in tables.items()}, {party: own[2] for party, own in tables.items()}, TABLE_SHARES
    )
    holes = np.any([np.isnan(features).any(axis=0) for features, _, _ in tables.values()], axis=0)

    def divide(seed: int) -> dict[str, PartySamples]:
        data = {}
        for party, (features, targets, group) in tables.items():
            split = split_names(targets, group, seed, TABLE_SHARES)
            data[party] = PartySamples(_standardised(features, kinds, holes, split == "train"), targets, split, group)
        return data

    names = (*channels, *(f"{channel} missing" for channel, hole in zip(channels, holes, strict=True) if hole))
    return Study(name, "classification", tuple(labels), tuple(tables), divide, channels=names, notes=[*notes, *few])


def _standardised(
    features: NDArray[np.float32], kinds: NDArray[np.bool_], holes: NDArray[np.bool_], known: NDArray[np.bool_]
) -> NDArray[np.float32]:
    own = features[known].astype(np.float64)
    there = ~np.isnan(own)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, own, 0).sum(axis=0) / count
    deviation = np.sqrt((np.where(there, own - mean, 0) ** 2).sum(axis=0) / count)
    # A feature that does not vary here says nothing here; dividing by its deviation would blow up others' values.
    scale = np.where(kinds & (deviation > 1e-6), deviation, 1.0)
    values = np.nan_to_num((features - mean) / scale, nan=0.0)
    return np.concatenate([values, np.isnan(features[:, holes])], axis=1).astype(np.float32)
