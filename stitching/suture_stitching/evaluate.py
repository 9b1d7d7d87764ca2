"""All candidates on one party's data, in one pass: numbers only, with paired intervals against its own model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from suture_stitching.bootstrap import Floats, intervals
from suture_stitching.compose import outputs_of
from suture_stitching.data import Dataset
from suture_stitching.data.windows import predict
from suture_stitching.documents import Candidate, Evaluation, Score, SplitName, SplitScores
from suture_stitching.errors import SutureError
from suture_stitching.fitted import FitResult
from suture_stitching.members import Member, batches, check_inputs, input_shape, number_of_batches
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

    Each member runs once per batch up to the stitch points; only what lies behind them is repeated. Volumes larger than
    what the models read are predicted in windows and compared whole. Raises
    `SutureError` (`candidates.*`, `dataset.*`, `output.not_finite`); `progress` may raise `Cancelled`.
    """
    check_inputs(members, dataset)
    task = task_of([member.metadata for member in members], dataset.labels, where=dataset.where)
    candidates = fitted.candidates.candidates
    merge = Merge(members, task, fitted.stitches)
    model = PortableModel(merge.graph(outputs_of(merge, fitted, candidates)), merge.tensors).to(device)
    window = _window(members, dataset)
    total = sum(number_of_batches(dataset, split, whole=window is not None) for split in splits)
    done = 0
    found: dict[SplitName, SplitScores] = {}
    for split in splits:
        parts: list[Floats] = []
        for x, y in batches(members, dataset, split, device, whole=window is not None):
            progress(Progress("evaluate", done, total))
            with torch.no_grad():
                combined = model(x) if window is None else predict(model, x, window)
            parts.append(_scores(task, combined, y, candidates, members))
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


def _window(members: Sequence[Member], dataset: Dataset) -> tuple[int, ...] | None:
    if dataset.window is not None and (sizes := input_shape(members, dataset)[1:]) != dataset.window:
        raise SutureError(
            "dataset.wrong_shape",
            f"the dataset's window is {dataset.window}, the models read {sizes}",
            where=dataset.where,
            hint=f"set window = {list(sizes)} for this dataset",
        )
    return dataset.window


def _scores(
    task: Task,
    combined: Sequence[torch.Tensor],
    targets: torch.Tensor,
    candidates: Sequence[Candidate],
    members: Sequence[Member],
) -> Floats:
    """Return `(candidates, N)`."""
    rows = []
    for candidate, output in zip(candidates, combined, strict=True):
        if not bool(torch.isfinite(output).all()):
            raise SutureError(
                "output.not_finite",
                f"candidate {candidate.id} gives NaN or infinity on this data",
                where=members[candidate.members[0]].ref.repo if candidate.kind == "single" else None,
                hint="check that the data are in the value range that the models' suture.json names",
            )
        rows.append(task.scores(output, targets).double().cpu().numpy())
    return np.stack(rows)
