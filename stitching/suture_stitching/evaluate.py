"""All candidates on one party's data, in one pass: numbers only, with paired intervals against its own model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from suture_stitching.bootstrap import intervals
from suture_stitching.checkpoint import Checkpoint, Folder, digest_of, fingerprint
from suture_stitching.clock import Clock
from suture_stitching.compose import outputs_of
from suture_stitching.data import Dataset
from suture_stitching.data.windows import outputs_at_once, predict
from suture_stitching.device import Precision, Runner
from suture_stitching.documents import Candidate, Evaluation, Score, SplitName, SplitScores
from suture_stitching.errors import SutureError
from suture_stitching.fitted import FitResult
from suture_stitching.members import Member, batches, check_inputs, input_shape, number_of_batches
from suture_stitching.merge import Merge
from suture_stitching.progress import OnProgress, ignore
from suture_stitching.tasks import Task, task_of


def evaluate(
    members: Sequence[Member],
    fitted: FitResult,
    dataset: Dataset,
    *,
    own: int | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
    splits: Sequence[SplitName] = ("validation", "test"),
    checkpoint: Folder | None = None,
) -> Evaluation:
    """Return every candidate's metric on `splits` of `dataset`, and its difference from the own member `own`.

    Each member runs once per batch up to the stitch points; only what lies behind them is repeated. Volumes larger than
    what the models read are predicted in windows and compared whole. `precision` is that in which models run. Scores
    are kept in the folder `checkpoint`, so that an evaluation that was killed goes on. Raises `SutureError`
    (`candidates.*`, `dataset.*`, `output.not_finite`, `work.out_of_memory`); `progress` may raise `Cancelled`.
    """
    check_inputs(members, dataset)
    task = task_of([member.metadata for member in members], dataset.labels, where=dataset.where)
    runner, window = Runner(device, precision), _window(members, dataset)
    whole = window is not None
    totals = {split: number_of_batches(dataset, split, input_shape(members, dataset), whole=whole) for split in splits}
    clock = Clock(progress, {"evaluate": (sum(totals.values()), 1.0)})
    key = "" if checkpoint is None else fingerprint("evaluate", members, dataset, _settings(fitted, runner))
    kept = Checkpoint(checkpoint, key)
    scores = _Scores(members, fitted, kept)
    score = _scorer(members, task, fitted, runner, input_shape(members, dataset), window)
    for split in splits:
        start = scores.batches.get(split, 0)
        clock.skip("evaluate", start)
        if start and start == totals[split]:
            continue
        for x, y in islice(batches(members, dataset, split, runner.device, whole=whole), start, None):
            clock.tick("evaluate")
            scores.add(split, runner.parts(score, x, y))
            if kept.due:
                scores.keep()
        scores.keep()
    clock.end("evaluate")
    found = {split: scores.summary(split, own) for split in splits}
    return Evaluation(metric=task.metric, higher_is_better=task.higher_is_better, own=own, splits=found)


def _settings(fitted: FitResult, runner: Runner) -> dict[str, Any]:
    document = fitted.candidates.model_dump_json(by_alias=True)
    return {
        "candidates": hashlib.sha256(document.encode()).hexdigest(),
        "stitches": digest_of("", fitted.stitches),
        "device": runner.device.type,
        "precision": runner.precision,
    }


def _scorer(
    members: Sequence[Member],
    task: Task,
    fitted: FitResult,
    runner: Runner,
    shape: Sequence[int],
    window: Sequence[int] | None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what scores a part of a batch: scores `(candidates, N)`, and which candidates' outputs are finite."""
    merge = Merge(members, task, fitted.stitches)
    outputs = outputs_of(merge, fitted, fitted.candidates.candidates)
    model = runner.model(merge.graph(outputs), merge.tensors, shape)
    nodes = list(dict.fromkeys(output.node for output in outputs))

    def each(x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield outputs one by one, each to be scored and forgotten before the next is computed.

        Those of a whole volume grow side by side with every window: as many as may be held, then the next as many.
        """
        if window is None:
            yield from runner.stream(model, nodes, x)
            return
        at_once = outputs_at_once(x.shape[2:], len(fitted.candidates.labels or ()))
        for some in (nodes[start : start + at_once] for start in range(0, len(nodes), at_once)):

            def values_of(part: Tensor, some: Sequence[int] = some) -> list[Tensor]:
                values = dict(runner.stream(model, some, part))
                return [values[node] for node in some]

            yield from zip(some, predict(values_of, x, window), strict=True)

    def score(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = {node: (task.scores(output, y).double(), torch.isfinite(output.sum())) for node, output in each(x)}
        scores, finite = zip(*(found[output.node] for output in outputs), strict=True)
        return torch.stack(scores), torch.stack(finite)

    return score


class _Scores:
    """The scores so far, by split: `(candidates, N)`, and how many `batches` went in."""

    def __init__(self, members: Sequence[Member], fitted: FitResult, checkpoint: Checkpoint) -> None:
        self._members, self._candidates, self._seed = members, fitted.candidates.candidates, fitted.candidates.seed
        self._checkpoint = checkpoint
        part = checkpoint.load("scores")
        self.batches: dict[str, int] = {} if part is None else dict(part.document)
        self._parts: dict[str, list[Tensor]] = {} if part is None else {k: [v] for k, v in part.tensors.items()}
        self._finite: list[Tensor] = []

    def add(self, split: SplitName, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a batch."""
        for scores, finite in parts:
            self._parts.setdefault(split, []).append(scores)
            self._finite.append(finite)
        self.batches[split] = self.batches.get(split, 0) + 1

    def keep(self) -> None:
        """Raise if a candidate gave NaN or infinity, else write what there is."""
        if self._finite:
            fine = torch.stack(self._finite).all(0).tolist()
            for candidate, good in zip(self._candidates, fine, strict=True):
                if not good:
                    raise self._not_finite(candidate)
            self._finite = []
        self._parts = {split: [torch.cat([part.cpu() for part in parts], 1)] for split, parts in self._parts.items()}
        self._checkpoint.save("scores", self.batches, {split: scores for split, (scores,) in self._parts.items()})

    def summary(self, split: SplitName, own: int | None) -> SplitScores:
        """Return the metric of each candidate, with its interval and that of the difference from `own`."""
        (scores,) = self._parts[split]
        values = intervals(scores.numpy(), own, seed=self._seed)
        return SplitScores(
            n=scores.shape[1],
            scores={
                candidate.id: Score(**value.model_dump(), difference=difference)
                for candidate, (value, difference) in zip(self._candidates, values, strict=True)
            },
        )

    def _not_finite(self, candidate: Candidate) -> SutureError:
        return SutureError(
            "output.not_finite",
            f"candidate {candidate.id} gives NaN or infinity on this data",
            where=self._members[candidate.members[0]].ref.repo if candidate.kind == "single" else None,
            hint="check that the data are in the value range that the models' suture.json names",
        )


def _window(members: Sequence[Member], dataset: Dataset) -> tuple[int, ...] | None:
    if dataset.window is not None and (sizes := input_shape(members, dataset)[1:]) != dataset.window:
        raise SutureError(
            "dataset.wrong_shape",
            f"the dataset's window is {dataset.window}, the models read {sizes}",
            where=dataset.where,
            hint=f"set window = {list(sizes)} for this dataset",
        )
    return dataset.window
