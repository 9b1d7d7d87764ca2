"""Whether members should weigh what they are worth: `python benchmarks/members.py heart --seeds 15 --kept FOLDER`.

To the candidates of a fit are added further ones that cost next to nothing, since they average outputs that are there
already: subsets of the members; weights that are learnt on the requester's validation data, by gradient descent or by
greedy selection (Caruana et al., "Ensemble selection from libraries of models", 2004), and such that favour the
requester's own model; temperatures, learnt there or fixed; both; shares of labels corrected by half. Each is offered
with each site's own shares of labels and without. The rule chooses among all, and what it chose is compared on test
data with what it chooses without them: means over seeds and requesters, in points, with 95 % intervals over seeds.

What the parties measured of the fit's own candidates is read from FOLDER, where `choice.py` keeps it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from choice import Asked, kept, restricted, worth
from common import write_json
from contribution import CPU, trained
from rich.console import Console
from rich.table import Table
from studies import CARRIED
from torch import Tensor

from suture_contract.documents import Candidate, Score, SplitName
from suture_local.study.data import Study
from suture_stitching.data.dataset import shares_of
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.select import choose
from suture_stitching.prior import LEAST_SHARE

FAMILIES = ("subsets", "weights", "temperatures", "temperatures and weights", "half the shares")
NONE, ALL = "none of these", "all of these"
SPLITS: tuple[SplitName, ...] = ("validation", "test")
TEMPERATURES, ROUNDS, RESAMPLES = np.geomspace(0.3, 10, 40), 20, 4000
MEASURED = ("mean of all parties", "at home", "elsewhere", "regret", "optimism", "surely lost")


@dataclass(frozen=True)
class Mixture:
    """An average of members' probabilities: a temperature and a weight for each, and how far shares are corrected."""

    family: str
    temperatures: Tensor
    weights: Tensor
    strength: float = 0.0


class Outputs:
    """The members' log-probabilities `(K, N, L)` and the labels of each party's splits, and all shares of labels."""

    def __init__(self, study: Study, seed: int, members: Sequence[Member]) -> None:
        data = study.divide(seed)
        self.logs: dict[tuple[str, str], Tensor] = {}
        self.labels: dict[tuple[str, str], Tensor] = {}
        self.site: dict[str, Tensor] = {}
        for party, own in data.items():
            shares = shares_of(own.targets[own.split == "train"], study.labels)
            self.site[party] = torch.tensor(list(shares.values())).clamp(min=LEAST_SHARE)
            for split in SPLITS:
                part = own.part(split, CPU)
                with torch.no_grad():
                    x = part.inputs(slice(None))
                    self.logs[party, split] = torch.stack([member.model(x).log_softmax(1) for member in members])
                self.labels[party, split] = part.y.long()
        self.priors = torch.stack([torch.tensor(member.prior).clamp(min=LEAST_SHARE) for member in members])

    def of_members(self, party: str, split: str, mixture: Mixture) -> Tensor:
        """Return each member's probabilities `(K, N, L)` with its temperature, its shares of labels divided out."""
        logs = (self.logs[party, split] / mixture.temperatures[:, None, None]).log_softmax(2)
        return (logs - mixture.strength * self.priors.log()[:, None]).softmax(2)

    def mixed(self, party: str, split: str, mixture: Mixture) -> Tensor:
        """Return the average `(N, L)`, with the site's own shares put in."""
        mean = (mixture.weights[:, None, None] * self.of_members(party, split, mixture)).sum(0)
        weighed: Tensor = mean * self.site[party] ** mixture.strength
        return weighed / weighed.sum(1, keepdim=True)


