"""All methods on one division of the parties' data: train, combine, stitch, and measure at every party."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from suture_contract.documents import Evaluation
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_local.study import references
from suture_local.study.data import Part, PartySamples, Study, joined
from suture_local.study.references import Predictor
from suture_local.study.results import MethodScores, SeedResult, stitched
from suture_local.study.scores import Floats, auroc, balanced_accuracy, sample_scores
from suture_local.study.training import Machine, OnShare, machine_for, recipe_of, train
from suture_stitching.data import Dataset
from suture_stitching.data.dataset import shares_of
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.fitting.refine import ROUNDS
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load
from suture_stitching.running.progress import Progress

#: Part of a bounded time that is left for fitting and evaluating. A fit that has less than it could use refines fewer
#: candidates; a training that has less ends early.
FOR_FITTING = 0.35
#: What evaluating all candidates takes at most, in passes of the members.
EVALUATION = 3.0

#: Opens a stage of the work by its name and returns where to report how much of it is done.
OnStage = Callable[[str], OnShare]


class TimeLeft:
    """Shares out the time up to a moment over what is still to be trained and fitted."""

    def __init__(self, seconds: float | None, costs: float, fits: int) -> None:
        self._end = None if seconds is None else time.perf_counter() + seconds
        self._fitting = 0.0 if seconds is None else seconds * FOR_FITTING
        self._costs, self._fits = costs, fits

    def training(self, cost: float) -> float:
        """Return the seconds for a training of this cost, in the unit of all costs."""
        if self._end is None:
            return float("inf")
        left = self._end - self._fitting - time.perf_counter()
        share = max(left, 1e-3) * cost / max(self._costs, 1e-9)
        self._costs -= cost
        return share

    def fit(self) -> float:
        """Return the seconds for the next fit and its evaluations."""
        if self._end is None:
            return float("inf")
        left = self._end - time.perf_counter()
        share = max(left, 1e-3) / max(self._fits, 1)
        self._fits -= 1
        return share


class StudyRunner:
    """Runs one study's seeds on one machine."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self._study = study
        first = study.divide(0)
        self._input_shape = next(iter(first.values())).inputs.shape[1:]
        self._recipe = recipe_of(study.task, len(self._input_shape) - 1, study.augment)
        sizes = [int((own.split == "train").sum()) for own in first.values()]
        trials = [
            machine_for(
                study.untrained(design, self._input_shape, 0), own.part("train", device), device, self._recipe.batch
            )
            for design, own in enumerate(first.values())
        ]
        # Most of them decide, so that all of a study's networks are run alike.
        halves = sum(machine.half for machine, _ in trials)
        self._machine = Machine(device, 2 * halves > len(trials))
        half = "bfloat16, channels last" if self._machine.half else "float32"
        self._note = f"Trained in {half} on {device.type}, at most {self._recipe.epochs} epochs."
        #: Seconds of a full training of each design on one party's data.
        self._costs = [[self._recipe.steps(size) * seconds for size in sizes] for _, seconds in trials]
        self._all_costs = [self._recipe.steps(sum(sizes)) * seconds for _, seconds in trials]

    @property
    def full_seconds(self) -> float:
        """About how long all trainings and fits of a seed take when nothing bounds them."""
        return self._training_costs() / (1 - FOR_FITTING)

    def _training_costs(self) -> float:
        own = sum(costs[party] for party, costs in enumerate(self._costs))
        return 2 * own + sum(self._costs[0][1:]) + self._all_costs[0] + sum(self._all_costs)

    def run(self, seed: int, seconds: float | None, stage: OnStage, folder: Path) -> SeedResult:
        """Return the results of all methods for `seed`; `seconds` bounds the time, `folder` holds the members."""
        return _Seed(self, self._study, seed, seconds, stage, folder).run()


