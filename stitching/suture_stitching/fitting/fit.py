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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from suture_contract.compatibility import site_prior
from suture_contract.errors import SutureError
from suture_contract.fit_options import FitOptions
from suture_contract.privacy import Privacy
from suture_stitching.data import Dataset
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.ensemble.members import Member, check_inputs
from suture_stitching.ensemble.merge import Merge
from suture_stitching.features.few_rows import MOST_ROWS, WIDE
from suture_stitching.fitting.candidates import candidate_set, described_joins, names_of
from suture_stitching.fitting.carriers import Screen, rounded
from suture_stitching.fitting.contribute import Contribution
from suture_stitching.fitting.contributed import weighed
from suture_stitching.fitting.effort import Effort, Step
from suture_stitching.fitting.gates import best_at_home, gates_of
from suture_stitching.fitting.plans import (
    CandidatePlan,
    affordable,
    by_promise,
    by_share,
    closed_forms,
    looks_of,
    middle_of,
    places,
    to_refine,
    with_site_prior,
)
from suture_stitching.fitting.private_stitches import fit_privately
from suture_stitching.fitting.reading import (
    Features,
    Grid,
    MatchReader,
    Pair,
    Points,
    Reading,
    columns,
    doubled,
    read_stitched,
)
from suture_stitching.fitting.refine import TrainingLength, refine
from suture_stitching.fitting.stitch import FittedMatch, FittedStitch, solve_match, solve_stitch
from suture_stitching.fitting.survey import survey
from suture_stitching.fitting.terms import EVERYONE, LEAST, PatientTerms
from suture_stitching.matching.match import match, strongest
from suture_stitching.objectives import objective_of
from suture_stitching.privacy.account import Account
from suture_stitching.running.checkpoint import Checkpoint, Folder, fingerprint
from suture_stitching.running.device import Precision, Runner, runner_for
from suture_stitching.running.feature_pass import FeaturePass
from suture_stitching.running.progress import OnProgress, ignore
from suture_stitching.running.shards import ALL, Share
from suture_stitching.running.tracker import Tracker

