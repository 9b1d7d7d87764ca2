"""Which stitched candidates a fit offers: where members are mixed, how strongly, refined or not, gated or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from suture_contract.model.graph import Graph, references
from suture_stitching.ensemble.merge import GateTensors, Join, Merge
from suture_stitching.features.points import StitchPoint
from suture_stitching.portable.dry_run import UNLIMITED, measure
from suture_stitching.portable.program import Program

#: What evaluating all candidates may cost by these prices, in passes of the members, and how many there may and must
#: be. Layers of few channels, as the last ones of U-Nets are, take up to twice as long as their arithmetic says.
EVALUATION, MOST, FEWEST = 1.5, 48, 4
#: What writing one element costs, in multiplications: memory is slower than arithmetic. What averaging, checking and
#: scoring an output cost for each of its numbers.
MOVING, SCORING = 32, 512
#: Of so many candidates, the most promising ones, there is one with a site prior, too.
CORRECTED = 4


@dataclass(frozen=True)
class CandidatePlan:
    """A stitched candidate, a routed one (without joins), or the ensemble (without a gate, too) before it has an id."""

    joins: tuple[Join, ...]
    gate: GateTensors | None = None
    refined: bool = False
    #: What other parties' moments counted for, from 0 to 1.
    others: float = 0.0
    #: The shares of labels that are put in the place of the members'.
    site_prior: tuple[float, ...] | None = None

    def tensors(self) -> Iterator[str]:
        """Yield the names of the tensors it needs, those of gates included."""
        for join in self.joins:
            for names in join.stitches.values():
                yield from names
        if self.gate is not None:
            yield from (self.gate.weight, self.gate.bias)

    def with_stitches(self, names: Mapping[str, str]) -> CandidatePlan:
        """Return the plan with refined stitches: `names` maps the tensors' old names to their new ones."""
        joins = tuple(
            replace(join, stitches={pair: (names[w], names[b]) for pair, (w, b) in join.stitches.items()})
            for join in self.joins
        )
        return CandidatePlan(joins, self.gate, refined=True)


def closed_forms(joins: Sequence[Join], alphas: Sequence[float]) -> list[CandidatePlan]:
    """Return every match with every mixing weight."""
    return [CandidatePlan((replace(join, alpha=alpha),)) for join in joins for alpha in alphas]


def by_share(plans: Sequence[CandidatePlan], alphas: Sequence[float]) -> list[CandidatePlan]:
    """Return plans with other parties' moments, the most promising first: late matches, as much from all as from one.

    `plans` are in the order of what others' moments count for, and for each of these in that of the networks.
    """
    middle, first = middle_of(alphas), plans[0].others if plans else 0.0
    late_first = plans[::-1]
    return sorted(late_first, key=lambda plan: (plan.joins[0].alpha != middle, plan.others != first))


def middle_of(alphas: Sequence[float]) -> float:
    """Return the mixing weight closest to one half."""
    return min(alphas, key=lambda alpha: abs(alpha - 0.5))


def to_refine(plans: Sequence[CandidatePlan], alphas: Sequence[float], most: int) -> list[CandidatePlan]:
    """Return the plans most worth training on the objective, at most `most`, the most promising first.

    Late matches: there each member has done its own work undisturbed before anything is mixed, and little has to be
    computed again in every step. The last match alone, then the last two together, which can do more, then the one
    before the last; then other mixing weights and earlier matches.
    """
    middle = middle_of(alphas)
    chains = [plan for plan in plans if len(plan.joins) > 1]
    single = [plan for plan in reversed(plans) if len(plan.joins) == 1]
    last = single[0].joins[0].points
    central = [plan for plan in single if plan.joins[0].alpha == middle]
    others = [plan for plan in single if plan.joins[0].alpha != middle and plan.joins[0].points == last]
    return [*central[:1], *chains, *central[1:2], *others, *central[2:]][:most]


def places(groups: Sequence[Mapping[int, StitchPoint]], own: int | None) -> list[int]:
    """Return the matches at which gates look: one a third into the networks, where scanners differ most, and the last.

    A gate looks through the requester's own network alone: others' can have been built to show its patients.

    What differs from one hospital to another may be how an image looks or what it shows.
    """
    depths = [sum(point.depth for point in points.values()) / len(points) for points in groups]
    early = min(range(len(groups)), key=lambda index: abs(depths[index] - 1 / 3))
    return [index for index in sorted({early, len(groups) - 1}) if own in groups[index]]


def looks_of(points: Sequence[StitchPoint], last: StitchPoint | None) -> list[StitchPoint]:
    """Return where gates look in one network alone: the same two places, the second at its match or its last point."""
    if not points:
        return []
    early = min(points, key=lambda point: abs(point.depth - 1 / 3))
    late = points[-1] if last is None else last
    return [early] if early == late else [early, late]