def mixtures(outputs: Outputs, requester: str, own: int) -> list[Mixture]:
    """Return all that are tried, as the `requester` learns them on its validation data."""
    members, labels = len(outputs.priors), outputs.labels[requester, "validation"]
    even, cold = torch.full((members,), 1 / members), torch.ones(members)
    found = []
    for strength in (0.0, 1.0):

        def learnt(temperatures: Tensor, strength: float = strength) -> list[Tensor]:
            own_way = Mixture("", temperatures, even, strength)
            at_home = outputs.of_members(requester, "validation", own_way)
            return [descended(at_home, labels), greedy(at_home, labels)]

        warm = temperatures_of(outputs, requester, strength)
        for size in range(2, members):
            for some in combinations(range(members), size):
                weights = torch.zeros(members)
                weights[list(some)] = 1 / size
                found.append(Mixture("subsets", cold, weights, strength))
        favoured = []
        for share in (0.5, 0.75):
            weights = torch.full((members,), (1 - share) / (members - 1))
            weights[own] = share
            favoured.append(weights)
        found += [Mixture("weights", cold, weights, strength) for weights in [*learnt(cold), *favoured]]
        found += [Mixture("temperatures", all_of, even, strength) for all_of in (warm, 2 * cold, 4 * cold)]
        found += [Mixture("temperatures and weights", warm, weights, strength) for weights in learnt(warm)]
        if strength:
            found += [Mixture("half the shares", all_of, even, strength / 2) for all_of in (cold, warm)]
    return found


def temperatures_of(outputs: Outputs, requester: str, strength: float) -> Tensor:
    """Return for each member the temperature by which it is most believable on the requester's validation data."""
    labels, members = outputs.labels[requester, "validation"], len(outputs.priors)
    best = []
    for member in range(members):
        alone = torch.eye(members)[member]

        def loss(temperature: float, alone: Tensor = alone) -> float:
            warm = torch.full((members,), temperature)
            return surprise(outputs.mixed(requester, "validation", Mixture("", warm, alone, strength)), labels)

        best.append(min(TEMPERATURES.tolist(), key=loss))
    return torch.tensor(best)


