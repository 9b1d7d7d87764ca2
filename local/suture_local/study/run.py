"""All methods on one division of the parties' data: train, combine, stitch, and measure at every party."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from suture_contract.compatibility import describe_ensemble
from suture_contract.documents import Evaluation, Report
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_contract.report import build
from suture_local.study import references
from suture_local.study.alignment import NotAligned
from suture_local.study.data import Part, PartySamples, Study, joined
from suture_local.study.references import Predictor
from suture_local.study.results import LEFT_OUT_PREFIX, MethodScores, SeedResult, stitched
from suture_local.study.scores import Floats, auroc, balanced_accuracy, sample_scores
from suture_local.study.training import Machine, OnEnd, OnShare, Recipe, TrainingEnd, machine_of, recipe_of, train
from suture_stitching.data.dataset import shares_of
from suture_stitching.ensemble.compose import compose
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, FitResult, Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load
from suture_stitching.prior import AtPrior
from suture_stitching.running.checkpoint import Checkpoint
from suture_stitching.running.progress import Progress

#: What stands for the hub's job in reports.
JOB = "simulation"
#: What is measured at a party that is left out.
LEFT_OUT = tuple(
    LEFT_OUT_PREFIX + method
    for method in ("one of the others' models", "plain ensemble", "stitched", "stitched, own shares of labels")
)
#: Opens a stage of the work by its name and returns where to report how much of it is done.
OnStage = Callable[[str], OnShare]


@dataclass(frozen=True)
class Setup:
    """Where a study is played, and how much work goes into it; `epochs` of each training, by default the recipe's."""

    device: torch.device
    epochs: int | None = None
    options: FitOptions = field(default_factory=FitOptions)
    #: Whether each party is left out in turn, where there are three or more.
    leave_out: bool = False

    def recipe(self, study: Study, input_shape: Sequence[int]) -> Recipe:
        """Return how networks of `study` are trained."""
        return recipe_of(study.task, len(input_shape) - 1, study.augment, self.epochs)


def run_seed(study: Study, setup: Setup, seed: int, stage: OnStage, folder: Path) -> SeedResult:
    """Return the results of all methods for `seed`. What is done is kept in `folder`; a run that was killed goes on."""
    return _Seed(study, setup, seed, stage, folder).run()


