"""What the demo is judged by: the file that is shipped, on each party's test data, beside what the party had.

The predictions of the shipped ensemble are compared with those of the party's own model and of the plain ensemble, on
the same images: paired intervals, no other candidate's row. What it gains over routing, which needs no stitch, the
report says. `rehearse` plays the demo's science by the engine alone,
without hub and processes, on the same data, with the same training, options and choice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from suture_contract.documents import Interval, Report
from suture_contract.fit_options import FitOptions
from suture_contract.model.metadata import InputSpec, ModelMetadata, OutputSpec
from suture_contract.model.metadata import Member as MemberRef
from suture_contract.report.build import build
from suture_local import digits
from suture_stitching.data import ArrayDataset
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import Member, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load, save
from suture_stitching.running.progress import OnProgress, ignore

ASKING, ASKED = digits.PARTIES
#: What the shipped file may lose at the party that did not ask: this part of its images.
MARGIN = 0.02
#: "above": the whole interval of the difference lies above zero. "reaches": it reaches zero, or no more than `MARGIN`
#: is lost.
Wanted: TypeAlias = Literal["above", "reaches"]


@dataclass(frozen=True)
class Judged:
    """One party's test images: what part of them each model names rightly; differences are paired."""

    n: int
    own: float
    plain: float
    shipped: float
    over_own: Interval
    over_plain: Interval


@dataclass(frozen=True)
class Target:
    """One thing that the shipped file must reach: a paired difference, judged by its interval."""

    what: str
    found: Interval
    wanted: Wanted

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        if self.wanted == "above":
            return self.found.low > 0
        return self.found.high >= 0 or self.found.value >= -MARGIN

    def __str__(self) -> str:
        value, low, high = (f"{100 * at:+.1f}" for at in (self.found.value, self.found.low, self.found.high))
        wanted = "above zero" if self.wanted == "above" else f"reaching zero, or at least {-100 * MARGIN:+g}"
        return f"{self.what}: {value} points [{low}, {high}], wanted {wanted}"


def judge(
    models: Mapping[str, nn.Module], shipped: nn.Module, data: Mapping[str, digits.PartyData]
) -> dict[str, Judged]:
    """Return what `shipped`, which gives probabilities, does on each party's test data, beside the parties' `models`.

    `models` give logits, by party; their plain ensemble is the mean of their probabilities.
    """
    return {party: _judged(party, models, shipped, data[party]) for party in digits.PARTIES}


def _judged(party: str, models: Mapping[str, nn.Module], shipped: nn.Module, data: digits.PartyData) -> Judged:
    test = data.split == "test"
    images, truth = torch.from_numpy(data.images[test]), data.labels[test]
    with torch.no_grad():
        alone = {name: model(images).softmax(1) for name, model in models.items()}
        outputs = (alone[party], torch.stack(list(alone.values())).mean(0), shipped(images))
    right = np.stack([(output.argmax(1).numpy() == truth).astype(np.float64) for output in outputs])
    (own, _), (plain, _), (found, over) = intervals(right, (0, 1), seed=0)
    return Judged(len(truth), own.value, plain.value, found.value, over[0], over[1])


def targets(judged: Mapping[str, Judged], report: Report) -> list[Target]:
    """Return what the shipped file must reach."""
    here, there = judged[ASKING], judged[ASKED]
    # Nothing is gained over routing where routing itself was chosen, or cannot be told.
    over_routed = report.parties[ASKING].gains.get("routed", Interval(value=0, low=0, high=0))
    return [
        Target(f"better than {ASKING}'s own model at {ASKING}", here.over_own, "above"),
        Target(f"better than the plain ensemble at {ASKING}", here.over_plain, "above"),
        Target(f"better than routing alone at {ASKING}", over_routed, "above"),
        Target(f"no worse than {ASKED}'s own model at {ASKED}", there.over_own, "reaches"),
        Target(f"no worse than the plain ensemble at {ASKED}", there.over_plain, "reaches"),
    ]


@dataclass(frozen=True)
class Stage:
    """The demo's parties before anything is stitched: data, trained networks, and both as the engine takes them."""

    seed: int
    data: dict[str, digits.PartyData]
    models: dict[str, nn.Module]
    members: tuple[Member, ...]
    datasets: dict[str, ArrayDataset]


@dataclass(frozen=True)
class Outcome:
    """What was fitted, the report, and what the shipped file is worth."""

    fitted: FitResult
    report: Report
    judged: dict[str, Judged]

    @property
    def kind(self) -> str:
        """The kind of candidate that is shipped."""
        return self.fitted.candidate(self.report.chosen).kind


def rehearse(seed: int) -> Outcome:
    """Play the demo's science once."""
    with tempfile.TemporaryDirectory() as folder:
        here = stage(seed, Path(folder))
        return ship(here, fitted(here, FitOptions(seed=seed)), Path(folder))


def stage(seed: int, folder: Path) -> Stage:
    """Return the parties with their networks trained, whose portable models are written into `folder`."""
    data = digits.parties(seed)
    models = {party: trained(party, data[party], seed) for party in digits.PARTIES}
    members = tuple(_member(party, models[party], data[party], folder) for party in digits.PARTIES)
    datasets = {
        party: ArrayDataset(own.images, own.labels, digits.LABELS, split=list(own.split), value_range=(0.0, 1.0))
        for party, own in data.items()
    }
    return Stage(seed, data, models, members, datasets)


def trained(party: str, data: digits.PartyData, seed: int, progress: OnProgress = ignore) -> nn.Module:
    """Return the party's network, trained on its training images."""
    learnt_from = data.split == "train"
    images, labels = data.images[learnt_from], data.labels[learnt_from]
    return digits.train(digits.network(party, seed), images, labels, seed=seed, progress=progress)


def fitted(stage: Stage, options: FitOptions) -> FitResult:
    """Return what the asking party's site fits on its own data."""
    own = digits.PARTIES.index(ASKING)
    return fit(stage.members, stage.datasets[ASKING], options=options, own=own)


def ship(stage: Stage, fitted: FitResult, folder: Path) -> Outcome:
    """Evaluate, choose and compose what was fitted; write the chosen one into `folder`, read it, and judge it."""
    evaluations = {
        party: evaluate(stage.members, fitted, stage.datasets[party], own=index)
        for index, party in enumerate(digits.PARTIES)
    }
    choice = choose(fitted.candidates, evaluations, requester=ASKING)
    report = build(
        fitted.candidates, evaluations, choice, requester=ASKING, parties_of_members=digits.PARTIES, job="rehearsal"
    )
    composed, path = compose(stage.members, fitted, choice.chosen), folder / "shipped.safetensors"
    save(composed.graph, composed.tensors, path)
    return Outcome(fitted, report, judge(stage.models, load(path), stage.data))


def _member(party: str, module: nn.Module, data: digits.PartyData, folder: Path) -> Member:
    path = folder / f"{party}.safetensors"
    export(module, torch.from_numpy(data.images[:2]), path)
    metadata = ModelMetadata(
        schema_="suture.model/1",
        task="classification",
        inputs={"image": InputSpec(num_channels=1, spatial_shape=(8, 8), value_range=(0, 1))},
        outputs={"digit": OutputSpec(num_channels=10)},
        labels=digits.LABELS,
        license="CC-BY-4.0",
    )
    number = digits.PARTIES.index(party)
    ref = MemberRef(repo=f"{party}/digits", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), metadata, ref)
