"""Which stitched candidates a fit offers: where members are mixed, how strongly, refined or not, gated or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from suture_stitching.merge import GateTensors, Join
from suture_stitching.points import StitchPoint


@dataclass(frozen=True)
class Plan:
    """A stitched candidate before it has an id."""

    joins: tuple[Join, ...]
    refined: bool = False

    def with_stitches(self, names: Mapping[str, str]) -> Plan:
        """Return the plan with refined stitches: `names` maps the tensors' old names to their new ones."""
        joins = tuple(
            replace(join, stitches={pair: (names[w], names[b]) for pair, (w, b) in join.stitches.items()})
            for join in self.joins
        )
        return Plan(joins, refined=True)


def closed_forms(joins: Sequence[Join], alphas: Sequence[float]) -> list[Plan]:
    """Return every match with every mixing weight."""
    return [Plan((replace(join, alpha=alpha),)) for join in joins for alpha in alphas]


def middle_of(alphas: Sequence[float]) -> float:
    """Return the mixing weight closest to one half."""
    return min(alphas, key=lambda alpha: abs(alpha - 0.5))


def to_refine(plans: Sequence[Plan], alphas: Sequence[float], most: int) -> list[Plan]:
    """Return the plans most worth training on the task, at most `most`.

    Late matches come first: there each member has done its own work undisturbed before anything is mixed, and little
    has to be computed again in every step.
    """
    last, middle = plans[-1].joins[-1].points, middle_of(alphas)
    late = [plan for plan in reversed(plans) if len(plan.joins) == 1 and plan.joins[0].points == last]
    earlier = [
        plan
        for plan in reversed(plans)
        if len(plan.joins) > 1 or (plan.joins[0].points != last and plan.joins[0].alpha == middle)
    ]
    return [*late, *earlier][:most]


def places(groups: Sequence[Mapping[int, StitchPoint]]) -> list[int]:
    """Return the matches at which gates look: one a third into the networks, where scanners differ most, and the last.

    What differs from one hospital to another may be how an image looks or what it shows.
    """
    depths = [sum(point.depth for point in points.values()) / len(points) for points in groups]
    early = min(range(len(groups)), key=lambda index: abs(depths[index] - 1 / 3))
    return sorted({early, len(groups) - 1})


def gated(plans: Sequence[Plan], gates: Sequence[Sequence[GateTensors]]) -> list[Plan]:
    """Return gated copies of `plans`; `gates` are those of each place, from the strictest to the most lenient.

    Refined stitches at the last match cost little to evaluate: they get every gate, the others the usual one.
    """
    last = max(plans, key=lambda plan: min(point.depth for point in plan.joins[0].points.values())).joins[0].points
    return [
        replace(plan, joins=tuple(replace(join, gate=gate) for join in plan.joins))
        for own in gates
        for gate in own
        for plan in plans
        if (gate is gates[0][1] or (plan.refined and plan.joins[0].points == last))
    ]