def by_promise(
    plans: Sequence[CandidatePlan], alphas: Sequence[float], gates: Sequence[Sequence[GateTensors]], home: int
) -> list[CandidatePlan]:
    """Return `plans` and gated copies of them, the most promising first.

    `gates` are those of each place, from the strictest to the most lenient; `home` is the member that is best at home
    and may withdraw from unfamiliar samples. Refined stitches with a gate have most often been the best at home and
    away; ungated ones may gain more elsewhere, closed forms most of all where parties resemble each other.
    """
    refined, closed = [plan for plan in plans if plan.refined], [plan for plan in plans if not plan.refined]
    central = [plan for plan in reversed(closed) if plan.joins[0].alpha == middle_of(alphas)]
    usual = [own[len(own) // 2] for own in gates]
    others = [gate for own in gates for gate in own if gate not in usual]
    first, second = refined[:2] or central[:2], refined[2:]
    routed = [CandidatePlan((), replace(gate, withdraws=home)) for gate in [*usual, *others]]
    return [
        *_both(first, usual[:1], home),
        *routed[: len(usual)],
        *first,
        *central[:2],
        *_both(first, usual[1:], home),
        *_both(second, usual[:1], home),
        *_both(first, others, home),
        *routed[len(usual) :],
        *(plan for plan in [*central, *refined, *reversed(closed)] if plan not in [*first, *central[:2]]),
        *_both(central, usual[:1], home),
    ]


def with_site_prior(plans: Sequence[CandidatePlan], prior: tuple[float, ...] | None) -> list[CandidatePlan]:
    """Return `plans`, the most promising first, and with a `prior` the ensemble and the first of them with it, too."""
    if prior is None:
        return list(plans)
    first = [CandidatePlan(()), *plans[:CORRECTED]]
    return [*plans[:1], *(replace(plan, site_prior=prior) for plan in first), *plans[1:]]


def _both(plans: Sequence[CandidatePlan], gates: Sequence[GateTensors], home: int) -> list[CandidatePlan]:
    """Return copies of `plans` with each gate: with the plain ensemble for unfamiliar samples, and without `home`."""
    kinds = [kind for gate in gates for kind in (gate, replace(gate, withdraws=home))]
    return [replace(plan, gate=kind) for kind in kinds for plan in plans if not _looks_behind(kind, plan)]


def _looks_behind(gate: GateTensors, plan: CandidatePlan) -> bool:
    """Whether a gate looks at what a plan has mixed already: the members would have to run a second time, unmixed."""
    first = plan.joins[0].points
    return any(member in first and point.node > first[member].node for member, point in gate.points.items())


def affordable(plans: Sequence[CandidatePlan], merge: Merge, sizes: Sequence[int]) -> list[CandidatePlan]:
    """Return of `plans`, the most promising first, what every party can be asked to evaluate; the simplest first.

    Together with the members themselves they cost at most `EVALUATION` times what the members cost, at inputs of
    `sizes` `(C, *spatial)`: a candidate costs what lies behind its first match, and scoring its output. If these are
    fewer than `FEWEST`, so many are taken all the same: next to members of a few small layers everything is expensive.
    One that is routed is among them, which may be the only good one where there was no time to refine.
    """
    graph, costs, width = _priced(merge, sizes)
    spent = base = sum(costs)
    taken: list[CandidatePlan] = []
    known: list[tuple[tuple[Join, ...], GateTensors | None]] = []
    for plan in plans:
        # Whether a member withdraws changes nothing before the outputs.
        tail = (plan.joins, plan.gate and replace(plan.gate, withdraws=None))
        price = SCORING * width
        if plan.joins and tail not in known:
            price += _behind(graph, merge, plan.joins[0], costs)
        if len(taken) < MOST and spent + price <= EVALUATION * base:
            spent += price
            known.append(tail)
            taken.append(plan)
    if not any(map(_is_routed, taken)):
        taken += [plan for plan in plans if _is_routed(plan)][:1]
    left = [plan for plan in plans if plan not in taken]
    return sorted([*taken, *left[: max(0, FEWEST - len(taken))]], key=_elaborate)


def _is_routed(plan: CandidatePlan) -> bool:
    return not plan.joins and plan.gate is not None


def _elaborate(plan: CandidatePlan) -> tuple[bool, bool, bool, bool, int, bool]:
    withdraws, corrected = plan.gate is not None and plan.gate.withdraws is not None, plan.site_prior is not None
    return bool(plan.joins), plan.gate is not None, withdraws, plan.refined, len(plan.joins), corrected


class Prices:
    """What members cost for a sample of `sizes` `(C, *spatial)`, in multiplications: `all` of them, or parts."""

    def __init__(self, merge: Merge, sizes: Sequence[int]) -> None:
        self._merge = merge
        self._graph, self._costs, _ = _priced(merge, sizes)
        self.all = sum(self._costs) / 2

    def behind(self, join: Join) -> float:
        """Return what has to be computed anew behind a match."""
        return _behind(self._graph, self._merge, join, self._costs) / 2


def _priced(merge: Merge, sizes: Sequence[int]) -> tuple[Graph, list[int], int]:
    """Return the graph of all members, what each node costs for two samples, arithmetic and moving what it writes, and
    how many numbers the output has.
    """
    output = merge.ensemble(merge.native)
    graph = merge.graph(output)
    measured = measure(Program(graph), merge.tensors, [(2, *sizes)], UNLIMITED)
    written = [0 if spec is None else math.prod(size or 1 for size in spec.shape) for spec in measured.tensors]
    costs = [flops and flops + MOVING * size for flops, size in zip(measured.flops, written, strict=True)]
    return graph, costs, written[output.node]


def _behind(graph: Graph, merge: Merge, join: Join, costs: Sequence[int]) -> int:
    """Return what the nodes cost that have to be computed anew behind a match."""
    moved = {merge.native[member][point.node].node for member, point in join.points.items()}
    price = 0
    for index, node in enumerate(graph.nodes):
        if index in moved or any(source in moved for source in references(node)):
            moved.add(index)
            price += costs[index]
    return price
