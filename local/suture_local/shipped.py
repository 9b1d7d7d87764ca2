"""What the demo is judged by: the file that is shipped, on each party's test data, beside what the party had.

The predictions of the shipped ensemble are compared with those of the party's own model and of the plain ensemble, on
the same samples: paired intervals, no other candidate's row. What it gains over routing, which needs no stitch, the
report says. `rehearse` plays a story's science by the engine alone, without hub and processes, on the same data, with
the same training, options and choice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from suture.bundle import export_model
from suture_contract.compatibility import describe_ensemble
from suture_contract.documents import Report
from suture_contract.fit_options import FitOptions
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_contract.report.build import build
from suture_local.story import Judged, PartyData, Story, Target
from suture_local.training import train
from suture_stitching.data import Dataset, open_dataset
from suture_stitching.data.dataset import shares_of
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import Member, fit
from suture_stitching.portable.runtime import load, save
from suture_stitching.prior import AtPrior
from suture_stitching.running.progress import OnProgress, ignore


def judge(
    models: Mapping[str, nn.Module], shipped: Mapping[str, nn.Module], data: Mapping[str, PartyData]
) -> dict[str, Judged]:
    """Return what the `shipped` model does on each party's test data, beside the parties' `models`.

    `models` give logits, by party; their plain ensemble is the mean of their probabilities. `shipped` gives
    probabilities, by the party that uses it (`as_used`).
    """
    return {party: _judged(party, models, shipped[party], data[party]) for party in models}


def as_used(model: nn.Module, metadata: ModelMetadata, learnt: Mapping[str, NDArray[np.int64]]) -> dict[str, nn.Module]:
    """Return the model as each party uses it: where it assumes shares of labels, with those of the party's `learnt`.

    `learnt` are label indices `(N,)` of the party's train split.
    """
    labels = metadata.labels or ()
    if metadata.label_prior is None:
        return dict.fromkeys(learnt, model)
    return {party: AtPrior(model, metadata, shares_of(targets, labels)) for party, targets in learnt.items()}


def _judged(party: str, models: Mapping[str, nn.Module], shipped: nn.Module, data: PartyData) -> Judged:
    inputs, truth = data.of("test")
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        alone = {name: model(x).softmax(1) for name, model in models.items()}
        outputs = (alone[party], torch.stack(list(alone.values())).mean(0), shipped(x))
    right = np.stack([(output.argmax(1).numpy() == truth).astype(np.float64) for output in outputs])
    (own, _), (plain, _), (stitched, over) = intervals(right, (0, 1), seed=0)
    return Judged(len(truth), own.value, plain.value, stitched.value, over[0], over[1])


@dataclass(frozen=True)
class Stage:
    """A story's parties before anything is stitched: data, trained networks, and both as the engine takes them."""

    story: Story
    data: Mapping[str, PartyData]
    models: dict[str, nn.Module]
    members: tuple[Member, ...]
    datasets: dict[str, Dataset]


@dataclass(frozen=True)
class ShippedOutcome:
    """What was fitted, the report, and what the shipped file is worth."""

    story: Story
    fitted: FitResult
    report: Report
    judged: dict[str, Judged]

    @property
    def kind(self) -> str:
        """The kind of candidate that is shipped."""
        return self.fitted.candidate(self.report.chosen).kind

    @property
    def targets(self) -> list[Target]:
        """What the shipped file must reach."""
        return self.story.targets(self.judged, self.report)


def rehearse(story: Story, seed: int) -> ShippedOutcome:
    """Play the story's science once."""
    with tempfile.TemporaryDirectory() as folder:
        here = stage(story, seed, Path(folder))
        return ship(here, fitted(here, FitOptions(seed=seed)), Path(folder))


def stage(story: Story, seed: int, folder: Path) -> Stage:
    """Return the parties with their networks trained; their data and portable models are written into `folder`."""
    data = story.divide(seed)
    models = {party: trained(story, party, data[party], seed) for party in story.parties}
    datasets = {}
    for party in story.parties:
        described = story.write(party, data[party], seed, folder / party)
        datasets[party] = open_dataset(DatasetSpec.model_validate(described))
    members = tuple(_member(story, party, models[party], data[party], folder / party) for party in story.parties)
    return Stage(story, data, models, members, datasets)


def trained(story: Story, party: str, data: PartyData, seed: int, progress: OnProgress = ignore) -> nn.Module:
    """Return the party's network, trained on its training samples."""
    module = story.network(party, data, seed)
    return train(module, *data.of("train"), epochs=story.epochs, seed=seed, progress=progress)


def fitted(stage: Stage, options: FitOptions) -> FitResult:
    """Return what the asking party's site fits on its own data."""
    return fit(stage.members, stage.datasets[stage.story.asking], options=options, own=0)


def ship(stage: Stage, fitted: FitResult, folder: Path) -> ShippedOutcome:
    """Evaluate, choose and compose what was fitted; write the chosen one into `folder`, read it, and judge it."""
    story = stage.story
    evaluations = {
        party: evaluate(stage.members, fitted, stage.datasets[party], own=index)
        for index, party in enumerate(story.parties)
    }
    choice = choose(fitted.candidates, evaluations, requester=story.asking)
    report = build(
        fitted.candidates,
        evaluations,
        choice,
        requester=story.asking,
        parties_of_members=story.parties,
        job="rehearsal",
    )
    composed, path = compose(stage.members, fitted, choice.chosen), folder / "shipped.safetensors"
    save(composed.graph, composed.tensors, path)
    metadata = describe_ensemble([member.metadata for member in stage.members], fitted.candidates, report)
    used = as_used(load(path), metadata, {party: data.of("train")[1] for party, data in stage.data.items()})
    return ShippedOutcome(story, fitted, report, judge(stage.models, used, stage.data))


def _member(story: Story, party: str, module: nn.Module, data: PartyData, folder: Path) -> Member:
    path = folder / "model.safetensors"
    metadata = export_model(module, torch.from_numpy(data.inputs[:2]), path, **story.describe(party, data))
    number = story.parties.index(party)
    ref = MemberRef(repo=f"{party}/{story.name}", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), metadata, ref)
