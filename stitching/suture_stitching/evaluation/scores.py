"""Scores of candidates while an evaluation runs, kept so that it can go on, and what they come to in the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.documents import PLAIN, Candidate, ClassScores, Score, SplitName, SplitScores
from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.objectives import Objective
from suture_stitching.running.checkpoint import Checkpoint

#: Of a part of a batch: scores `(candidates, N)`, tallies `(candidates, K)`, which candidates' outputs are finite, and
#: what further metrics are computed from, `(candidates, N, F)`.
Scored: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class Scores:
    """By split the scores so far, `(candidates, N)`, the tallies, and how many `batches` went in; kept as `name`.

    Beside them what further metrics are computed from, `(candidates, N, F)`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        objective: Objective,
        fitted: FitResult,
        checkpoint: Checkpoint,
        name: str,
        privacy: Privacy | None = None,
    ) -> None:
        self._private = privacy is not None
        self._members, self._candidates, self._seed = members, fitted.candidates.candidates, fitted.candidates.seed
        self._objective, self._checkpoint, self._name = objective, checkpoint, name
        part = checkpoint.load(name)
        self.batches: dict[str, int] = {} if part is None else dict(part.document)
        tensors = {} if part is None else part.tensors
        self._parts = {split: [tensors[split]] for split in self.batches}
        self._tallies = {split: tensors[_tally(split)] for split in self.batches}
        self._answers = {split: [tensors[_answers(split)]] for split in self.batches}
        self._finite: list[Tensor] = []

    def add(self, split: SplitName, parts: Sequence[Scored]) -> None:
        """Add a batch."""
        for scores, tallies, finite, answers in parts:
            self._put(split, scores, tallies, answers)
            self._finite.append(finite)
        self.batches[split] = self.batches.get(split, 0) + 1

    def take(self, split: SplitName, part: str) -> int:
        """Add the batches that another process kept as `part`; return how many they are."""
        kept = self._checkpoint.load(part)
        if kept is None or split not in kept.tensors:
            return 0
        self._put(split, kept.tensors[split], kept.tensors[_tally(split)], kept.tensors[_answers(split)])
        count = int(kept.document[split])
        self.batches[split] = self.batches.get(split, 0) + count
        return count

    def keep(self) -> None:
        """Raise if a candidate gave NaN or infinity, else write what there is."""
        if self._finite and not self._private:  # an error would tell that there is a sample for which it is so
            fine = torch.stack(self._finite).all(0).tolist()
            for candidate, good in zip(self._candidates, fine, strict=True):
                if not good:
                    raise self._not_finite(candidate)
            self._finite = []
        self._parts = {split: [torch.cat([part.cpu() for part in parts], 1)] for split, parts in self._parts.items()}
        self._tallies = {split: tallies.cpu() for split, tallies in self._tallies.items()}
        self._answers = {
            split: [torch.cat([part.cpu() for part in parts], 1)] for split, parts in self._answers.items()
        }
        tensors = {split: scores for split, (scores,) in self._parts.items()}
        tensors |= {_tally(split): tallies for split, tallies in self._tallies.items()}
        tensors |= {_answers(split): answers for split, (answers,) in self._answers.items()}
        self._checkpoint.save(self._name, self.batches, tensors)

    def of(self, split: SplitName) -> Tensor:
        """Return the scores `(candidates, N)`, after `keep`."""
        (scores,) = self._parts[split]
        return scores

    def answers(self, split: SplitName) -> Tensor:
        """Return what further metrics are computed from, `(candidates, N, F)`, after `keep`."""
        (answers,) = self._answers[split]
        return answers

    def summary(self, split: SplitName, own: int | None, patients: NDArray[np.int64]) -> SplitScores:
        """Return each candidate's metric with its interval and those of differences from simpler ones, and classes.

        `patients` `(N,)` says whose each sample is.
        """
        (scores,), tallies = self._parts[split], self._tallies[split]
        n, ids = scores.shape[1], [candidate.id for candidate in self._candidates]
        plain = [index for index, candidate in enumerate(self._candidates) if candidate.kind in PLAIN]
        values = intervals(
            scores.numpy(),
            [*plain, *([] if own is None else [own])],
            seed=self._seed,
            patients=patients,
            most=largest_score(self._objective),
        )
        shares = [self._objective.classes(tally) for tally in tallies]
        return SplitScores(
            n=n,
            scores={
                id: Score(
                    **value.model_dump(),
                    difference=None if own is None else differences[own],
                    against={ids[index]: differences[index] for index in plain if ids[index] != id},
                    calibration=self._objective.calibration(tally, n),
                )
                for id, (value, differences), tally in zip(ids, values, tallies, strict=True)
            },
            classes={
                str(label): ClassScores(
                    n=count, scores={id: own[label][1] for id, own in zip(ids, shares, strict=True)}
                )
                for label, (count, _) in shares[0].items()
            },
        )

    def _put(self, split: SplitName, scores: Tensor, tallies: Tensor, answers: Tensor) -> None:
        self._parts.setdefault(split, []).append(scores)
        self._answers.setdefault(split, []).append(answers)
        before = self._tallies.get(split)
        self._tallies[split] = tallies if before is None else before.to(tallies.device) + tallies

    def _not_finite(self, candidate: Candidate) -> SutureError:
        return SutureError(
            "output.not_finite",
            f"candidate {candidate.id} gives NaN or infinity on this data",
            where=self._members[candidate.members[0]].ref.repo if candidate.kind == "single" else None,
            hint="check that the data are in the value range that the models' suture.json names",
        )


def largest_score(objective: Objective) -> float:
    """Return the largest value of a score."""
    return math.inf if objective.metric == "mae" else 1.0


def _tally(split: str) -> str:
    return f"tally/{split}"


def _answers(split: str) -> str:
    return f"answers/{split}"


__all__ = ["Scored", "Scores", "largest_score"]
