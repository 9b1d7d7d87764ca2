"""Fit stitched ensembles of frozen models to one party's data: from stitch points to a set of candidates.

    members = [Member(load("north.safetensors"), metadata, ref), Member(load("south.safetensors"), ...)]
    fitted = fit(members, dataset)
    fitted.save(folder)

Candidates are each member alone, their plain ensemble, stitched ensembles: at each match and mixing weight, in closed
form and (the most promising) refined, each with and without a gate that leaves unfamiliar samples alone; and routed
ones, where the member that is best at home has the familiar samples to itself and the others have the rest. Which one
is used is decided later, on the data of all parties that answer (`evaluate`, `select`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from suture_contract.documents import Candidate, CandidateSet, Gate, Stitch
from suture_contract.documents import Match as MatchDocument
from suture_contract.errors import SutureError
from suture_contract.fit_options import FitOptions
from suture_contract.privacy import Privacy
from suture_stitching.data import Dataset
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member, batch_size, batches, check_inputs, input_shape
from suture_stitching.ensemble.merge import GateTensors, Join, Merge
from suture_stitching.ensemble.ood_gate import REACHES, bounds
from suture_stitching.features.moments import Moments
from suture_stitching.fitting.carriers import rounded, screened
from suture_stitching.fitting.contribute import Contribution
from suture_stitching.fitting.plans import (
    CandidatePlan,
    affordable,
    by_promise,
    closed_forms,
    looks_of,
    middle_of,
    places,
    price_of,
    to_refine,
)
from suture_stitching.fitting.private_stitches import fit_privately
from suture_stitching.fitting.reading import (
    Features,
    Grid,
    Points,
    Reader,
    Reading,
    capture,
    columns,
    doubled_batches,
    read,
    read_stitched,
    shared_blocks,
)
from suture_stitching.fitting.refine import NOISE, Spread, TrainingLength, refine
from suture_stitching.fitting.solve import Source
from suture_stitching.fitting.survey import survey, surveyed_batches
from suture_stitching.matching.match import match
from suture_stitching.objectives import objective_of
from suture_stitching.privacy.account import Account
from suture_stitching.running.checkpoint import Checkpoint, Folder, fingerprint
from suture_stitching.running.device import Precision, Runner
from suture_stitching.running.progress import OnProgress, ignore
from suture_stitching.running.shards import ALL, Share
from suture_stitching.running.tracker import Tracker

__all__ = ["FitOptions", "FitResult", "Member", "fit", "fit_share", "matches"]

#: The parts of a fit that several processes can share, in this order: one begins when all of the one before is done.
Step: TypeAlias = Literal["capture", "refine"]
#: What other parties' moments count for where some were contributed, the most promising first.
SHARES = (0.5, 0.25, 0.75)
#: How much larger the mean square of another party's features may be than that of the own ones.
_LARGEST = 1e6
#: How many patients carry a feature that takes part, at least.
LEAST = 11
#: What a stitch between features of width 1 costs, in multiplications of a network: decompositions are in double
#: precision, and use a processor less well.
_EIGEN = 100.0
#: Samples on which members are compared.
_COMPARED = 64


def fit(
    members: Sequence[Member],
    dataset: Dataset,
    *,
    options: FitOptions | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
    checkpoint: Folder | None = None,
    contributions: Sequence[Contribution] = (),
    own: int | None = None,
    min_patients: int = LEAST,
    privacy: Privacy | None = None,
    share: float = 1.0,
) -> FitResult:
    """Return the candidates for `members` fitted on the `train` split of `dataset`, tuned on its `validation` split.

    The members are not changed. `progress` is called between batches and may raise `Cancelled`. The same seed gives the
    same bytes on processors and devices of one kind with equally many threads, also when the fit was killed at any
    point and called again with the same folder `checkpoint`, which can be removed afterwards. `precision` is that in
    which members run. Raises `SutureError`: `members.*` for models that do not go together, `dataset.*` for unfit data,
    `features.not_finite` for a model that gives NaN or infinity on this data, `work.out_of_memory` when a single sample
    is too much.

    `contributions` are other parties' moments for these members (see `contribute`): further candidates have stitches in
    closed form that weigh them with the moments of `dataset`.

    `own` is the requester's own member: gates look through no other. What fewer than `min_patients` of the training
    patients carry takes no part (see `carriers`). With `privacy` the result is private for each
    patient (see `Privacy`): closed forms alone, at one match, from the samples of both splits, at most `share` of the
    account spent. What other steps of the job ask of the same patients may spend the rest. It uses no contributions:
    raises `SutureError` `privacy.contributions` where both are given.
    """
    if privacy is not None and contributions:
        raise SutureError(
            "privacy.contributions",
            "a fit with noise uses no contributions of other parties",
            hint="ask for it without contributions, or for an exact fit",
        )
    work = _Fit(
        members,
        dataset,
        options or FitOptions(),
        Runner(device, precision),
        progress,
        checkpoint,
        terms=PatientTerms(own, privacy, share, min_patients),
    )
    for contribution in contributions:
        contribution.check_members(members)
    return work.run(contributions)


def fit_share(
    members: Sequence[Member],
    dataset: Dataset,
    step: Step,
    share: Share,
    *,
    checkpoint: Folder,
    options: FitOptions | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
    own: int | None = None,
    min_patients: int = LEAST,
    privacy: Privacy | None = None,
) -> None:
    """Do a share of one step of the fit that these arguments describe, and leave it in the folder `checkpoint`.

    `fit` with the same arguments finds it there. Processes with different shares may use the folder at the same time.
    Raises what `fit` raises. With `privacy` there is nothing to share: noise is drawn where all sums meet.
    """
    work = _Fit(
        members,
        dataset,
        options or FitOptions(),
        Runner(device, precision),
        progress,
        checkpoint,
        step,
        share,
        PatientTerms(own, privacy, least=min_patients),
    )
    work.run_share(step, share)


def matches(
    members: Sequence[Member],
    dataset: Dataset,
    *,
    options: FitOptions | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: OnProgress = ignore,
) -> tuple[dict[str, str], ...]:
    """Return where `fit` with these arguments would join the members: what other parties are asked to contribute for.

    Raises what `fit` raises.
    """
    work = _Fit(members, dataset, options or FitOptions(), Runner(device, precision), progress, None, "match")
    return work.placements()


@dataclass(frozen=True)
class PatientTerms:
    """On what terms the requester's patients are looked at: see `fit`."""

    own: int | None = None
    privacy: Privacy | None = None
    share: float = 1.0
    least: int = LEAST