class _Seed:
    def __init__(self, study: Study, setup: Setup, seed: int, stage: OnStage, folder: Path) -> None:
        self._study, self._seed, self._stage, self._folder = study, seed, stage, folder
        self._options = setup.options.model_copy(update={"seed": seed})
        self._leave_out = setup.leave_out and len(study.parties) > 2
        self._data: dict[str, PartySamples] = study.divide(seed)
        self._shape = next(iter(self._data.values())).inputs.shape[1:]
        if len(self._shape) == 1:
            torch.set_num_threads(1)  # these networks are tiny, and the figures do not depend on the machine's cores
        self._recipe, self._machine = setup.recipe(study, self._shape), machine_of(setup.device, self._shape)
        self._parts = {
            split: [self._data[party].part(split, setup.device) for party in study.parties]
            for split in ("train", "validation", "test")
        }
        # The folder is of this study, seed and code alone.
        self._trainings = Checkpoint(folder / "trainings", folder.name)
        patients = {
            party: np.unique(own.group[own.split == "test"], return_inverse=True)[1].reshape(-1)
            for party, own in self._data.items()
            if own.group is not None
        }
        half = "bfloat16, channels last" if self._machine.half else "float32"
        note = f"Trained in {half} on {setup.device.type}, epochs: {self._recipe.epochs}."
        self._result = SeedResult(seed, notes=[note], patients=patients)
        self._epochs: dict[str, int] = {}

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
            self._trained(f"{party}: model of the common design", 0, self._own(index))
            for index, party in enumerate(names)
            if index > 0
        ]
        sizes = [float(len(part)) for part in self._parts["train"]]
        self._measure_both("weight averaging", references.averaged(common, sizes))
        self._realigned(common, sizes)
        self._federated()
        self._aggregated(members)
        self._union()
        best = ", ".join(f"{name} {epoch}" for name, epoch in self._epochs.items())
        self._result.notes.append(f"Best on validation data after so many epochs of {self._recipe.epochs}: {best}.")
        self._stitch(members)
        return self._result

    def _own(self, index: int) -> tuple[Part, list[Part]]:
        """Return a party's training samples, and its validation samples."""
        return self._parts["train"][index], [self._parts["validation"][index]]

    def _untrained(self, design: int, start: int = 0) -> nn.Module:
        return self._study.untrained(design, self._shape, self._seed + 1000 * start)

    def _trained(
        self,
        name: str,
        design: int,
        data: tuple[Part, list[Part]],
        *,
        part: Part | None = None,
        start: int = 0,
    ) -> nn.Module:
        own, validation = data
        progress = self._stage(name)

        def work(ended: OnEnd) -> nn.Module:
            module, samples = self._untrained(design, start), part or own
            return train(
                module,
                samples,
                validation,
                self._recipe,
                self._machine,
                seed=self._seed,
                progress=progress,
                ended=ended,
            )

        return self._kept(name, self._untrained(design, start), work)

    def _kept(self, name: str, module: nn.Module, work: Callable[[OnEnd], nn.Module]) -> nn.Module:
        """Return `module` with the weights that an earlier run has kept under this name, or what `work` gives."""
        file = re.sub(r"[^\w.-]+", "-", name)
        ends: list[TrainingEnd] = []
        if (part := self._trainings.load(file)) is not None:
            self._note_end(name, TrainingEnd(**part.document))
            module.load_state_dict(part.tensors)
            memory = torch.channels_last if self._machine.half else torch.contiguous_format
            return module.to(self._machine.device).to(memory_format=memory).eval()  # type: ignore[call-overload,no-any-return]
        trained = work(ends.append)
        (end,) = ends
        self._trainings.save(file, asdict(end), trained.state_dict())
        self._note_end(name, end)
        return trained

    def _note_end(self, name: str, end: TrainingEnd) -> None:
        """Say at which epoch a network was best, and warn of one that was still getting better."""
        epochs = self._recipe.epochs
        self._epochs[name] = round(end.best * epochs)
        if not end.converged:
            self._result.notes.append(
                f"{name}: may not have converged. The last quarter of {epochs} epochs added {100 * end.late_gain:.1f} "
                "points of the validation metric; try more epochs."
            )

    def _realigned(self, common: Sequence[nn.Module], sizes: Sequence[float]) -> None:
        """Measure averages of weights whose units were put in one order, with the better of two statistics."""
        name = "weight averaging, units aligned"
        progress = self._stage(name)
        try:
            network = references.realigned(common, sizes)
        except NotAligned as error:
            self._result.notes.append(f"Weights of the common design were not aligned: {error}.")
            return
        both = [network, references.remeasured(network, self._parts["train"], self._machine, progress)]
        self._measure(name, references.of_network(max(both, key=self._on_validation), self._machine))

    def _federated(self) -> None:
        """Measure federated averaging and FedProx, each with what was best on the parties' validation data.

        FedProx takes the learning rate and the epochs that were best without its term.
        """
        best, rate, epochs = self._best(
            [(self._together("federated averaging", rate, 1), rate, 1) for rate in references.LEARNING_RATES]
        )
        longer = [
            (self._together("federated averaging", rate, more), rate, more)
            for more in references.LOCAL_EPOCHS
            if more != epochs
        ]
        best, rate, epochs = self._best([(best, rate, epochs), *longer])
        self._measure_both("federated averaging", best)
        held = [(self._together("FedProx", rate, epochs, by), rate, epochs) for by in references.PROXIMAL]
        self._measure("FedProx", references.of_network(self._best(held)[0], self._machine))
        self._result.notes.append(
            f"Federated averaging and FedProx: best on validation data with a learning rate of "
            f"{rate * self._recipe.learning_rate:g} and so many epochs a round: {epochs}."
        )

    def _best(self, tried: Sequence[tuple[nn.Module, float, int]]) -> tuple[nn.Module, float, int]:
        return max(tried, key=lambda own: self._on_validation(own[0]))

    def _together(self, method: str, rate: float, local_epochs: int, proximal: float = 0.0) -> nn.Module:
        start = self._untrained(0)
        name = f"{method}, {rate:g} times the learning rate, {local_epochs} epochs a round, {proximal:g}"
        progress = self._stage(name)
        recipe = replace(self._recipe, learning_rate=rate * self._recipe.learning_rate)

        def work(ended: OnEnd) -> nn.Module:
            return references.federated(
                start,
                self._parts["train"],
                self._parts["validation"],
                recipe,
                self._machine,
                seed=self._seed,
                progress=progress,
                ended=ended,
                local_epochs=local_epochs,
                proximal=proximal,
            )

        return self._kept(name, copy.deepcopy(start), work)

    def _aggregated(self, members: Sequence[nn.Module]) -> None:
        """Measure a network on the members' outputs that the parties train together."""
        name, spatial = "aggregated outputs (FENS)", self._study.task == "segmentation"
        progress, labels = self._stage(name), len(self._study.labels)
        start = references.Aggregated(len(members), labels, spatial=spatial, seed=self._seed)
        machine, recipe = Machine(self._machine.device, half=False), replace(self._recipe, augment=False)

        def read(part: Part) -> Part:
            return references.side_by_side(members, part, self._machine)

        def work(ended: OnEnd) -> nn.Module:
            return references.federated(
                start,
                [read(part) for part in self._parts["train"]],
                [read(part) for part in self._parts["validation"]],
                recipe,
                machine,
                seed=self._seed,
                progress=progress,
                ended=ended,
            )

        network = self._kept(name, copy.deepcopy(start), work)
        self._measure(name, lambda part: references.of_network(network, machine)(read(part)))

    def _union(self) -> None:
        """Train every design on all data, and keep the one that is best on the parties' validation data."""
        together = joined(self._parts["train"])
        trained = [
            self._trained(f"union, design {design}", design, (together, self._parts["validation"]))
            for design in range(len(self._study.parties))
        ]

        best = max(trained, key=self._on_validation)
        self._measure_both("union training", best)

    def _on_validation(self, module: nn.Module) -> float:
        predict = references.of_network(module, self._machine)
        return float(np.mean([self._scores(predict, part).mean() for part in self._parts["validation"]]))

    def _scores(self, predict: Predictor, part: Part) -> Floats:
        return sample_scores(self._study.task, predict(part), part.y.long()).cpu().numpy()

    def _measure(self, method: str, predict: Predictor) -> None:
        """Measure a method at every party."""
        self._measure_each(method, dict.fromkeys(self._study.parties, predict))

    def _measure_both(self, method: str, module: nn.Module) -> None:
        """Measure a network of all parties as it is, and of classes with each party's own shares of labels, too.

        So are corrected candidates measured: what shares alone give is none of their merit.
        """
        predict = references.of_network(module, self._machine)
        self._measure(method, predict)
        if self._study.task != "classification":
            return
        learnt = {name: own.targets[own.split == "train"] for name, own in self._data.items()}
        pooled = shares_of(np.concatenate(list(learnt.values())), self._study.labels)
        self._measure_each(
            f"{method}, own shares of labels",
            {
                party: references.with_shares(predict, pooled, shares_of(own, self._study.labels))
                for party, own in learnt.items()
            },
        )

    def _measure_each(self, method: str, predictors: Mapping[str, Predictor]) -> None:
        at = {}
        for party, part in zip(self._study.parties, self._parts["test"], strict=True):
            probabilities, y = predictors[party](part), part.y.long()
            besides: dict[str, float | None] = {}
            if self._study.task == "classification":
                shown, truth = probabilities.double().cpu().numpy(), y.cpu().numpy()
                besides = {"balanced accuracy": balanced_accuracy(shown, truth), "AUROC": auroc(shown, truth)}
            at[party] = MethodScores(sample_scores(self._study.task, probabilities, y).cpu().numpy(), besides)
        self._result.methods[method] = at

    def _stitch(self, modules: Sequence[nn.Module]) -> None:
        members = {
            party: self._member(index, module)
            for index, (party, module) in enumerate(zip(self._study.parties, modules, strict=True))
        }
        for party in self._study.parties:
            try:
                fitted, evaluations = self._asked(party, members)
            except SutureError as error:  # too little to learn from, say: others may still ask
                self._result.notes.append(f"{party} cannot ask for a stitched ensemble: {error}")
                continue
            choice = choose(fitted.candidates, evaluations, requester=party)
            self._result.stitched[party] = stitched(fitted, evaluations, choice.chosen, self._options)
            report, model, metadata = self._composed(party, members, fitted, evaluations)
            self._result.reports[party] = report
            self._measure_each(
                f"stitched: {party}", {other: self._used(model, metadata, other) for other in self._study.parties}
            )
        if self._leave_out:
            self._leave_each_out(dict(zip(self._study.parties, modules, strict=True)), members)

    def _leave_each_out(self, modules: Mapping[str, nn.Module], members: Mapping[str, Member]) -> None:
        """Measure at each party what the others make without it: its data neither train nor fit nor choose.

        Of several models, such as those chosen for each requester, a sample's score is the mean of theirs.
        """
        rows: dict[str, dict[str, MethodScores]] = {name: {} for name in LEFT_OUT}
        for party, part in zip(self._study.parties, self._parts["test"], strict=True):
            others = {name: member for name, member in members.items() if name != party}
            chosen, corrected = [], []
            for requester in others:
                try:
                    fitted, evaluations = self._asked(requester, others, without=party)
                except SutureError:  # noted where it asked before
                    continue
                _, model, metadata = self._composed(requester, others, fitted, evaluations)
                chosen.append(self._scores(lambda own, model=model: _outputs(model, own), part))  # type: ignore[misc]
                corrected.append(self._scores(self._used(model, metadata, party), part))
            alone = [self._scores(references.of_network(modules[name], self._machine), part) for name in others]
            plain = references.mean_of_probabilities([modules[name] for name in others], self._machine)
            for name, scores in zip(LEFT_OUT, (alone, [self._scores(plain, part)], chosen, corrected), strict=True):
                rows[name][party] = MethodScores(np.mean(scores, axis=0), {})
        self._result.methods |= rows

    def _composed(
        self, party: str, members: Mapping[str, Member], fitted: FitResult, evaluations: Mapping[str, Evaluation]
    ) -> tuple[Report, nn.Module, ModelMetadata]:
        """Return the report for a requester, and the chosen model with what its `suture.json` says."""
        choice, every = choose(fitted.candidates, evaluations, requester=party), list(members.values())
        report = build(
            fitted.candidates, evaluations, choice, requester=party, parties_of_members=tuple(members), job=JOB
        )
        metadata = describe_ensemble([member.metadata for member in every], fitted.candidates, report)
        return report, compose(every, fitted, choice.chosen).to(self._machine.device), metadata

    def _used(self, model: nn.Module, metadata: ModelMetadata, party: str) -> Predictor:
        """Return the chosen model as a party uses it: with its own shares of labels where the model assumes any."""
        own = self._data[party]
        used = model
        if metadata.label_prior is not None:
            shares = shares_of(own.targets[own.split == "train"], self._study.labels)
            used = AtPrior(model, metadata, shares).to(self._machine.device)
        return lambda part: _outputs(used, part)

    def _asked(
        self, party: str, members: Mapping[str, Member], without: str | None = None
    ) -> tuple[FitResult, dict[str, Evaluation]]:
        """Return a requester's fit and all parties' evaluations, `without` one that is left out."""
        device, names, every = self._machine.device, list(members), list(members.values())
        datasets = {name: self._study.dataset(name, self._data[name]) for name in names}
        stage, place = f"{party} asks", f"{party}-without-{without}" if without else party
        stage += f", without {without}" if without else ""
        fitted = fit(
            every,
            datasets[party],
            own=names.index(party),
            options=self._options,
            device=device,
            progress=self._reporter(f"{stage}: fit"),
            checkpoint=self._folder / f"fit-{place}",
        )
        evaluations = {
            other: evaluate(
                every,
                fitted,
                dataset,
                own=names.index(other),
                device=device,
                progress=self._reporter(f"{stage}: evaluation at {other}"),
                checkpoint=self._folder / f"evaluate-{place}" / other,
            )
            for other, dataset in datasets.items()
        }
        return fitted, evaluations

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
    ref = MemberRef(repo=f"{study.parties[index]}/{study.name}", revision=f"{index:040x}", sha256=f"{index:064x}")
    return Member(load(path), metadata, ref)


def _outputs(model: nn.Module, part: Part, batch: int = 32) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model(part.inputs(slice(start, start + batch))) for start in range(0, len(part), batch)])