class _Seed:
    def __init__(
        self, runner: StudyRunner, study: Study, seed: int, seconds: float | None, stage: OnStage, folder: Path
    ) -> None:
        self._study, self._seed, self._stage, self._folder = study, seed, stage, folder
        self._recipe, self._machine = runner._recipe, runner._machine
        self._costs, self._all_costs = runner._costs, runner._all_costs
        self._left = TimeLeft(seconds, runner._training_costs(), len(study.parties))
        self._data: dict[str, PartySamples] = study.divide(seed)
        device = self._machine.device
        self._parts = {
            split: [self._data[party].part(split, device) for party in study.parties]
            for split in ("train", "validation", "test")
        }
        self._shape = next(iter(self._data.values())).inputs.shape[1:]
        patients = {
            party: np.unique(own.group[own.split == "test"], return_inverse=True)[1].reshape(-1)
            for party, own in self._data.items()
            if own.group is not None
        }
        self._result = SeedResult(seed, notes=[runner._note], limit=seconds, patients=patients)
        if seconds is not None:
            self._result.notes.append(f"Training, fitting and evaluating were given {seconds:.0f} s.")

    def run(self) -> SeedResult:
        names = self._study.parties
        members = [self._trained(f"{party}: own model", index, self._own(index)) for index, party in enumerate(names)]
        for party, module in zip(names, members, strict=True):
            self._measure(f"alone: {party}", references.of_network(module, self._machine))
        plain = references.mean_of_probabilities(members, self._machine)
        self._measure("plain ensemble", plain)
        self._measure("plain ensemble (logits)", references.mean_of_logits(members, self._machine))
        for index, party in enumerate(names):
            part = references.taught(self._parts["train"][index], plain)
            student = self._trained(f"{party}: distilled", index, self._own(index), part=part, start=100)
            self._measure(f"distilled: {party}", references.of_network(student, self._machine))
        # The first party's own model is one of the common set: it started where all of them start.
        common = [members[0]] + [
            self._trained(f"{party}: model of the common design", 0, self._own(index, design=0))
            for index, party in enumerate(names)
            if index > 0
        ]
        sizes = [float(len(part)) for part in self._parts["train"]]
        self._measure("weight averaging", references.of_network(references.averaged(common, sizes), self._machine))
        self._measure("federated averaging", references.of_network(self._federated(), self._machine))
        self._union()
        self._stitch(members)
        return self._result

    def _own(self, index: int, design: int | None = None) -> tuple[Part, list[Part], float]:
        """Return a party's training samples, its validation samples, and what a training on them costs."""
        cost = self._costs[index if design is None else design][index]
        return self._parts["train"][index], [self._parts["validation"][index]], cost

    def _untrained(self, design: int, start: int = 0) -> nn.Module:
        return self._study.untrained(design, self._shape, self._seed + 1000 * start)

    def _trained(
        self,
        name: str,
        design: int,
        data: tuple[Part, list[Part], float],
        *,
        part: Part | None = None,
        start: int = 0,
    ) -> nn.Module:
        own, validation, cost = data
        return train(
            self._untrained(design, start),
            part or own,
            validation,
            self._recipe,
            self._machine,
            seconds=self._left.training(cost),
            seed=self._seed,
            progress=self._stage(name),
        )

    def _federated(self) -> nn.Module:
        return references.federated(
            self._untrained(0),
            self._parts["train"],
            self._parts["validation"],
            self._recipe,
            self._machine,
            seconds=self._left.training(self._all_costs[0]),
            seed=self._seed,
            progress=self._stage("federated averaging"),
        )

    def _union(self) -> None:
        """Train every design on all data, and keep the one that is best on the parties' validation data."""
        together = joined(self._parts["train"])
        trained = [
            self._trained(f"union, design {design}", design, (together, self._parts["validation"], cost))
            for design, cost in enumerate(self._all_costs)
        ]

        def on_validation(module: nn.Module) -> float:
            predict = references.of_network(module, self._machine)
            return float(np.mean([self._scores(predict, part).mean() for part in self._parts["validation"]]))

        best = max(trained, key=on_validation)
        self._measure("union training", references.of_network(best, self._machine))

    def _scores(self, predict: Predictor, part: Part) -> Floats:
        return sample_scores(self._study.task, predict(part), part.y.long()).cpu().numpy()

    def _measure(self, method: str, predict: Predictor) -> None:
        """Measure a method at every party."""
        at = {}
        for party, part in zip(self._study.parties, self._parts["test"], strict=True):
            probabilities, y = predict(part), part.y.long()
            besides: dict[str, float | None] = {}
            if self._study.task == "classification":
                shown, truth = probabilities.double().cpu().numpy(), y.cpu().numpy()
                besides = {"balanced accuracy": balanced_accuracy(shown, truth), "AUROC": auroc(shown, truth)}
            at[party] = MethodScores(sample_scores(self._study.task, probabilities, y).cpu().numpy(), besides)
        self._result.methods[method] = at

    def _stitch(self, modules: Sequence[nn.Module]) -> None:
        members = [self._member(index, module) for index, module in enumerate(modules)]
        datasets = {party: self._study.dataset(party, self._data[party], to_fit=False) for party in self._study.parties}
        for party in self._study.parties:
            limit, started = self._left.fit(), time.perf_counter()
            try:
                fitted, evaluations, options = self._asked(party, members, datasets, limit)
            except SutureError as error:  # too little to learn from, say: others may still ask
                self._result.notes.append(f"{party} cannot ask for a stitched ensemble: {error}")
                continue
            chosen = choose(fitted.candidates, evaluations, requester=party).chosen
            seconds = time.perf_counter() - started
            self._result.stitched[party] = stitched(fitted, evaluations, chosen, seconds, options)
            model = compose(members, fitted, chosen).to(self._machine.device)
            self._measure(f"stitched: {party}", lambda part, model=model: _outputs(model, part))  # type: ignore[misc]

    def _asked(
        self, party: str, members: Sequence[Member], datasets: Mapping[str, Dataset], limit: float
    ) -> tuple[FitResult, dict[str, Evaluation], FitOptions]:
        """Return a requester's fit and all parties' evaluations, with fewer candidates refined where time is short."""
        own, options = self._study.dataset(party, self._data[party], to_fit=True), FitOptions(seed=self._seed)
        device, refined = self._machine.device, 0
        end = time.perf_counter() + limit - EVALUATION * self._pass_seconds(members, datasets)
        report = self._reporter(f"{party} asks: fit")
        asking = self._study.parties.index(party)

        def bounded(progress: Progress) -> None:
            nonlocal refined
            report(progress)
            if progress.step == "refine":
                refined, within = divmod(progress.done, ROUNDS)
                if within and time.perf_counter() > end:
                    raise _TooLongError

        folder = self._folder / f"fit-{party}"
        try:
            fitted = fit(members, own, own=asking, options=options, device=device, progress=bounded, checkpoint=folder)
        except _TooLongError:
            self._result.notes.append(
                f"{party}: there was time to refine {refined} of {options.refine_candidates} candidates."
            )
            options = options.model_copy(update={"refine": refined > 0, "refine_candidates": max(1, refined)})
            fitted = fit(members, own, own=asking, options=options, device=device, progress=report, checkpoint=folder)
        evaluations = {
            other: evaluate(
                members,
                fitted,
                dataset,
                own=self._study.parties.index(other),
                device=device,
                progress=self._reporter(f"{party} asks: evaluation at {other}"),
            )
            for other, dataset in datasets.items()
        }
        return fitted, evaluations, options

    def _pass_seconds(self, members: Sequence[Member], datasets: Mapping[str, Dataset]) -> float:
        """Return about how long the members take over all that is to be evaluated."""
        part = self._parts["validation"][0]
        x, seconds = part.inputs(slice(0, 4)), math.inf
        models = [copy.deepcopy(member.model).to(x.device) for member in members]
        with torch.inference_mode():
            for _ in range(2):
                started = time.perf_counter()
                for model in models:
                    float(model(x).sum())
                seconds = min(seconds, time.perf_counter() - started)
        samples = sum(dataset.n(split) for dataset in datasets.values() for split in ("validation", "test"))
        return seconds / len(x) * samples

    def _reporter(self, name: str) -> Callable[[Progress], None]:
        share = self._stage(name)
        return lambda progress: share(progress.done / max(progress.total, 1))

    def _member(self, index: int, module: nn.Module) -> Member:
        return member_of(self._study, index, module, self._parts["train"][index], self._folder / f"{index}.safetensors")


