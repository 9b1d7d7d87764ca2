"""Passes of all members over a dataset: what they read, in which batches, how far it is, and where it goes on.

    passes = FeaturePass(members, dataset, Runner(), Tracker(progress), Checkpoint(folder, key), seed=0)
    model = passes.model_of(merge, nodes)
    total = passes.summed("solve", "moments", model_on_a_part, {"train": passes.number_of_batches("train")})

Every step of a fit, a contribution and an evaluation reads the same data through the same members. Their shape, their
batches and their order are said here once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.graph import Output, Ref
from suture_stitching.data import Dataset, Split
from suture_stitching.ensemble.members import Member, batch_size, batches, input_shape, number_of_batches
from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments
from suture_stitching.features.points import StitchPoint
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.running.accumulator import Accumulator
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.device import Runner
from suture_stitching.running.shards import FEWEST_BATCHES, blocks
from suture_stitching.running.tracker import Tracker

_S = TypeVar("_S", bound=Split)
_T = TypeVar("_T")


@dataclass(frozen=True)
class FeaturePass:
    """All `members` on `dataset`, run by `runner`; `tracker` and `checkpoint` are those of the whole work.

    `seed` shuffles the training split, None leaves it in the order of `Dataset.patient_of`. `whole` samples come one at
    a time in their own size, from a dataset with a `window`.
    """

    members: Sequence[Member]
    dataset: Dataset
    runner: Runner
    tracker: Tracker
    checkpoint: Checkpoint
    seed: int | None = None
    whole: bool = False

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """What the members together read, `(C, *spatial)`."""
        return input_shape(self.members, self.dataset)

    @cached_property
    def batch(self) -> int:
        """How many samples a batch has, the last one of a split fewer."""
        return batch_size(self.dataset, self.shape)

    def number_of_batches(self, split: Split) -> int:
        """Return how many batches a pass over `split` has."""
        return number_of_batches(self.dataset, split, self.shape, whole=self.whole)

    def sizes(self, split: Split) -> list[int]:
        """Return how many samples each batch of a pass over `split` has."""
        count, samples = self.number_of_batches(split), self.dataset.n(split) * self.dataset.patches
        return [min(self.batch, samples - number * self.batch) for number in range(count)]

    def blocks(self, splits: Sequence[_S], fewest: int = FEWEST_BATCHES) -> dict[_S, list[range]]:
        """Return for each split the blocks of its batches that processes share."""
        return {split: blocks(self.number_of_batches(split), fewest) for split in splits}

    def model(self, merge: Merge, output: Output) -> PortableModel:
        """Return the members on the device, merged to give `output`."""
        return self.runner.model(merge.graph(output), merge.tensors, self.shape)

    def model_of(self, merge: Merge, nodes: Iterable[int]) -> PortableModel:
        """Return the members on the device, merged to give the values of `nodes`."""
        return self.model(merge, tuple(map(Ref, nodes)))

    def batches(self, split: Split, only: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of the batches `only` of `split`, or of all, in the same order every time."""
        yield from self.shuffled(split, self._seed(split), only)

    def shuffled(self, split: Split, seed: int | None, only: range | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as `batches` does, in the order of another `seed`; in that of the dataset without one."""
        device = self.runner.device
        yield from batches(self.members, self.dataset, split, device, seed=seed, whole=self.whole, only=only)

    def patients(self, split: Split) -> NDArray[np.int64]:
        """Return whose each sample of `split` is, in the order of `batches`."""
        return self.dataset.patient_of(split, self._seed(split))

    def summed(
        self, step: str, part: str, work: Callable[[_S, Tensor, Tensor], Accumulator], most: Mapping[_S, int]
    ) -> Accumulator:
        """Return what `work` adds up over the first `most` batches of each split, of those before a kill too.

        `work` gets the split, a part of a batch, and the places `(N,)` of its samples in the split. Sums so far are
        kept as `part`; every batch is a unit of `step`.
        """
        total, done = Accumulator.restored(self.checkpoint, part, self.runner.device)
        for split, end in most.items():
            number = done.get(split, 0)
            self.tracker.skip(step, number)
            for x, _ in self.batches(split, range(number, end)) if number < end else ():
                self.tracker.tick(step)
                places = number * self.batch + torch.arange(len(x))
                for more in self.runner.parts(functools.partial(work, split), x, places):
                    total.add(more)
                number += 1
                if self.checkpoint.due:
                    self.checkpoint.save(part, *total.kept({**done, split: number}))
            done[split] = number
        total.settle()
        self.checkpoint.save(part, *total.kept(done))
        return total

    def check(self, moments: Moments | FewRows, columns: Sequence[tuple[slice, int, StitchPoint]]) -> None:
        """Raise `SutureError` `features.not_finite` naming the first member and point with NaN or infinity."""
        finite = moments.finite.cpu()
        for column, member, point in columns:
            if not bool(finite[column].all()):
                raise SutureError(
                    "features.not_finite",
                    f"the model gives NaN or infinity at {point.name} ({point.module}) on this data",
                    where=self.members[member].ref.repo,
                    hint="check that the data are in the value range that its suture.json names",
                )

    def _seed(self, split: Split) -> int | None:
        return self.seed if split == "train" else None
