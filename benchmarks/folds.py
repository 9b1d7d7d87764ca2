"""Whether cross-fitting, voting or simplicity choose better: `python benchmarks/folds.py heart --kept FOLDER`.

What the parties measured of each validation sample is in FOLDER, where `choice.py` keeps it, or measured first. Other
rules than today's then choose from the same evaluations, all among the candidates that keep the requester's own level.
Where FOLDER has evaluations without their samples, those rules are left out that need the latter (the first two):

- cross-fitted kinds: in random halves of each party's patients, one half picks the best candidate of each kind, the
  other one scores the picks, and the other way round; of the kind that is best so, the best on all patients is taken;
- voted: the candidate that is the best in most of the halves;
- shrunk: values are drawn half-way to the mean of their kind;
- simplest within k standard errors: of those whose distance from the best is within so much, the first. The error is
  that of the best one's paired difference from each party's own model, as documents have it.

A kind is what a candidate is, whether it is refined, gated, has a member withdraw, and has each site's own shares of
labels. Compared on test data are regret and optimism (see `choice.py`) as means over seeds and requesters, in points,
and how they change, with 95 % intervals over seeds. What cannot be won is shown beside them: the rule that knows test
data too, and chooses by both; the optimism of the own models at home, among which nobody chose; and that of an honest
estimate from validation data alone, which half of the patients choose for and the other half measures.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choice import Asked, kept, kept_at, optimism_of_own, worth
from common import write_json
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from studies import asked_for, studies_of

from suture_contract.documents import Candidate
from suture_local.study.data import Study
from suture_stitching.evaluation.rule import Evidence, signed
from suture_stitching.evaluation.select import choose

Floats = NDArray[np.float64]
HALVINGS, RESAMPLES = 50, 4000
OF_SAMPLES = ("cross-fitted kinds", "voted")
TODAY, HINDSIGHT = "today's rule", "(by validation and test data)"


@dataclass(frozen=True)
class Case:
    """One requester of one seed: what all measured, and each sample's score `(candidates, N)` by party, if known."""

    asked: Asked
    scores: Mapping[str, Floats] | None
    seed: int

    @cached_property
    def evidence(self) -> Evidence:
        """What the rule sees."""
        own = self.asked.evaluations[self.asked.requester]
        return Evidence(self.asked.candidates, own, [one for one in self.asked.evaluations.values() if one is not own])

    @cached_property
    def pool(self) -> list[int]:
        """The candidates that keep the own level, or else the own model alone."""
        every, own = self.asked.candidates.candidates, self.evidence.reference
        kept = [at for at, one in enumerate(every) if one.id != own and self.evidence.keeps_up(one.id)]
        return kept or [int(own[1:])]

    @cached_property
    def weights(self) -> dict[str, float]:
        """What each party counts for: the root of its patients."""
        roots = {party: own.splits["validation"].n ** 0.5 for party, own in self.asked.evaluations.items()}
        return {party: root / sum(roots.values()) for party, root in roots.items()}

    @cached_property
    def values(self) -> Floats:
        """Each candidate's mean over all parties."""
        return np.array([self.evidence.everywhere(one.id) for one in self.asked.candidates.candidates])

    def error(self, at: int) -> float:
        """Return the standard error of a candidate's mean, paired with the own models'."""
        variance = 0.0
        for party, own in self.asked.evaluations.items():
            score = own.splits["validation"].scores[f"c{at:02d}"]
            interval = score.difference or score
            variance += (self.weights[party] * (interval.high - interval.low) / 3.92) ** 2
        return float(variance**0.5)

    @cached_property
    def halves(self) -> list[tuple[Floats, Floats]]:
        """The candidates' means in each half of the patients, for each of the halvings."""
        assert self.scores is not None
        rng, found = np.random.default_rng(self.seed), []
        for _ in range(HALVINGS):
            halves: tuple[Floats, Floats] = (np.zeros(len(self.values)), np.zeros(len(self.values)))
            for party, scores in self.scores.items():
                order = rng.permutation(scores.shape[1])
                for half, rows in zip(halves, np.array_split(order, 2), strict=True):
                    half += self.weights[party] * scores[:, rows].mean(1)
            found.append(halves)
        return found

    @cached_property
    def kinds(self) -> list[tuple[Any, ...]]:
        """Each candidate's kind."""
        return [_kind(one) for one in self.asked.candidates.candidates]


def _kind(one: Candidate) -> tuple[Any, ...]:
    gate = one.gate
    return (
        one.kind,
        one.refined,
        gate is not None,
        gate is not None and gate.withdraws is not None,
        bool(one.site_prior),
    )


def best(pool: list[int], values: Floats) -> int:
    """Return the best of the pool, of equals the first."""
    return max(pool, key=lambda at: values[at])


def cross_fitted(case: Case) -> int:
    """Return the best of the kind that is best on patients other than those who picked within it."""
    of: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for at in case.pool:
        of[case.kinds[at]].append(at)
    worths = {kind: np.mean([b[best(own, a)] + a[best(own, b)] for a, b in case.halves]) for kind, own in of.items()}
    return best(of[max(worths, key=lambda kind: worths[kind])], case.values)


def estimates(case: Case) -> tuple[float, float]:
    """Return how much better than on test data the chosen one looks, by all validation data and by cross-fitting.

    The latter is what half of the patients choose, measured on the other half. Parties weigh as in the rule.
    """
    chosen = f"c{RULES[TODAY](case):02d}"
    test = sum(case.weights[party] * signed(own, chosen, "test") for party, own in case.asked.evaluations.items())
    crossed = np.mean([[b[best(case.pool, a)], a[best(case.pool, b)]] for a, b in case.halves])
    return case.evidence.everywhere(chosen) - test, float(crossed) - test