class _Fit:
    def __init__(
        self,
        members: Sequence[Member],
        dataset: Dataset,
        options: FitOptions,
        runner: Runner,
        progress: OnProgress,
        checkpoint: Folder | None,
        step: Step | Literal["match"] | None = None,
        share: Share = ALL,
        terms: PatientTerms = PatientTerms(),  # it is frozen
    ) -> None:
        if len(members) < 2:
            raise SutureError("members.too_few", "a stitch needs at least two models")
        check_inputs(members, dataset)
        self._members, self._dataset, self._options, self._terms = members, dataset, options, terms
        self._reader = Reader(members, dataset, runner, options.seed, terms.own, terms.least)
        self._objective = objective_of([member.metadata for member in members], dataset.labels, where=dataset.where)
        dataset.check_classes()
        if terms.privacy is not None:
            dataset.check_separate()
        self._shape = input_shape(members, dataset)
        self._points = [member.points(self._shape) for member in members]
        self._merge = Merge(members, self._objective)
        self._batch = batch_size(dataset, self._shape)
        self._training = TrainingLength.of(dataset, self._shape, options.refine_steps)
        self._progress = Tracker(progress, self._steps(step, share))
        # How many candidates are refined is no part of it: those that were refined before are taken as they are.
        asked = options.model_dump(mode="json", exclude={"refine", "refine_candidates"})
        settings = {
            **asked,
            "device": runner.device.type,
            "precision": runner.precision,
            "own": terms.own,
            "least": terms.least,
        }
        if terms.privacy is not None:
            settings |= {"privacy": terms.privacy.model_dump(mode="json"), "share": terms.share}
        key = "" if checkpoint is None else fingerprint("fit", members, dataset, settings)
        self._checkpoint = Checkpoint(checkpoint, key, shared=step is not None)
        self._stitches: dict[str, Tensor] = {}
        #: The closed forms that refinement starts from, by the names of the others.
        self._starts: dict[str, Tensor] = {}
        self._spreads: dict[str, Spread] = {}
        self._r2: dict[str, float] = {}

    def run(self, contributions: Sequence[Contribution] = ()) -> FitResult:
        if self._terms.privacy is not None:
            return self._run_privately(self._terms.privacy)
        groups, known = self._matches()
        plans: list[CandidatePlan] = []
        if groups:
            self._expect(groups, contributions)
            reading = read(
                self._reader,
                self._merge,
                groups,
                places(groups, self._terms.own),
                self._progress,
                self._checkpoint,
                known,
            )
            known = ()
            joins = self._joins(groups, reading)
            weighed = self._weighed(groups, reading, contributions)
            self._progress.end("stitch")
            plans = self._closed(groups, joins, reading)
            gates = self._gates(groups, reading)
            chosen = self._to_refine(plans)
            plans += [self._refined(number, plan, number) for number, plan in enumerate(chosen)]
            plans = by_promise(plans, self._options.alphas, gates, self._home())
            plans = affordable(plans, Merge(self._members, self._objective, self._stitches), self._shape)
            if weighed:
                plans += affordable(weighed, Merge(self._members, self._objective, self._stitches), self._shape)
            used = {name for plan in plans for name in plan.tensors()}
            self._stitches = {name: tensor for name, tensor in self._stitches.items() if name in used}
        self._progress.finish("fit")
        return FitResult(self._documents(plans), self._told(), self._shape)

    def _run_privately(self, privacy: Privacy) -> FitResult:
        plans: list[CandidatePlan] = []
        if self._can_match:
            alike = torch.ones(sum(map(len, self._points)), sum(map(len, self._points)))
            groups = [self._of(group.points) for group in match(self._points, alike)]
            account = Account(privacy, self._checkpoint, self._terms.share)
            own = self._terms.own
            looks = [] if own is None else looks_of(self._points[own], groups[-1].get(own))
            found = fit_privately(
                self._reader, self._merge, groups[-1], own, looks, account, self._terms.share, self._progress
            )
            self._stitches = dict(found.tensors)
            alphas = self._options.alphas
            plans = by_promise(closed_forms([found.join], alphas), alphas, found.gates, own or 0)
            plans = affordable(plans, Merge(self._members, self._objective, self._stitches), self._shape)
            used = {name for plan in plans for name in plan.tensors()}
            self._stitches = {name: tensor for name, tensor in self._stitches.items() if name in used}
        self._progress.finish("fit")
        documents = self._documents(plans).model_copy(update={"privacy": privacy})
        return FitResult(documents, self._told(), self._shape)

    def _told(self) -> dict[str, Tensor]:
        """Return the tensors in the precision that so many patients give."""
        patients = self._dataset.patients("train")
        return {name: rounded(tensor, patients) for name, tensor in self._stitches.items()}

    def placements(self) -> tuple[dict[str, str], ...]:
        return tuple(_names(points) for points in self._matches()[0])

    def run_share(self, step: Step, share: Share) -> None:
        if self._terms.privacy is not None:
            return
        groups, known = self._matches()
        if not groups:
            return
        read_by = (self._reader, self._merge, groups, places(groups, self._terms.own), self._progress, self._checkpoint)
        if step == "capture":
            capture(*read_by, share, known)
            self._progress.end("solve")
            return
        self._expect(groups, (), share)
        reading = read(*read_by, known)
        joins = self._joins(groups, reading)
        self._progress.end("stitch")
        chosen = self._to_refine(self._closed(groups, joins, reading))
        own = [number for number in range(len(chosen)) if share.has(number)]
        for place, number in enumerate(own):
            self._refined(number, chosen[number], place)

    def _steps(self, step: Step | Literal["match"] | None, share: Share) -> dict[str, tuple[int, float]]:
        """Return what there is to do, in passes of batches."""
        train, validation = (self._reader.number_of_batches(split) for split in ("train", "validation"))
        shared = sum(len(own) for _, _, own in shared_blocks(self._reader, share))
        seen = surveyed_batches(self._reader, self._points) if self._can_match else 0
        if self._terms.privacy is not None:
            return {"solve": (train + validation, 1.0)}
        if step == "match":
            return {"match": (seen, 1.0)}
        if step == "capture":
            return {"match": (seen, 1.0), "solve": (shared, 1.0)}
        # The rest is known when the members are matched: see `_expect`.
        return {
            "match": (seen, 1.0),
            "solve": (train + validation, 1.0),
            "stitch": (0, 1.0),
            "double": (train + validation, 1.0),
            "refine": self._rounds(self._options.refine_candidates, share),
        }

    def _expect(self, groups: Sequence[Points], contributions: Sequence[Contribution], share: Share = ALL) -> None:
        """Tell what there is to do at these matches."""
        pairs = [(a, b) for points in groups for a in points for b in points if a != b]
        times = 1 + len(SHARES) * bool(contributions)
        self._progress.expect("stitch", times * len(pairs), self._stitch_cost(groups))
        doubled = [doubled_batches(self._reader, split, groups[-1]) for split in ("train", "validation")]
        self._progress.expect("double", sum(doubled) if len(groups) > 1 else 0, 1.0)
        # Every match with every mixing weight, and one at the last two matches together.
        plans = len(groups) * len(self._options.alphas) + (len(groups) > 1)
        self._progress.expect("refine", *self._rounds(min(plans, self._options.refine_candidates), share))

    def _rounds(self, candidates: int, share: Share) -> tuple[int, float]:
        """Return how many rounds of training the own share of so many candidates has, and what one costs."""
        own = sum(share.has(number) for number in range(candidates if self._options.refine else 0))
        return own * self._training.rounds, self._training.cost / self._training.rounds / self._batch

    def _stitch_cost(self, groups: Sequence[Points]) -> float:
        """Return what one of the stitches costs, on the average."""
        one = [_EIGEN * points[a].shape[0] ** 3 for points in groups for a in points for b in points if a != b]
        return sum(one) / len(one) / (self._batch * price_of(Merge(self._members, self._objective), self._shape))

    @property
    def _can_match(self) -> bool:
        """Whether two members at least have points at which they could be stitched."""
        return sum(bool(own) for own in self._points) > 1

    def _matches(self) -> tuple[list[Points], Sequence[Sequence[Features]]]:
        """Return the matches to use, in the order of the networks, and the features that are known already."""
        if not self._can_match:
            return [], ()
        if (kept := self._checkpoint.load("matches")) is not None:
            self._progress.skip("match", surveyed_batches(self._reader, self._points))
            self._progress.end("match")
            return [self._of({int(member): index for member, index in one.items()}) for one in kept.document], ()
        found = survey(self._reader, self._merge, self._points, self._progress)
        groups = match(self._points, found.similarities)
        if len(groups) > self._options.max_matches:
            last = groups[-1]
            best = sorted(groups[:-1], key=lambda group: -group.similarity)[: self._options.max_matches - 1]
            groups = [group for group in groups if group in best or group is last]
        self._checkpoint.save("matches", [group.points for group in groups])
        return [self._of(group.points) for group in groups], found.known

    def _of(self, indices: Mapping[int, int]) -> Points:
        return {member: self._points[member][index] for member, index in sorted(indices.items())}

    def _solved(self, index: int, points: Points, reading: Reading) -> Join:
        """Return a match with its stitches in closed form, to be mixed with any weight."""
        moments = {grid: reading.pair(index, grid) for grid in {point.shape[1:] for point in points.values()}}
        return self._join(f"p{index:02d}", points, moments, reading.keep[index])

    def _join(
        self,
        part: str,
        points: Points,
        moments: Mapping[Grid, tuple[Moments, Moments]],
        keep: Mapping[int, Tensor],
    ) -> Join:
        names = {}
        for source in points:
            for target in points:
                if source != target:
                    self._progress.tick("stitch")
                    train, held_out = moments[points[target].shape[1:]]
                    name, own = f"{part}.{source}_{target}", columns(points)
                    keeps = (keep[source], keep[target])
                    names[source, target] = self._solve(name, train, held_out, own[source], own[target], keeps)
        return Join(points, 0.5, names)

    def _solve(
        self,
        name: str,
        train: Moments,
        held_out: Moments,
        source: slice,
        target: slice,
        keeps: tuple[Tensor, Tensor],
    ) -> tuple[str, str]:
        weight, bias = f"{name}.weight", f"{name}.bias"
        features = Source(train, source, held_out)
        solution = features.to(target)
        robust = features.to(target, (NOISE**2,))
        for where, found in ((self._stitches, solution), (self._starts, robust)):
            # Solved for what is kept of the source, and given all of it.
            where[weight] = (found.weight @ keeps[0].to(found.weight)).float().cpu()
            where[bias] = found.bias.float().cpu()
        variance = train.covariance.diagonal().clamp(min=0)
        self._spreads[weight] = Spread(
            train.mean[source], _deviation(variance[source]), _deviation(variance[target]), *keeps
        )
        self._r2[weight] = solution.r2
        return weight, bias

    def _chain(self, groups: Sequence[Points], joins: Sequence[Join], reading: Reading) -> CandidatePlan:
        """Return a candidate that mixes at the last two matches.

        The later stitches must work on features that went through the earlier ones too, so they are solved for on both
        (the doubled batch: native half, stitched half), with the native features as their target.
        """
        middle, last = middle_of(self._options.alphas), len(joins) - 1
        first = replace(joins[-2], alpha=middle)
        points, merge = groups[last], Merge(self._members, self._objective, self._stitches)
        again = read_stitched(self._reader, merge, merge.join([first]), points, self._progress, self._checkpoint)
        own, names, keep = columns(points), {}, reading.keep[last]
        for (source, target), more in again.items():
            width = points[source].shape[0]
            place = {source: slice(0, width), target: slice(width, width + points[target].shape[0])}
            both = []
            for native, stitched in zip(reading.pair(last, points[target].shape[1:]), more, strict=True):
                side = native.select(own[source], own[target])
                both.append(side + screened(stitched, keep, place).scaled(side.n))
            name = f"p{last - 1:02d}.p{last:02d}.{source}_{target}"
            keeps = (keep[source], keep[target])
            names[source, target] = self._solve(name, both[0], both[1], place[source], place[target], keeps)
        self._progress.end("double")
        return CandidatePlan((first, Join(points, middle, names)))

    def _joins(self, groups: Sequence[Points], reading: Reading) -> list[Join]:
        """Return each match with its stitches in closed form."""
        self._progress.end("solve")
        return [self._solved(index, group, reading) for index, group in enumerate(groups)]

    def _closed(self, groups: Sequence[Points], joins: Sequence[Join], reading: Reading) -> list[CandidatePlan]:
        """Return all candidates whose stitches have a closed form."""
        plans = closed_forms(joins, self._options.alphas)
        if len(joins) > 1:
            plans.append(self._chain(groups, joins, reading))
        return plans

    def _weighed(
        self, groups: Sequence[Points], reading: Reading, contributions: Sequence[Contribution]
    ) -> list[CandidatePlan]:
        """Return closed forms from own moments and those of other parties, the most promising first.

        All parties that contributed count alike; what counts of them together is tried as `SHARES`.
        """
        plans = []
        for share in SHARES:
            for index, points in enumerate(groups):
                grids = {point.shape[1:] for point in points.values()}
                others = [{grid: one.pair(points, grid) for grid in grids} for one in contributions]
                own = {grid: reading.pair(index, grid) for grid in grids}
                given = [one for one in others if _plausible(own, one)]
                if given:
                    keep, place = reading.keep[index], columns(points)
                    joined = {
                        g: _screened(_together(own[g], [one[g] for one in given], share), keep, place) for g in grids
                    }
                    join = self._join(f"o{round(100 * share)}.p{index:02d}", points, joined, keep)
                    plans += [
                        CandidatePlan((replace(join, alpha=alpha),), others=share) for alpha in self._options.alphas
                    ]
        middle = middle_of(self._options.alphas)
        plans.reverse()  # late matches first
        return sorted(plans, key=lambda plan: (plan.joins[0].alpha != middle, plan.others != SHARES[0]))

    def _to_refine(self, plans: Sequence[CandidatePlan]) -> list[CandidatePlan]:
        if not self._options.refine:
            return []
        return to_refine(plans, self._options.alphas, self._options.refine_candidates)

    def _refined(self, number: int, plan: CandidatePlan, place: int) -> CandidatePlan:
        """Return the refined copy of the candidate `number`, the one at `place` among those to be refined here."""
        part, described = f"refined-{number:02d}", _described(plan)
        rounds = self._training.rounds
        self._trained(place * rounds, 0)
        kept = self._checkpoint.load(part)
        if kept is not None and kept.document == described:
            new = kept.tensors
            self._progress.skip("refine", rounds)
        else:
            new = refine(
                self._members,
                self._objective,
                plan.joins,
                self._starts,
                self._spreads,
                self._dataset,
                steps=self._options.refine_steps,
                seed=self._options.seed,
                runner=self._reader.runner,
                progress=functools.partial(self._trained, place * rounds),
            )
            self._checkpoint.save(part, described, new)
        self._trained(place * rounds, rounds)
        names = {old: f"r{number:02d}.{old}" for old in sorted(new)}
        self._stitches.update({names[old]: new[old].cpu() for old in names})
        return plan.with_stitches(names)

    def _trained(self, before: int, done: int) -> None:
        self._progress.reached("refine", before + done)

    def _gates(self, groups: Sequence[Points], reading: Reading) -> list[list[GateTensors]]:
        """Return for each place a gate per strictness; how far is too far comes from the validation split."""
        gates, own = [], self._terms.own
        for index, whitening in reading.whitenings.items():
            assert own is not None, "gates look through nothing else"
            gate = GateTensors(
                {own: groups[index][own]}, f"g{index:02d}.weight", f"g{index:02d}.bias", near=0.0, far=1.0
            )
            self._stitches[gate.weight], self._stitches[gate.bias] = whitening.weight.cpu(), whitening.bias.cpu()
            limits = [bounds(reading.distances[index], reach) for reach in REACHES]
            gates.append([replace(gate, near=near, far=far) for near, far in limits])
        return gates

    def _home(self) -> int:
        """Return the member that is best on a part of the validation split."""
        everyone = range(len(self._members))
        runner, merge = self._reader.runner, self._merge
        outputs = tuple(merge.ensemble(merge.native, [member]) for member in everyone)
        model = runner.model(merge.graph(outputs), merge.tensors, self._shape)
        sign, total, seen = 1 if self._objective.higher_is_better else -1, torch.zeros(len(everyone)), 0

        def scores(x: Tensor, y: Tensor) -> Tensor:
            found = dict(runner.stream(model, [output.node for output in outputs], x))
            return torch.stack([self._objective.scores(found[output.node], y).sum() for output in outputs])

        for x, y in batches(self._members, self._dataset, "validation", runner.device, seed=self._options.seed):
            for own in runner.parts(scores, x, y):
                total += sign * own.cpu()
            seen += len(y)
            if seen >= _COMPARED:
                break
        return int(total.argmax())

    def _documents(self, plans: Sequence[CandidatePlan]) -> CandidateSet:
        everyone = tuple(range(len(self._members)))
        candidates = [Candidate(id=_id(member), kind="single", members=(member,)) for member in everyone]
        candidates.append(Candidate(id=_id(len(candidates)), kind="ensemble", members=everyone))
        for plan in plans:
            matches = tuple(self._match_document(join) for join in plan.joins)
            candidates.append(
                Candidate(
                    id=_id(len(candidates)),
                    kind="stitched" if matches else "routed",
                    members=everyone,
                    matches=matches,
                    gate=None if plan.gate is None else _gate_document(plan.gate),
                    refined=plan.refined,
                    others=plan.others or None,
                )
            )
        return CandidateSet(
            task=self._members[0].metadata.task,
            members=tuple(member.ref for member in self._members),
            labels=self._objective.labels,
            n=self._dataset.n("train"),
            seed=self._options.seed,
            unstitched=None if plans else "no_match" if self._can_match else "no_points",
            candidates=tuple(candidates),
        )

    def _match_document(self, join: Join) -> MatchDocument:
        stitches = tuple(
            Stitch(source=source, target=target, weight=weight, bias=bias, r2=self._r2.get(weight))
            for (source, target), (weight, bias) in sorted(join.stitches.items())
        )
        return MatchDocument(points=_names(join.points), alpha=join.alpha, stitches=stitches)


