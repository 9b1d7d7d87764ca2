"""All candidates on one party's data, in one pass: numbers only, with paired intervals against its own model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suture_contract.compatibility import site_prior
from suture_contract.documents import (
    Candidate,
    ClinicalMetric,
    Evaluation,
    MeasuredMetric,
    SplitName,
    SplitScores,
    Training,
    TrainScore,
)
from suture_contract.errors import SutureError
from suture_contract.measures import check_fits, told_as
from suture_contract.privacy import Privacy
from suture_stitching.data import Dataset
from suture_stitching.data.windows import outputs_at_once, predict
from suture_stitching.ensemble.compose import outputs_of
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member, check_inputs, input_shape
from suture_stitching.ensemble.merge import Merge
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.further import further_metrics, subgroups_of
from suture_stitching.evaluation.patients import counted, whose
from suture_stitching.evaluation.private_scores import private_scores
from suture_stitching.evaluation.scores import Scored, Scores, largest_score
from suture_stitching.objectives import Objective, objective_of
from suture_stitching.objectives.classification import Classification
from suture_stitching.running.checkpoint import Checkpoint, Folder, digest_of, fingerprint
from suture_stitching.running.device import Precision, Runner, runner_for
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.progress import OnProgress, ignore
from suture_stitching.running.shards import Share
from suture_stitching.running.tracker import Tracker, UnitCost

#: On so many samples of the train split at most the own model is measured.
_TRAINED = 1024


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
    privacy: Privacy | None = None,
    privacy_share: float = 1.0,
    metrics: Sequence[ClinicalMetric] = (),
    fewest: int = 1,
) -> Evaluation:
    """Return every candidate's metric on `splits` of `dataset`, and its difference from the own member `own`.

    Each member runs once per batch up to the stitch points; only what lies behind them is repeated. Volumes larger than
    what the models read are predicted in windows and compared whole. `precision` is that in which models run. Scores
    are kept in the folder `checkpoint`, so that an evaluation that was killed goes on. Raises `SutureError`
    (`candidates.*`, `dataset.*`, `output.not_finite`, `work.out_of_memory`); `progress` may raise `Cancelled`.

    With `privacy` the metrics have noise, and nothing else is told: they are private for each patient, at most
    `privacy_share` of the account spent. Raises `SutureError` `privacy.metric` where a metric has no bounds.

    Without noise there are, for the test split, the `metrics` beside the task's own that its samples define, and all
    metrics for each subgroup that the dataset names; those about labels where each label has `fewest` patients. Raises
    `SutureError` `job.options` for one of another task.
    """
    work = _Evaluation(
        members,
        fitted,
        dataset,
        splits,
        runner_for(members, device, precision, privacy),
        progress,
        checkpoint,
        shared=False,
        own=own,
        privacy=privacy,
        privacy_share=privacy_share,
        metrics=metrics,
        fewest=fewest,
    )
    return work.run()


def evaluate_share(
    members: Sequence[Member],
    fitted: FitResult,
    dataset: Dataset,
    share: Share,
    *,
    checkpoint: Folder,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
    splits: Sequence[SplitName] = ("validation", "test"),
    metrics: Sequence[ClinicalMetric] = (),
) -> None:
    """Score a share of the samples, and leave it in the folder `checkpoint`.

    `evaluate` with the same arguments finds it there. Processes with different shares may use the folder at the same
    time. Raises what `evaluate` raises.
    """
    runner = Runner(device, precision)
    work = _Evaluation(members, fitted, dataset, splits, runner, progress, checkpoint, shared=True, metrics=metrics)
    work.run_share(share)


class _Evaluation:
    def __init__(
        self,
        members: Sequence[Member],
        fitted: FitResult,
        dataset: Dataset,
        splits: Sequence[SplitName],
        runner: Runner,
        progress: OnProgress,
        checkpoint: Folder | None,
        *,
        shared: bool,
        own: int | None = None,
        privacy: Privacy | None = None,
        privacy_share: float = 1.0,
        metrics: Sequence[ClinicalMetric] = (),
        fewest: int = 1,
    ) -> None:
        self._own, self._privacy, self._privacy_share, self._fewest = own, privacy, privacy_share, fewest
        check_inputs(members, dataset)
        self._members, self._fitted, self._dataset = members, fitted, dataset
        self._objective = objective_of([member.metadata for member in members], dataset.labels, where=dataset.where)
        if privacy is not None:
            dataset.check_separate()
        if privacy is not None and self._objective.metric == "mae":
            raise SutureError(
                "privacy.metric",
                "an error has no largest value, so no noise hides a single patient's",
                where=dataset.where,
                hint="evaluate regressions for parties you trust only",
            )
        check_fits(metrics, members[0].metadata.task)
        spacing = _spacing(members, dataset)
        self._asked = tuple(metrics)
        self._metrics: tuple[MeasuredMetric, ...] = ()
        if privacy is None:
            self._metrics = tuple(told_as(metric, spacing_known=spacing is not None) for metric in metrics)
        settings = {**_settings(fitted, runner), "metrics": self._metrics, "spacing": spacing}
        if privacy is not None:
            settings |= {"privacy": privacy.model_dump(mode="json"), "share": privacy_share}
        key = "" if checkpoint is None else fingerprint("evaluate/3", members, dataset, settings)
        self._checkpoint = Checkpoint(checkpoint, key, shared=shared)
        self._tracker = Tracker(progress)
        whole = dataset.window is not None
        self._passes = FeaturePass(members, dataset, runner, self._tracker, self._checkpoint, whole=whole)
        _check_window(self._passes)
        self._blocks = self._passes.blocks(splits, fewest=1)
        self._score = self._scorer(fitted.candidates.candidates)
        # What further metrics are computed from is needed of the test split alone.
        self._score_further = partial(self._score, metrics=self._metrics, spacing=spacing)

    def run(self) -> Evaluation:
        tracker, own = self._tracker, self._own
        tracker.expect(
            "evaluate", [UnitCost()] * sum(len(block) for blocks in self._blocks.values() for block in blocks)
        )
        scores = Scores(self._members, self._objective, self._fitted, self._checkpoint, "scores", self._privacy)
        for split, every in self._blocks.items():
            tracker.skip("evaluate", scores.batches.get(split, 0))
            for index, block in enumerate(every):
                number = scores.batches.get(split, 0)
                if number == block.start:
                    tracker.skip("evaluate", scores.take(split, _part(split, index)))
                    number = scores.batches.get(split, 0)
                if number < block.stop:
                    self._add(scores, split, range(number, block.stop))
            if not every:
                next(self._passes.batches(split))  # raises what there is to say about an empty split
            scores.keep()
        tracker.end("evaluate")
        if self._privacy is None:
            labels = self._fitted.candidates.labels or ()
            splits = {}
            for split in self._blocks:
                patients = whose(self._dataset, split, scores.of(split).shape[1])
                splits[split] = counted(scores.summary(split, own, patients), self._dataset, split, labels)
            if "test" in splits:
                splits["test"] = self._with_further(splits["test"], scores)
        else:
            splits = private_scores(
                {split: scores.of(split) for split in self._blocks},
                self._fitted.candidates.candidates,
                self._dataset,
                own,
                self._privacy,
                self._privacy_share,
                self._checkpoint,
            )
        return Evaluation(
            metric=self._objective.metric,
            higher_is_better=self._objective.higher_is_better,
            own=own,
            splits=splits,
            training=None if own is None or self._privacy is not None else _declared(self._members[own], self._dataset),
            # Other looks at the patients, which the account does not know of.
            train=None if own is None or self._privacy is not None else self._on_train(own),
            privacy=self._privacy,
            asked=self._asked,
        )

    def _with_further(self, test: SplitScores, scores: Scores) -> SplitScores:
        """Return the test split's scores with further metrics, and those of subgroups."""
        ids = [candidate.id for candidate in self._fitted.candidates.candidates]
        asked = (self._objective, self._dataset, ids, self._metrics)
        answers, seed = scores.answers("test"), self._fitted.candidates.seed
        further = further_metrics(*asked, answers)
        subgroups = subgroups_of(*asked, scores.of("test"), answers, seed=seed, fewest=self._fewest)
        return test.model_copy(update={"metrics": further.metrics, "curves": further.curves, "subgroups": subgroups})

    def _on_train(self, own: int) -> TrainScore | None:
        """Return how well the own member does on samples of the train split; None where there are none, or volumes."""
        if self._passes.whole or not self._dataset.n("train"):
            return None
        candidates = self._fitted.candidates.candidates
        score = self._scorer([candidates[own]])
        measured: list[Tensor] = []
        for x, y in self._passes.shuffled("train", 0):
            for scores, _, finite, _ in self._passes.runner.parts(score, x, y):
                if not bool(finite.all()):
                    return None
                measured.append(scores[0].cpu())
            if sum(len(part) for part in measured) >= _TRAINED:
                break
        values = torch.cat(measured).double().numpy()[None]
        n = values.shape[1]
        patients = self._dataset.patient_of("train", seed=0)[:n]
        seed, most = self._fitted.candidates.seed, largest_score(self._objective)
        ((interval, _),) = intervals(values, seed=seed, patients=patients, most=most)
        return TrainScore(**interval.model_dump(), n=n, patients=len(np.unique(patients)))

    def _scorer(self, candidates: Sequence[Candidate]) -> Callable[..., Scored]:
        corrected = any(candidate.site_prior is not None for candidate in candidates)
        prior = self._site_prior if corrected else None
        return _scorer(self._passes, self._objective, self._fitted, candidates, prior)

    @cached_property
    def _site_prior(self) -> tuple[float, ...] | None:
        """The shares of labels that this site puts in: those of its train split, each label alike without one.

        The account of a private evaluation does not know of that look: there they are those of the site's own model.
        """
        if not isinstance(self._objective, Classification):
            return None
        labels = self._objective.space.labels
        alike = (1 / len(labels),) * len(labels)
        if self._privacy is not None:
            return site_prior([member.metadata for member in self._members], self._own) or alike
        shares = self._dataset.label_shares()
        return tuple(shares.get(label, 0.0) for label in labels) if shares else alike

    def run_share(self, share: Share) -> None:
        every = [(split, *numbered) for split, blocks in self._blocks.items() for numbered in enumerate(blocks)]
        mine = [block for number, block in enumerate(every) if share.has(number)]
        tracker = self._tracker
        tracker.expect("evaluate", [UnitCost()] * sum(len(block) for _, _, block in mine))
        for split, index, block in mine:
            scores = Scores(self._members, self._objective, self._fitted, self._checkpoint, _part(split, index))
            done = scores.batches.get(split, 0)
            tracker.skip("evaluate", done)
            self._add(scores, split, range(block.start + done, block.stop))
            scores.keep()
        tracker.end("evaluate")

    def _add(self, scores: Scores, split: SplitName, only: range) -> None:
        """Add the scores of the batches `only`."""
        for x, y in self._passes.batches(split, only):
            self._tracker.tick("evaluate")
            # One sample at a time where one must not show: a network may mix those that it is given together.
            pieces = [(x, y)] if self._privacy is None else zip(torch.split(x, 1), torch.split(y, 1), strict=True)
            score = self._score_further if split == "test" else self._score
            scores.add(split, [part for piece in pieces for part in self._passes.runner.parts(score, *piece)])
            if self._checkpoint.due:
                scores.keep()