def surprise(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood."""
    return float(-probabilities[torch.arange(len(labels)), labels].clamp(min=1e-6).log().mean())


def descended(members: Tensor, labels: Tensor) -> Tensor:
    """Return the weights of least surprise, a little drawn to equal ones, for probabilities `(K, N, L)`."""
    raw = torch.zeros(len(members), requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=100)
    picked = members[:, torch.arange(len(labels)), labels]

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -(raw.softmax(0) @ picked).clamp(min=1e-6).log().mean() + 0.01 * raw.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return raw.detach().softmax(0)


def greedy(members: Tensor, labels: Tensor) -> Tensor:
    """Return the weights that adding the member which helps most, again and again, comes to."""
    times, total = torch.zeros(len(members)), torch.zeros_like(members[0])
    for taken in range(1, ROUNDS + 1):
        best = min(range(len(members)), key=lambda member: surprise((total + members[member]) / taken, labels))
        times[best] += 1
        total = total + members[best]
    return times / ROUNDS


def extended(study: Study, asked: Asked, outputs: Outputs, seed: int) -> tuple[Asked, dict[str, str]]:
    """Return the fit's candidates and the mixtures as every party measures them; and the families by their ids."""
    tried = [
        Besides(
            mixture.family,
            lambda party, split, mixture=mixture: outputs.mixed(party, split, mixture),  # type: ignore[misc]
            corrected=bool(mixture.strength),
        )
        for mixture in mixtures(outputs, asked.requester, study.parties.index(asked.requester))
    ]
    return with_besides(study, asked, tried, outputs.logs, outputs.labels, seed)


@dataclass(frozen=True)
class Besides:
    """What is offered besides a fit's candidates: its probabilities `(N, L)` for a party's split."""

    family: str
    outputs: Callable[[str, str], Tensor]
    corrected: bool


def with_besides(
    study: Study,
    asked: Asked,
    tried: Sequence[Besides],
    logs: Mapping[tuple[str, str], Tensor],
    labels: Mapping[tuple[str, str], Tensor],
    seed: int,
) -> tuple[Asked, dict[str, str]]:
    """Return the fit's candidates and what was `tried` as every party measures it; and the families by their ids.

    `logs` are the members' log-probabilities `(K, N, L)`, `labels` the truth `(N,)`, by party and split.
    """
    first, everyone = len(asked.candidates.candidates), tuple(range(len(study.parties)))
    ids = [f"c{first + place:02d}" for place in range(len(tried))]
    added = [
        Candidate(
            id=id,
            kind="corrected" if one.corrected else "ensemble",
            members=everyone,
            site_prior=(1 / len(study.labels),) * len(study.labels) if one.corrected else None,
        )
        for id, one in zip(ids, tried, strict=True)
    ]
    candidates = asked.candidates.model_copy(update={"candidates": (*asked.candidates.candidates, *added)})
    evaluations = {}
    for party, evaluation in asked.evaluations.items():
        splits = {}
        for split in SPLITS:
            truth, own = labels[party, split], logs[party, split][evaluation.own or 0]
            said = [own, *(one.outputs(party, split) for one in tried)]
            right = np.stack([(each.argmax(1) == truth).double().numpy() for each in said])
            measured = intervals(right, [0], seed=seed, most=1.0)[1:]
            scores = {
                id: Score(**value.model_dump(), difference=differences[0])
                for id, (value, differences) in zip(ids, measured, strict=True)
            }
            before = evaluation.splits[split]
            splits[split] = before.model_copy(update={"scores": {**before.scores, **scores}})
        evaluations[party] = evaluation.model_copy(update={"splits": splits})
    families = {id: one.family for id, one in zip(ids, tried, strict=True)}
    return asked.model_copy(update={"candidates": candidates, "evaluations": evaluations}), families


def measured(study: Study, seed: int, folder: Path) -> dict[str, list[tuple[list[float], bool]]]:
    """Return for each choice of families, by requester, what was chosen is worth, and whether it is of them."""
    with tempfile.TemporaryDirectory() as trained_here:
        outputs = Outputs(study, seed, trained(study, seed, Path(trained_here)))
    found: dict[str, list[tuple[list[float], bool]]] = defaultdict(list)
    for asked in kept(study, seed, folder).asked:
        whole, families = extended(study, asked, outputs, seed)
        compare(whole, families, {NONE: (), **{name: (name,) for name in FAMILIES}, ALL: FAMILIES}, found)
    return found


def compare(
    whole: Asked,
    families: Mapping[str, str],
    offers: Mapping[str, tuple[str, ...]],
    found: dict[str, list[tuple[list[float], bool]]],
) -> None:
    """Add to `found` for each of `offers` (families by name) what is chosen is worth, and whether it is of them."""
    for name, allowed in offers.items():
        ids = {one.id for one in whole.candidates.candidates if families.get(one.id, NONE) in (NONE, *allowed)}
        some = restricted(whole, ids)
        chosen = choose(some.candidates, some.evaluations, requester=some.requester).chosen
        gained = worth(some, chosen)
        values = [gained.mean, gained.home, gained.away, gained.regret, gained.optimism, gained.lost]
        found[name].append((values, chosen in families))


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=CARRIED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--kept", type=Path, required=True, help="the folder of choice.py's evaluations")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, every = Console(width=140), {}
    table = Table("study", "offered besides", *MEASURED, "taken")
    for name in options.studies:
        study, runs = CARRIED[name](), []
        for seed in range(options.first, options.first + options.seeds):
            runs.append(measured(study, seed, options.kept))
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = runs
        add_rows(table, name, runs)
    console.print(table)
    if options.json is not None:
        write_json(options.json, "members", every, seeds=options.seeds, first=options.first)
    return 0


def add_rows(table: Table, study: str, runs: list[dict[str, list[tuple[list[float], bool]]]]) -> None:
    """Add a row for what the fit offers by itself, and one for each other offer: what changes, with its interval."""
    drawn = np.random.default_rng(0).integers(0, len(runs), (RESAMPLES, len(runs)))
    base = by_seed(runs, NONE)
    for family in runs[0]:
        values, taken = by_seed(runs, family), Counter(mine for run in runs for _, mine in run[family])
        cells = [f"{value:.2f}" for value in values.mean(0)]
        if family != NONE:
            change = values - base
            low, high = np.quantile(change[drawn].mean(1), (0.025, 0.975), axis=0)
            cells = [f"{d:+.2f} ({a:+.2f} to {b:+.2f})" for d, a, b in zip(change.mean(0), low, high, strict=True)]
        cells[-1] = f"{sum(row[-1] for run in runs for row, _ in run[family]):.0f} of {taken.total()}"
        table.add_row(study, family, *cells, f"{taken[True]} of {taken.total()}")


def by_seed(runs: list[dict[str, list[tuple[list[float], bool]]]], family: str) -> np.ndarray:
    """Return the means over requesters, in points, `(seeds, measured)`."""
    return 100 * np.array([np.mean([row for row, _ in run[family]], axis=0) for run in runs])


if __name__ == "__main__":
    sys.exit(main())