def _plausible(
    own: Mapping[Grid, tuple[Moments, Moments]], other: Mapping[Grid, tuple[Moments, Moments] | None]
) -> bool:
    """Whether another party's features are there, and not so large that what is solved for with them overflows."""
    for grid, pair in own.items():
        given = other[grid]
        if given is None or any(
            _size(theirs) > _LARGEST * _size(ours) for ours, theirs in zip(pair, given, strict=True)
        ):
            return False
    return True


def _size(moments: Moments) -> float:
    """Return the mean square of all features."""
    return float(moments.covariance.diagonal().mean() + moments.mean.square().mean())


def _together(
    own: tuple[Moments, Moments], others: Sequence[tuple[Moments, Moments] | None], share: float
) -> tuple[Moments, Moments]:
    """Return the moments of both splits as if `share` of all rows were the others', each party's alike."""
    found = []
    for split, moments in enumerate(own):
        given = [one[split].to(moments.mean.device) for one in others if one is not None]
        total = moments.scaled(moments.n * (1 - share))
        for one in given:
            total = total + one.scaled(moments.n * share / len(given))
        found.append(total)
    return found[0], found[1]


def _screened(
    both: tuple[Moments, Moments], keep: Mapping[int, Tensor], place: Mapping[int, slice]
) -> tuple[Moments, Moments]:
    return screened(both[0], keep, place), screened(both[1], keep, place)


def _gate_document(gate: GateTensors) -> Gate:
    return Gate(
        points=_names(gate.points),
        weight=gate.weight,
        bias=gate.bias,
        near=gate.near,
        far=gate.far,
        withdraws=gate.withdraws,
    )


def _names(points: Points) -> dict[str, str]:
    return {str(member): point.name for member, point in sorted(points.items())}


def _described(plan: CandidatePlan) -> list[Any]:
    """Return where and how a plan mixes, as JSON."""
    return [[_names(join.points), join.alpha, sorted(map(list, join.stitches.values()))] for join in plan.joins]


def _deviation(variances: Tensor) -> float:
    """Return the typical deviation of features with these variances; 1 if all are constant."""
    mean = float(variances.mean())
    return mean**0.5 if mean > 0 else 1.0


def _id(number: int) -> str:
    return f"c{number:02d}"