def voted(case: Case) -> int:
    """Return the candidate that is the best in most halves."""
    votes = Counter(best(case.pool, half) for pair in case.halves for half in pair)
    return max(case.pool, key=lambda at: votes[at])


def shrunk(case: Case) -> int:
    """Return the best by values that are drawn to the mean of their kind."""
    of: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for at, kind in enumerate(case.kinds):
        of[kind].append(float(case.values[at]))
    drawn = np.array([(value + np.mean(of[kind])) / 2 for value, kind in zip(case.values, case.kinds, strict=True)])
    return best(case.pool, drawn)


def simplest(errors: float) -> Callable[[Case], int]:
    """Return the rule that takes the first whose distance from the best is within so many standard errors of it."""

    def rule(case: Case) -> int:
        top = best(case.pool, case.values)
        near = case.values[top] - errors * case.error(top)
        return next(at for at in case.pool if case.values[at] >= near)

    return rule


def hindsight(case: Case) -> int:
    """Return the best by the mean over parties of validation and test data together, whoever's level is lost."""

    def mean(id: str) -> float:
        both = [(own.splits["validation"], own.splits["test"]) for own in case.asked.evaluations.values()]
        return float(np.mean([(a.n * a.scores[id].value + b.n * b.scores[id].value) / (a.n + b.n) for a, b in both]))

    ids = [one.id for one in case.asked.candidates.candidates]
    return max(range(len(ids)), key=lambda at: mean(ids[at]))


RULES: dict[str, Callable[[Case], int]] = {
    TODAY: lambda case: int(
        choose(case.asked.candidates, case.asked.evaluations, requester=case.asked.requester).chosen[1:]
    ),
    "cross-fitted kinds": cross_fitted,
    "voted": voted,
    "shrunk": shrunk,
    **{f"simplest within {errors:g} standard errors": simplest(errors) for errors in (0.5, 1.0)},
    HINDSIGHT: hindsight,
}


def cases_of(study: Study, seed: int, folder: Path, epochs: int | None = None) -> list[Case]:
    """Return the requesters of a seed, from the folder where they are there."""
    every, at = kept(study, seed, folder, epochs=epochs).asked, kept_at(study, seed, folder).with_suffix("")
    return [Case(one, _scores(at / one.requester, study.parties), seed) for one in every]


def _scores(folder: Path, parties: Sequence[str]) -> dict[str, Floats] | None:
    """Return each validation sample's score, as the evaluations kept them; None where they did not."""
    paths = {party: folder / party / "scores.safetensors" for party in parties}
    if not all(path.is_file() for path in paths.values()):
        return None
    return {party: load_file(path)["validation"].astype(np.float64) for party, path in paths.items()}


def main() -> int:
    """Run the benchmark and print its table."""
    options = asked_for(__doc__)
    torch.set_num_threads(1)  # figures do not depend on the machine's cores
    console, every = Console(width=160), {}
    table = Table("study", "rule", "regret", "optimism", "at home", "elsewhere", "surely lost", "chosen as today")
    for name, study, seeds in studies_of(options):
        rows, own, looks = defaultdict(list), [], []
        for seed in seeds:
            cases = cases_of(study, seed, options.kept, options.epochs)
            own.append(100 * np.mean([optimism_of_own(case.asked) for case in cases]))
            if all(case.scores is not None for case in cases):
                looks.append(100 * np.mean([estimates(case) for case in cases], axis=0))
            for rule, choice in RULES.items():
                if rule in OF_SAMPLES and any(case.scores is None for case in cases):
                    continue
                rows[rule].append([_row(case, choice(case)) for case in cases])
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = {"rules": rows, "own models at home": own, "chosen, cross-fitted": np.array(looks).tolist()}
        _add(table, name, rows)
        console.print(f"{name}: own models at home, validation less test data: {np.mean(own):+.2f} points")
        if looks:
            whole, crossed = np.mean(looks, axis=0)
            console.print(f"{name}: the chosen one, likewise: {whole:+.2f}; cross-fitted: {crossed:+.2f}")
    console.print(table)
    if options.json is not None:
        write_json(options.json, "folds", every, seeds=options.seeds, first=options.first)
    return 0


def _row(case: Case, at: int) -> list[float]:
    gained = worth(case.asked, f"c{at:02d}")
    same = float(at == RULES[TODAY](case))
    return [*(100 * x for x in (gained.regret, gained.optimism, gained.home, gained.away)), gained.lost, same]


def _add(table: Table, study: str, rows: Mapping[str, list[list[list[float]]]]) -> None:
    """Add a row per rule: today's as it is, the others' as changes with intervals over seeds."""
    seeds = len(rows[TODAY])
    drawn = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
    base = np.array([np.mean(own, axis=0) for own in rows[TODAY]])
    for rule, by_seed in rows.items():
        if len(by_seed) < seeds:
            continue  # samples were not kept for all seeds
        values, asked = np.array([np.mean(own, axis=0) for own in by_seed]), sum(map(len, by_seed))
        cells = [f"{value:.2f}" for value in values.mean(0)[:4]]
        if rule != TODAY:
            change = values - base
            low, high = np.quantile(change[drawn].mean(1), (0.025, 0.975), axis=0)
            cells = [f"{d:+.2f} ({a:+.2f} to {b:+.2f})" for d, a, b in zip(change.mean(0), low, high, strict=True)][:4]
        lost, same = (sum(row[at] for own in by_seed for row in own) for at in (4, 5))
        table.add_row(study, rule, *cells, f"{lost:.0f} of {asked}", f"{same:.0f} of {asked}")


if __name__ == "__main__":
    sys.exit(main())