__all__ = ["FitOptions", "FitResult", "Member", "fit", "fit_share", "matches"]


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
    is too much. Where a dataset may hold `one_class`, nothing is refined.

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
        runner_for(members, device, precision, privacy),
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
        terms: PatientTerms = EVERYONE,
    ) -> None:
        if len(members) < 2:
            raise SutureError("members.too_few", "a stitch needs at least two models")
        check_inputs(members, dataset)
        if dataset.one_class:
            # Labels that do not vary say nothing to learn from; closed forms need none.
            options = options.model_copy(update={"refine": False})
        else:
            dataset.check_classes()
        self._options, self._terms = options, terms
        self._objective = objective_of([member.metadata for member in members], dataset.labels, where=dataset.where)
        if terms.privacy is not None:
            dataset.check_separate()
        # How many candidates are refined is no part of it: those that were refined before are taken as they are.
        asked = options.model_dump(mode="json", exclude={"recipe", "refine", "refine_candidates", "metrics"})
        settings = {
            **asked,
            "device": runner.device.type,
            "precision": runner.precision,
            "own": terms.own,
            "least": terms.least,
            "rows": [WIDE, MOST_ROWS],
        }
        if terms.privacy is not None:
            settings |= {"privacy": terms.privacy.model_dump(mode="json"), "share": terms.share}
        key = "" if checkpoint is None else fingerprint("fit", members, dataset, settings)
        self._checkpoint = Checkpoint(checkpoint, key, shared=step is not None)
        self._tracker = Tracker(progress)
        self._passes = FeaturePass(members, dataset, runner, self._tracker, self._checkpoint, options.seed)
        self._merge = Merge(members, self._objective)
        points = [member.points(self._passes.shape) for member in members]
        self._points = [self._merge.distinct(number, own) for number, own in enumerate(points)]
        self._training = TrainingLength.of(dataset, self._passes.shape, options.refine_steps)
        self._effort = Effort(self._passes, self._merge, self._points, options, self._training)
        self._effort.begin(step, share, private=terms.privacy is not None)
        #: Stitches in closed form, by the names of their weights.
        self._stitches: dict[str, FittedStitch] = {}
        #: What candidates name beside them: tensors of refined stitches, and of gates.
        self._tensors: dict[str, Tensor] = {}

    def run(self, contributions: Sequence[Contribution] = ()) -> FitResult:
        if self._terms.privacy is not None:
            return self._run_privately(self._terms.privacy)
        matches, known = self._matches()
        if not matches:
            return self._result(() if self._options.recipe == "paper" else self._with_site_prior(()))
        self._effort.matched(matches, len(known), contributions=bool(contributions))
        reading = self._reader(matches, known).read()
        known = ()
        fitted = self._solved(matches, reading)
        weighed_plans = self._weighed(matches, reading, contributions)
        self._tracker.end("stitch")
        plans = self._closed(fitted, reading)
        plans = self._affordable(
            plans[::-1] if self._options.recipe == "paper" else self._elaborated(plans, matches, reading)
        )
        plans += self._affordable(weighed_plans) if weighed_plans else ()
        for stitch in self._named(plans).values():
            _ = stitch.solved
        self._tracker.end("compare")
        return self._result(plans)

    def _elaborated(
        self, plans: list[CandidatePlan], matches: Sequence[Points], reading: Reading
    ) -> list[CandidatePlan]:
        """Return `plans`, and with training, gates and shares of labels what else is made of them."""
        gates, tensors = gates_of(matches, reading, self._terms.own)
        self._tensors |= tensors
        plans += [self._refined(number, plan, number) for number, plan in enumerate(self._to_refine(plans))]
        self._tracker.tick("compare")
        home = best_at_home(self._passes, self._merge, self._objective)
        return self._with_site_prior(by_promise(plans, self._options.alphas, gates, home))

    def _run_privately(self, privacy: Privacy) -> FitResult:
        if not self._can_match:
            return self._result(self._with_site_prior(()), privacy)
        alike = torch.ones(sum(map(len, self._points)), sum(map(len, self._points)))
        last = self._of(match(self._points, alike)[-1].points)
        account = Account(privacy, self._checkpoint, self._terms.share)
        own = self._terms.own
        looks = [] if own is None else looks_of(self._points[own], last.get(own))
        private = fit_privately(self._passes, self._merge, last, looks, account, self._terms)
        self._tensors |= private.tensors
        alphas = self._options.alphas
        plans = by_promise(closed_forms([private.join], alphas), alphas, private.gates, own or 0)
        return self._result(self._affordable(self._with_site_prior(plans)), privacy)

    def placements(self) -> tuple[dict[str, str], ...]:
        return tuple(names_of(points) for points in self._matches()[0])

    def run_share(self, step: Step, share: Share) -> None:
        if self._terms.privacy is not None:
            return
        matches, known = self._matches()
        if not matches:
            return
        self._effort.matched(matches, len(known), step, share)
        if step == "capture":
            self._reader(matches, known).capture(share)
            return
        if not self._effort.own:
            return
        reading = self._reader(matches, known).read()
        chained = self._effort.chained
        fitted = self._solved(matches, reading, chained=chained)
        self._tracker.end("stitch")
        chosen = self._to_refine(self._closed(fitted, reading, chained=chained))
        for place, number in enumerate(self._effort.own):
            self._refined(number, chosen[number], place)

    @property
    def _can_match(self) -> bool:
        """Whether two members at least have points at which they could be stitched."""
        return sum(bool(points) for points in self._points) > 1

    def _matches(self) -> tuple[list[Points], Sequence[Sequence[Features]]]:
        """Return the matches to use, in the order of the networks, and the features that are known already."""
        if not self._can_match:
            return [], ()
        if (kept := self._checkpoint.load("matches")) is not None:
            self._tracker.skip("match", self._effort.surveyed)
            self._tracker.end("match")
            return [self._of({int(member): index for member, index in points.items()}) for points in kept.document], ()
        surveyed = survey(self._passes, self._merge, self._points)
        matched = strongest(match(self._points, surveyed.similarities), self._options.max_matches)
        self._checkpoint.save("matches", [points.points for points in matched])
        return [self._of(points.points) for points in matched], surveyed.known

    def _of(self, indices: Mapping[int, int]) -> Points:
        return {member: self._points[member][index] for member, index in sorted(indices.items())}

    def _reader(self, matches: Sequence[Points], known: Sequence[Sequence[Features]]) -> MatchReader:
        looks = places(matches, self._terms.own)
        return MatchReader(self._passes, self._merge, matches, looks, self._terms, known)

    def _solved(self, matches: Sequence[Points], reading: Reading, *, chained: bool = True) -> list[FittedMatch]:
        """Return each match with its stitches in closed form; those that others are read behind are solved for.

        None is read behind another where nothing is `chained` here.
        """
        fitted = []
        for index, points in enumerate(matches):
            match = self._match(
                f"p{index:02d}",
                points,
                functools.partial(reading.pair, index),
                functools.partial(reading.keep_of, index),
            )
            for stitch in match.stitches.values():
                self._tracker.tick("stitch")
                if chained and index == len(matches) - 2:
                    _ = stitch.solved
            fitted.append(match)
        return fitted

    def _weighed(
        self, matches: Sequence[Points], reading: Reading, contributions: Sequence[Contribution]
    ) -> list[CandidatePlan]:
        """Return closed forms from own moments and those of other parties, the most promising first."""
        plans = []
        for share, index, moments in weighed(matches, reading, contributions):
            name = f"o{round(100 * share)}.p{index:02d}"
            fitted = self._match(name, matches[index], moments.__getitem__, functools.partial(reading.keep_of, index))
            for stitch in fitted.stitches.values():
                self._tracker.tick("stitch")
                _ = stitch.solved  # moments of so many parties are not kept
            plans += [CandidatePlan((fitted.join(alpha),), others=share) for alpha in self._options.alphas]
        return by_share(plans, self._options.alphas)

    def _match(
        self,
        name: str,
        points: Points,
        pair: Callable[[Grid], Pair],
        keep: Callable[[int], Screen],
    ) -> FittedMatch:
        fitted = solve_match(name, points, pair, keep, start=self._options.refine)
        self._keep(fitted)
        return fitted

    def _keep(self, fitted: FittedMatch) -> None:
        self._stitches |= {stitch.names[0]: stitch for stitch in fitted.stitches.values()}

    def _closed(self, fitted: Sequence[FittedMatch], reading: Reading, *, chained: bool = True) -> list[CandidatePlan]:
        """Return all candidates whose stitches have a closed form; `chained`: also solve for what mixes twice."""
        plans = closed_forms([match.join(0.5) for match in fitted], self._options.alphas)
        if len(fitted) > 1:
            plans.append(self._chain(fitted, reading, solve=chained))
        return plans

    def _chain(self, fitted: Sequence[FittedMatch], reading: Reading, *, solve: bool) -> CandidatePlan:
        """Return a candidate that mixes at the last two matches.

        The later stitches must work on features that went through the earlier ones too, so they are solved for on both
        (the doubled batch: native half, stitched half), with the native features as their target.
        """
        middle, last = middle_of(self._options.alphas), len(fitted) - 1
        first, points = fitted[-2].join(middle), fitted[-1].points

        @functools.cache
        def again() -> dict[tuple[int, int], Pair]:
            solved = {name: tensor for each in fitted[-2].stitches.values() for name, tensor in each.tensors.items()}
            merge = Merge(self._passes.members, self._objective, solved)
            return read_stitched(self._passes, merge, merge.join([first]), points)

        def both(source: int, target: int, place: Mapping[int, slice]) -> Pair:
            native, more = reading.pair(last, points[target].shape[1:]), again()[source, target]
            return doubled(native, (sides[source], sides[target]), more, reading.keep(last), place)

        sides, stitches = columns(points), {}
        if solve:
            again()
        for source, target in ((a, b) for a in points for b in points if a != b):
            width = points[source].shape[0]
            place = {source: slice(0, width), target: slice(width, width + points[target].shape[0])}
            stitches[source, target] = solve_stitch(
                f"p{last - 1:02d}.p{last:02d}.{source}_{target}",
                functools.partial(both, source, target, place),
                place[source],
                place[target],
                functools.partial(reading.keep_of, last),
                (source, target),
                start=self._options.refine,
            )
            if solve:
                self._tracker.tick("double")
                _ = stitches[source, target].solved  # what was read for it is not kept
        self._tracker.end("double")
        chained = FittedMatch(points, stitches)
        self._keep(chained)
        return CandidatePlan((first, chained.join(middle)))

    def _to_refine(self, plans: Sequence[CandidatePlan]) -> list[CandidatePlan]:
        if not self._options.refine:
            return []
        return to_refine(plans, self._options.alphas, self._options.refine_candidates)

    def _refined(self, number: int, plan: CandidatePlan, place: int) -> CandidatePlan:
        """Return the refined copy of the candidate `number`, the one at `place` among those to be refined here."""
        part, described = f"refined-{number:02d}", described_joins(plan.joins)
        first, looks = place * self._training.looks, 0
        self._tracker.reached("refine", first)

        def looked(count: int) -> None:
            nonlocal looks
            looks = count
            self._tracker.reached("refine", first + count)

        kept = self._checkpoint.load(part)
        if kept is not None and kept.document == described:
            refined = kept.tensors
        else:
            refined = refine(
                self._passes,
                self._objective,
                plan.joins,
                self._stitches,
                self._training,
                progress=looked,
            )
            self._checkpoint.save(part, described, refined)
            self._effort.trained(looks)
        self._tracker.skip("refine", self._training.looks - looks)
        self._tracker.reached("refine", first + self._training.looks)
        names = {old: f"r{number:02d}.{old}" for old in sorted(refined)}
        self._tensors |= {names[old]: refined[old].cpu() for old in names}
        return plan.with_stitches(names)

    def _with_site_prior(self, plans: Sequence[CandidatePlan]) -> list[CandidatePlan]:
        prior = site_prior([member.metadata for member in self._passes.members], self._terms.own)
        return with_site_prior(plans, prior)

    def _affordable(self, plans: Sequence[CandidatePlan]) -> list[CandidatePlan]:
        shapes = {name: tensor for stitch in self._stitches.values() for name, tensor in stitch.shapes.items()}
        merge = Merge(self._passes.members, self._objective, {**shapes, **self._tensors})
        return affordable(plans, merge, self._passes.shape)

    def _named(self, plans: Sequence[CandidatePlan]) -> dict[str, FittedStitch]:
        """Return the stitches in closed form that these candidates have, by the names of their weights."""
        used = {name for plan in plans for name in plan.tensors()}
        return {name: stitch for name, stitch in self._stitches.items() if name in used}

    def _result(self, plans: Sequence[CandidatePlan], privacy: Privacy | None = None) -> FitResult:
        """Return these candidates and the tensors that they name, in the precision that so many patients give."""
        dataset = self._passes.dataset
        used, patients = {name for plan in plans for name in plan.tensors()}, dataset.patients("train")
        stitches = self._named(plans)
        closed = {name: tensor for stitch in stitches.values() for name, tensor in stitch.tensors.items()}
        tensors = {
            name: rounded(tensor, patients) for name, tensor in {**closed, **self._tensors}.items() if name in used
        }
        candidates = candidate_set(
            self._passes.members,
            plans,
            {name: stitch.solved.r2 for name, stitch in stitches.items()},
            labels=self._objective.labels,
            n=dataset.n("train"),
            seed=self._options.seed,
            can_match=self._can_match,
            privacy=privacy,
        )
        self._tracker.finish("fit")
        return FitResult(candidates, tensors, self._passes.shape)