def member_of(study: Study, index: int, module: nn.Module, part: Part, path: Path) -> Member:
    """Return the network of a study's party as the engine takes it, exported to `path`; `part` shows what it reads."""
    module = module.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    repeated = torch.arange(2).remainder(len(part)).to(part.x.device)
    export(module, part.inputs(repeated).cpu(), path)
    shape = part.x.shape[1:]
    image = len(shape) > 1
    metadata = ModelMetadata.model_validate(
        {
            "schema": "suture.model/1",
            "task": study.task,
            "inputs": {
                "input": {
                    "format": "image" if image else "table",
                    "num_channels": shape[0],
                    "spatial_shape": shape[1:],
                    **({"value_range": (0.0, 1.0)} if image else {}),
                    **({"channels": study.channels} if study.channels else {}),
                }
            },
            "outputs": {
                "output": {
                    "num_channels": len(study.labels),
                    "spatial_shape": shape[1:] if study.task == "segmentation" else (),
                }
            },
            "labels": study.labels,
            **(
                {"label_prior": shares_of(part.y.cpu().numpy(), study.labels)} if study.task == "classification" else {}
            ),
            "license": "CC-BY-4.0",
        }
    )
    ref = MemberRef(repo=f"party{index}/{study.name}", revision=f"{index:040x}", sha256=f"{index:064x}")
    return Member(load(path), metadata, ref)


class _TooLongError(Exception):
    """A fit does not end in time."""


def _outputs(model: nn.Module, part: Part, batch: int = 32) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(part.inputs(slice(start, start + batch))) for start in range(0, len(part), batch)])
