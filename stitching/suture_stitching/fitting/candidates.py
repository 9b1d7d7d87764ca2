"""The candidates of a fit as its document names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suture_contract.documents import Candidate, CandidateSet, Gate, Match, Stitch
from suture_contract.privacy import Privacy
from suture_stitching.ensemble.members import Member
from suture_stitching.ensemble.merge import GateTensors, Join
from suture_stitching.fitting.plans import CandidatePlan
from suture_stitching.fitting.reading import Points


def candidate_set(
    members: Sequence[Member],
    plans: Sequence[CandidatePlan],
    r2: Mapping[str, float],
    *,
    labels: tuple[str, ...] | None,
    n: int,
    seed: int,
    can_match: bool,
    privacy: Privacy | None,
) -> CandidateSet:
    """Return each member alone, their plain ensemble, and those that were planned.

    `r2` are those of stitches, by the names of their weights; `n` is the number of samples they were fitted on.
    """
    everyone = tuple(range(len(members)))
    candidates = [Candidate(id=_id(member), kind="single", members=(member,)) for member in everyone]
    candidates.append(Candidate(id=_id(len(candidates)), kind="ensemble", members=everyone))
    for plan in plans:
        matches = tuple(_match(join, r2) for join in plan.joins)
        candidates.append(
            Candidate(
                id=_id(len(candidates)),
                kind="stitched" if matches else "corrected" if plan.gate is None else "routed",
                members=everyone,
                matches=matches,
                gate=None if plan.gate is None else _gate(plan.gate),
                refined=plan.refined,
                others=plan.others or None,
                site_prior=plan.site_prior,
            )
        )
    return CandidateSet(
        task=members[0].metadata.task,
        members=tuple(member.ref for member in members),
        labels=labels,
        n=n,
        seed=seed,
        unstitched=None if any(plan.joins for plan in plans) else "no_match" if can_match else "no_points",
        candidates=tuple(candidates),
        privacy=privacy,
    )


def names_of(points: Points) -> dict[str, str]:
    """Return a match as documents name it: the name of each member's point, by its index."""
    return {str(member): point.name for member, point in sorted(points.items())}


def described_joins(joins: Sequence[Join]) -> list[Any]:
    """Return where and how joins mix, as JSON."""
    return [[names_of(join.points), join.alpha, sorted(map(list, join.stitches.values()))] for join in joins]


def _match(join: Join, r2: Mapping[str, float]) -> Match:
    stitches = tuple(
        Stitch(source=source, target=target, weight=weight, bias=bias, r2=r2.get(weight))
        for (source, target), (weight, bias) in sorted(join.stitches.items())
    )
    return Match(points=names_of(join.points), alpha=join.alpha, stitches=stitches)


def _gate(gate: GateTensors) -> Gate:
    return Gate(
        points=names_of(gate.points),
        weight=gate.weight,
        bias=gate.bias,
        near=gate.near,
        far=gate.far,
        withdraws=gate.withdraws,
    )


def _id(number: int) -> str:
    return f"c{number:02d}"
