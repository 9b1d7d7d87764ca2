"""Fit stitched ensembles of frozen models to one party's data: from stitch points to a set of candidates.

    members = [Member(load("north.safetensors"), metadata, ref), Member(load("south.safetensors"), ...)]
    fitted = fit(members, dataset)
    fitted.save(folder)

Candidates are each member alone, their plain ensemble, and stitched ensembles: at each match and mixing weight, in
closed form and (the most promising) refined, each with and without a gate that leaves unfamiliar samples alone. Which
one is used is decided later, on the data of all parties that answer (`evaluate`, `select`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from suture_stitching.clock import Clock
from suture_stitching.data import Dataset
from suture_stitching.documents import Candidate, CandidateSet, Gate, Stitch
from suture_stitching.documents import Match as MatchDocument
from suture_stitching.errors import SutureError
from suture_stitching.familiarity import FAMILIAR, bounds, whiten
from suture_stitching.fitted import FitResult
from suture_stitching.matching import Group, match, similarities
from suture_stitching.members import Member, batch_size, batches, check_inputs, number_of_batches
from suture_stitching.merge import GateTensors, Join, Merge
from suture_stitching.moments import Moments, rows
from suture_stitching.plans import Plan, closed_forms, gated, middle_of, places, to_refine
from suture_stitching.points import StitchPoint
from suture_stitching.portable.runtime import PortableModel
from suture_stitching.progress import OnProgress, ignore
from suture_stitching.reading import Reading, read
from suture_stitching.refine import NOISE, ROUNDS, Spread, refine
from suture_stitching.solve import Source
from suture_stitching.tasks import task_of

__all__ = ["FitOptions", "FitResult", "Member", "fit"]

#: Samples of the first look at all points, and how many features of all points together are compared there.
_SURVEY = 512
_SURVEY_WIDTH = 4096
_SURVEY_GRIDS = ((), (16,), (4, 4), (1, 4, 4))


class FitOptions(BaseModel):
    """What a job may ask of a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    #: Mixing weights to try at each match.
    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=8)] = (
        0.25,
        0.5,
        0.75,
    )
    #: Matches to use: the most similar ones, and always the last.
    max_matches: Annotated[int, Field(ge=1, le=16)] = 6
    #: Whether stitches are trained on the task after they were solved for, how many steps, and how many candidates'.
    refine: bool = True
    refine_steps: Annotated[int, Field(ge=1, le=100_000)] = 300
    refine_candidates: Annotated[int, Field(ge=1, le=64)] = 6


def fit(
    members: Sequence[Member],
    dataset: Dataset,
    *,
    options: FitOptions | None = None,
    device: str | torch.device = "cpu",
    progress: OnProgress = ignore,
) -> FitResult:
    """Return the candidates for `members` fitted on the `train` split of `dataset`, tuned on its `validation` split.

    The members are not changed. `progress` is
    called between batches and may raise `Cancelled`. The same seed gives the same result on the same device. Raises
    `SutureError`: `members.*` for models that do not go together, `dataset.*` for unfit data, `features.not_finite` for
    a model that gives NaN or infinity on this data.
    """
    if len(members) < 2:
        raise SutureError("members.too_few", "a stitch needs at least two models")
    return _Fit(members, dataset, options or FitOptions(), device, progress).run()