def _declared(member: Member, dataset: Dataset) -> Training:
    """Return what a model's `suture.json` says of its training, held against how this dataset is divided."""
    training = member.metadata.training_data
    if training is None or training.split is None:
        return "undeclared"
    if training.split == "all":
        return "all"
    if training.split_digest is None:
        return "no_digest"
    return "matches" if training.split_digest == dataset.split_digest() else "differs"


def _settings(fitted: FitResult, runner: Runner) -> dict[str, Any]:
    document = fitted.candidates.model_dump_json(by_alias=True)
    return {
        "candidates": hashlib.sha256(document.encode()).hexdigest(),
        "stitches": digest_of("", fitted.stitches),
        "device": runner.device.type,
        "precision": runner.precision,
    }


def _scorer(
    passes: FeaturePass,
    objective: Objective,
    fitted: FitResult,
    candidates: Sequence[Candidate],
    prior: Sequence[float] | None,
) -> Callable[..., Scored]:
    """Return what scores a part of a batch with `candidates`, and keeps what `metrics` need; `prior` is the site's."""
    merge = Merge(passes.members, objective, fitted.stitches, prior)
    runner, window = passes.runner, passes.dataset.window
    outputs = outputs_of(merge, fitted, candidates)
    model = passes.model(merge, outputs)
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

    def score(
        x: Tensor, y: Tensor, *, metrics: Sequence[MeasuredMetric] = (), spacing: Sequence[float] | None = None
    ) -> Scored:
        def measured(output: Tensor) -> Scored:
            answers = objective.answers(output, y, metrics, spacing)
            return (*objective.measure(output, y), torch.isfinite(output.sum()), answers)

        by_node = {node: measured(output) for node, output in each(x)}
        scores, tallies, finite, answers = zip(*(by_node[output.node] for output in outputs), strict=True)
        return torch.stack(scores), torch.stack(tallies), torch.stack(finite), torch.stack(answers)

    return score


def _spacing(members: Sequence[Member], dataset: Dataset) -> tuple[float, ...] | None:
    """Return the mm between positions of what is scored, where the dataset knows its own."""
    if dataset.spacing is None or dataset.window is not None:  # whole volumes are scored as they are
        return dataset.spacing
    sizes = zip(dataset.input_shape[1:], input_shape(members, dataset)[1:], strict=True)
    return tuple(step * ours / read for step, (ours, read) in zip(dataset.spacing, sizes, strict=True))


def _part(split: SplitName, index: int) -> str:
    return f"scores-{split}-{index}"


def _check_window(passes: FeaturePass) -> None:
    dataset, sizes = passes.dataset, passes.shape[1:]
    if dataset.window is not None and sizes != dataset.window:
        raise SutureError(
            "dataset.wrong_shape",
            f"the dataset's window is {dataset.window}, the models read {sizes}",
            where=dataset.where,
            hint=f"set window = {list(sizes)} for this dataset",
        )
