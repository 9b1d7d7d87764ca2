"""A child's work on moments: where models can be joined, this party's moments there, and those of others for a fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

from suture_contract.contributions import SPLITS, ClippedPrivacy, ContributionDocument, Matched
from suture_contract.documents import CandidateSet, Contributed
from suture_contract.errors import SutureError
from suture_contract.fit_options import FitOptions
from suture_contract.kinds import MOMENTS, contributed_by
from suture_stitching.running.progress import OnProgress
from suture_worker import files
from suture_worker.folder import DOCUMENT, Run, TaskFolder
from suture_worker.leased_task import ContributeSpec, FitSpec, MatchSpec
from suture_worker.rules.policy import TOO_FEW

if TYPE_CHECKING:
    from suture_stitching.data import Dataset
    from suture_stitching.ensemble.members import Member
    from suture_stitching.fitting.contribute import Contribution


def match(
    spec: MatchSpec, members: Sequence[Member], dataset: Dataset, folder: TaskFolder, run: Run, report: OnProgress
) -> None:
    """Write where the members can be joined, and how large their features are there."""
    from suture_stitching.fitting.contribute import contribute
    from suture_stitching.fitting.fit import matches

    n, patients = dataset.n("train"), dataset.patients("train")
    if folder.private:
        # Where networks match is told by exact sums over patients, and a fit with noise uses no contributions.
        _write(folder, Matched(n=n, patients=patients, placements=(), norms=()))
        return
    placements = matches(members, dataset, options=FitOptions.read(spec.options), device=run.device, progress=report)
    norms: tuple[float, ...] = ()
    if placements:
        own = contribute(members, dataset, placements, min_patients=1, device=run.device, progress=report)
        norms = own.norms()
    _write(folder, Matched(n=n, patients=patients, placements=placements, norms=norms))


def contribute(
    spec: ContributeSpec, members: Sequence[Member], dataset: Dataset, folder: TaskFolder, run: Run, report: OnProgress
) -> None:
    """Write this party's moments, with as much noise as its rule asks for."""
    from suture_stitching.fitting.contribute import contribute

    terms = folder.terms
    privacy = None
    if terms.epsilon is not None and terms.delta is not None:
        privacy = ClippedPrivacy(epsilon=terms.epsilon, delta=terms.delta, clips=spec.norms)
    try:
        contribution = contribute(
            members,
            dataset,
            spec.placements,
            min_patients=max(run.min_samples, terms.min_samples),
            privacy=privacy,
            device=run.device,
            progress=report,
            checkpoint=folder.checkpoint,
        )
    except SutureError as error:
        if error.code != "moments.too_few_samples":
            raise
        raise SutureError(TOO_FEW, str(error), where=error.where) from None
    contribution.save(folder.results / MOMENTS)
    patients = {split: dataset.patients(split) for split in SPLITS}
    _write(
        folder,
        ContributionDocument(n=contribution.described.n, patients=patients, epsilon=terms.epsilon, delta=terms.delta),
    )


def contributions(spec: FitSpec, members: Sequence[Member], folder: TaskFolder) -> dict[str, Contribution]:
    """Return what other parties contributed to a fit; what is not in order is left out, and said in the site's log."""
    from suture_stitching.fitting.contribute import Contribution

    kept = {}
    for party, announced in spec.contributions.items():
        try:
            contribution = Contribution.load(folder.candidates / contributed_by(party))
            contribution.check_members(members)
        except SutureError as error:
            print(f"the contribution of {party} is left out: {error}", file=sys.stderr)
            continue
        if _named(party, contribution) == Contributed(
            party=party, n=announced.n, epsilon=announced.epsilon, delta=announced.delta
        ):
            kept[party] = contribution
        else:
            print(f"the contribution of {party} is left out: it is not what was announced", file=sys.stderr)
    return kept


def with_contributors(candidates: CandidateSet, contributors: dict[str, Contribution]) -> CandidateSet:
    """Return the candidates of a fit with those named whose moments some of them rest on."""
    if not any(candidate.others for candidate in candidates.candidates):
        return candidates
    named = tuple(_named(party, contributors[party]) for party in sorted(contributors))
    return candidates.model_copy(update={"contributions": named})


def _named(party: str, contribution: Contribution) -> Contributed:
    privacy = contribution.described.privacy
    return Contributed(
        party=party,
        n=dict(contribution.described.n),
        epsilon=privacy.epsilon if privacy is not None else None,
        delta=privacy.delta if privacy is not None else None,
    )


def _write(folder: TaskFolder, document: BaseModel) -> None:
    files.write(folder.results / DOCUMENT, json.dumps(document.model_dump(mode="json", exclude_none=True)))