class _Fit:
    def __init__(
        self,
        members: Sequence[Member],
        dataset: Dataset,
        options: FitOptions,
        device: str | torch.device,
        progress: OnProgress,
    ) -> None:
        check_inputs(members, dataset)
        self._members, self._dataset, self._options, self._device = members, dataset, options, device
        self._task = task_of([member.metadata for member in members], dataset.labels, where=dataset.where)
        self._refuse_one_class()
        self._points = [member.points(dataset.input_shape) for member in members]
        self._merge = Merge(members, self._task)
        self._progress = Clock(progress, self._steps())
        self._stitches: dict[str, Tensor] = {}
        #: The closed forms that refinement starts from, by the names of the others.
        self._starts: dict[str, Tensor] = {}
        self._spreads: dict[str, Spread] = {}
        self._r2: dict[str, float] = {}

    def run(self) -> FitResult:
        groups = self._matches()
        plans: list[Plan] = []
        if groups:
            reading = read(self._members, self._merge, groups, self._dataset, self._device, self._progress.tick)
            joins = [self._solved(index, group, reading) for index, group in enumerate(groups)]
            gates = self._gates(groups, reading)
            plans = closed_forms(joins, self._options.alphas)
            if len(joins) > 1:
                plans.append(self._chain(groups, joins, reading))
            if self._options.refine:
                chosen = to_refine(plans, self._options.alphas, self._options.refine_candidates)
                plans += [self._refined(number, len(chosen), plan) for number, plan in enumerate(chosen)]
            plans += gated(plans, gates)
        self._progress.finish("fit")
        return FitResult(self._documents(plans), self._stitches, tuple(self._dataset.input_shape))

    def _steps(self) -> dict[str, tuple[int, float]]:
        """Return what there is to do, in passes of batches."""
        train, validation = (number_of_batches(self._dataset, split) for split in ("train", "validation"))
        # A step of training, without the pass in front of the stitches, costs about a quarter of a batch.
        rounds = self._options.refine_candidates * ROUNDS if self._options.refine else 0
        return {
            "match": (min(train, -(-_SURVEY // batch_size(self._dataset))), 1.0),
            "solve": (train + validation, 1.0),
            "gate": (validation, 1.0),
            "double": (train + validation, 1.0),
            "refine": (rounds, validation + self._options.refine_steps / ROUNDS / 4),
        }

    def _refuse_one_class(self) -> None:
        if self._task.labels is not None and sum(1 for n in self._dataset.counts("train").values() if n) < 2:
            raise SutureError(
                "dataset.one_class",
                "the training samples show a single class, so nothing can be learnt from them",
                where=self._dataset.where,
                hint="add samples of other classes",
            )

    def _matches(self) -> list[dict[int, StitchPoint]]:
        """Return the matches to use, in the order of the networks."""
        if any(not own for own in self._points):
            return []
        groups = match(self._points, self._similarities())
        if len(groups) > self._options.max_matches:
            last = groups[-1]
            best = sorted(groups[:-1], key=lambda group: -group.similarity)[: self._options.max_matches - 1]
            groups = [group for group in groups if group in best or group is last]
        return [self._of(group) for group in groups]

    def _of(self, group: Group) -> dict[int, StitchPoint]:
        return {member: self._points[member][index] for member, index in sorted(group.points.items())}

    def _similarities(self) -> Tensor:
        """Return linear CKA of all stitch points, from a part of the data at a few positions."""
        flat = [(member, point) for member, own in enumerate(self._points) for point in own]
        refs = [self._merge.point(self._merge.native, member, point) for member, point in flat]
        model = PortableModel(self._merge.graph(tuple(refs)), self._merge.tensors).to(self._device)
        widest = max(8, _SURVEY_WIDTH // len(flat))
        generator = torch.Generator().manual_seed(self._options.seed)
        sketches = [_sketch(point.shape[0], widest, generator, self._device) for _, point in flat]
        widths = [min(point.shape[0], widest) for _, point in flat]
        total = Moments.nothing(sum(widths), self._device)
        limit = -(-_SURVEY // batch_size(self._dataset))
        rank = max(len(point.shape) - 1 for _, point in flat)
        for _, (x, _y) in zip(
            range(limit),
            batches(self._members, self._dataset, "train", self._device, seed=self._options.seed),
            strict=False,
        ):
            self._progress.tick("match")
            with torch.no_grad():
                features = model(x)
            parts = []
            for (member, point), feature, sketch in zip(flat, features, sketches, strict=True):
                self._check_finite(feature, member, point)
                grid = _SURVEY_GRIDS[len(point.shape) - 1 or rank]
                found = rows(feature.float(), grid, point.channel_axis)
                parts.append(found if sketch is None else found @ sketch)
            total = total + Moments.of(torch.cat(parts, 1))
        return similarities(total, widths).cpu()

    def _check_finite(self, feature: Tensor, member: int, point: StitchPoint) -> None:
        if not bool(torch.isfinite(feature).all()):
            raise SutureError(
                "features.not_finite",
                f"the model gives NaN or infinity at {point.name} ({point.module}) on this data",
                where=self._members[member].ref.repo,
                hint="check that the data are in the value range that its suture.json names",
            )

    def _solved(self, index: int, points: Mapping[int, StitchPoint], reading: Reading) -> Join:
        """Return a match with its stitches in closed form, to be mixed with any weight."""
        names = {}
        for source in points:
            for target in points:
                if source != target:
                    train, held_out = reading.pair(index, points[target].shape[1:])
                    columns = reading.columns(index)
                    name = f"p{index:02d}.{source}_{target}"
                    names[source, target] = self._solve(name, train, held_out, columns[source], columns[target])
        return Join(points, 0.5, names)

    def _solve(self, name: str, train: Moments, held_out: Moments, source: slice, target: slice) -> tuple[str, str]:
        weight, bias = f"{name}.weight", f"{name}.bias"
        features = Source(train, source, held_out)
        solution = features.to(target)
        self._stitches[weight], self._stitches[bias] = solution.weight.float().cpu(), solution.bias.float().cpu()
        robust = features.to(target, (NOISE**2,))
        self._starts[weight], self._starts[bias] = robust.weight.float().cpu(), robust.bias.float().cpu()
        variance = train.covariance.diagonal().clamp(min=0)
        self._spreads[weight] = Spread(train.mean[source], _deviation(variance[source]), _deviation(variance[target]))
        self._r2[weight] = solution.r2
        return weight, bias

    def _chain(self, groups: Sequence[Mapping[int, StitchPoint]], joins: Sequence[Join], reading: Reading) -> Plan:
        """Return a candidate that mixes at the last two matches.

        The later stitches must work on features that went through the earlier ones too, so they are solved for on both
        (the doubled batch: native half, stitched half), with the native features as their target.
        """
        middle, last = middle_of(self._options.alphas), len(joins) - 1
        first = replace(joins[-2], alpha=middle)
        points = groups[last]
        merge = Merge(self._members, self._task, self._stitches)
        stitched = merge.join([first])
        again = reading.stitched(
            merge, stitched, points, self._members, self._dataset, self._device, self._progress.tick
        )
        names = {}
        for source in points:
            for target in points:
                if source != target:
                    grid = points[target].shape[1:]
                    native = reading.pair(last, grid)
                    columns = reading.columns(last)
                    both = [
                        part.select(columns[source], columns[target]) + more
                        for part, more in zip(native, again[source, target], strict=True)
                    ]
                    width = points[source].shape[0]
                    names[source, target] = self._solve(
                        f"p{last - 1:02d}.p{last:02d}.{source}_{target}",
                        both[0],
                        both[1],
                        slice(0, width),
                        slice(width, width + points[target].shape[0]),
                    )
        return Plan((first, Join(points, middle, names)))

    def _refined(self, number: int, count: int, plan: Plan) -> Plan:
        """Return the refined copy of a candidate, the `number`th of `count`."""
        new = refine(
            self._members,
            self._task,
            plan.joins,
            self._starts,
            self._spreads,
            self._dataset,
            steps=self._options.refine_steps,
            seed=self._options.seed,
            device=self._device,
            progress=functools.partial(self._trained, number, count),
        )
        names = {old: f"r{number:02d}.{old}" for old in new}
        self._stitches.update({names[old]: tensor.cpu() for old, tensor in new.items()})
        return plan.with_stitches(names)

    def _trained(self, number: int, candidates: int, done: int, rounds: int) -> None:
        self._progress.reached("refine", number * rounds + done, candidates * rounds)

    def _gates(self, groups: Sequence[Mapping[int, StitchPoint]], reading: Reading) -> list[list[GateTensors]]:
        """Return for each place a gate per strictness; how far is too far comes from the validation split."""
        unbounded = []
        for index in places(groups):
            whitening = whiten(reading.pooled[index])
            gate = GateTensors(groups[index], f"g{index:02d}.weight", f"g{index:02d}.bias", near=0.0, far=1.0)
            self._stitches[gate.weight], self._stitches[gate.bias] = whitening.weight.cpu(), whitening.bias.cpu()
            unbounded.append(gate)
        merge = Merge(self._members, self._task, self._stitches)
        distances = tuple(merge.distance(gate) for gate in unbounded)
        model = PortableModel(merge.graph(distances), merge.tensors).to(self._device)
        found: list[list[Tensor]] = [[] for _ in unbounded]
        for x, _ in batches(self._members, self._dataset, "validation", self._device):
            self._progress.tick("gate")
            with torch.no_grad():
                for own, distance in zip(found, model(x), strict=True):
                    own.append(distance.flatten().cpu())
        gates = []
        for gate, own in zip(unbounded, found, strict=True):
            limits = [bounds(torch.cat(own), familiar) for familiar in FAMILIAR]
            gates.append([replace(gate, near=near, far=far) for near, far in limits])
        return gates

    def _documents(self, plans: Sequence[Plan]) -> CandidateSet:
        everyone = tuple(range(len(self._members)))
        candidates = [Candidate(id=_id(member), kind="single", members=(member,)) for member in everyone]
        candidates.append(Candidate(id=_id(len(candidates)), kind="ensemble", members=everyone))
        for plan in plans:
            matches = tuple(self._match_document(join) for join in plan.joins)
            candidates.append(
                Candidate(
                    id=_id(len(candidates)), kind="stitched", members=everyone, matches=matches, refined=plan.refined
                )
            )
        return CandidateSet(
            task=self._members[0].metadata.task,
            members=tuple(member.ref for member in self._members),
            labels=self._task.labels,
            n=self._dataset.n("train"),
            seed=self._options.seed,
            candidates=tuple(candidates),
        )

    def _match_document(self, join: Join) -> MatchDocument:
        stitches = tuple(
            Stitch(source=source, target=target, weight=weight, bias=bias, r2=self._r2.get(weight))
            for (source, target), (weight, bias) in sorted(join.stitches.items())
        )
        gate = None
        if join.gate is not None:
            gate = Gate(
                points=_names(join.gate.points),
                weight=join.gate.weight,
                bias=join.gate.bias,
                near=join.gate.near,
                far=join.gate.far,
            )
        return MatchDocument(points=_names(join.points), alpha=join.alpha, stitches=stitches, gate=gate)


def _names(points: Mapping[int, StitchPoint]) -> dict[str, str]:
    return {str(member): point.name for member, point in sorted(points.items())}


def _sketch(width: int, widest: int, generator: torch.Generator, device: str | torch.device) -> Tensor | None:
    """Return a random projection to `widest` channels for more than that; similarities survive it approximately."""
    if width <= widest:
        return None
    sketch: Tensor = torch.randn(width, widest, generator=generator) / widest**0.5
    return sketch.to(device)


def _deviation(variances: Tensor) -> float:
    """Return the typical deviation of features with these variances; 1 if all are constant."""
    mean = float(variances.mean())
    return mean**0.5 if mean > 0 else 1.0


def _id(number: int) -> str:
    return f"c{number:02d}"
