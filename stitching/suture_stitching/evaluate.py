"""All candidates on one party's data, in one pass: numbers only, with paired intervals against its own model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from suture_stitching.bootstrap import Floats, intervals
from suture_stitching.compose import outputs_of
from suture_stitching.data import Dataset
from suture_stitching.documents import Evaluation, Score, SplitName, SplitScores
from suture_stitching.errors import SutureError
from suture_stitching.fitted import FitResult
from suture_stitching.members import Member, batches, check_inputs, number_of_batches
from suture_stitching.merge import Merge
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.progress import OnProgress, Progress, ignore
from suture_stitching.tasks import Task, task_of


def evaluate(
    members: Sequence[Member],
    fitted: FitResult,
    dataset: Dataset,
    *,
    own: int | None = None,
    device: str | torch.device = "cpu",
    progress: OnProgress = ignore,
    splits: Sequence[SplitName] = ("validation", "test"),
) -> Evaluation:
    """Return every candidate's metric on `splits` of `dataset`, and its difference from the own member `own`.

    Each member runs once per batch up to the stitch points; only what lies behind them is repeated. Raises
    `SutureError` (`candidates.*`, `dataset.*`, `output.not_finite`); `progress` may raise `Cancelled`.
    """
    check_inputs(members, dataset)
    task = task_of([member.metadata for member in members], dataset.labels, where=dataset.where)
    candidates = fitted.candidates.candidates
    merge = Merge(members, task, fitted.stitches)
    model = PortableModel(merge.graph(outputs_of(merge, fitted, candidates)), merge.tensors).to(device)
    total = sum(number_of_batches(dataset, split) for split in splits)
    done = 0
    found: dict[SplitName, SplitScores] = {}
    for split in splits:
        parts: list[Floats] = []
        for x, y in batches(members, dataset, split, device):
            progress(Progress("evaluate", done, total))
            with torch.no_grad():
                combined = model(x)
            parts.append(_scores(task, combined, y, [candidate.id for candidate in candidates]))
            done += 1
        scores = np.concatenate(parts, axis=1)
        values = intervals(scores, own, seed=fitted.candidates.seed)
        found[split] = SplitScores(
            n=scores.shape[1],
            scores={
                candidate.id: Score(**value.model_dump(), difference=difference)
                for candidate, (value, difference) in zip(candidates, values, strict=True)
            },
        )
    progress(Progress("evaluate", total, total))
    return Evaluation(metric=task.metric, higher_is_better=task.higher_is_better, own=own, splits=found)


def _scores(task: Task, combined: Sequence[torch.Tensor], targets: torch.Tensor, ids: Sequence[str]) -> Floats:
    """Return `(candidates, N)`."""
    rows = []
    for id, output in zip(ids, combined, strict=True):
        if not bool(torch.isfinite(output).all()):
            raise SutureError(
                "output.not_finite",
                f"candidate {id} gives NaN or infinity on this data",
                hint="check that the data are in the value range that the models' suture.json names",
            )
        rows.append(task.scores(output, targets).double().cpu().numpy())
    return np.stack(rows)
