"""How parties should weigh in the choice where one has few validation patients: `few_patients.py heart --kept FOLDER`.

    python benchmarks/few_patients.py digits heart --seeds 5 --kept FOLDER

What the parties measured of each sample is in FOLDER, where `choice.py` keeps it, or measured first. Then a party's
validation and test patients are divided anew: so many, drawn at random, are for validation, the others for test. That
is done to the parties other than the requester, or to the requester alone, for whom the candidates that keep the own
level are then found anew. Of these the one with the best mean over the parties is taken, each weighed in a way:

- root: the root of its patients, as in the rule;
- alike: every party the same;
- saturating: n / (n + 4) for n patients, so that few count less and many alike.

Fits stay as they are, so that only the choice is looked at. Regret (see `choice.py`) and what is gained at home over
the own model are means over seeds, requesters and draws, in points of test data.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from choice import Asked, kept, kept_at
from common import write_json
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from studies import asked_for, studies_of

from suture_local.study.data import PartySamples, Study
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.rule import THRESHOLDS, Evidence

Floats = NDArray[np.float64]
#: So many patients are left for validation, None as many as there were; and how often they are drawn.
LEFT: tuple[int | None, ...] = (4, 8, None)
DRAWS = 40
WEIGHTS: Mapping[str, Callable[[Floats], Floats]] = {
    "root": np.sqrt,
    "alike": np.ones_like,
    "saturating": lambda patients: patients / (patients + 4),
}


@dataclass(frozen=True)
class Samples:
    """One party's scores `(candidates, N)` of one split, and whose each sample is `(N,)`, numbered from 0."""

    scores: Floats
    whose: NDArray[np.int64]

    @property
    def patients(self) -> int:
        """How many there are."""
        return len(np.unique(self.whose))

    def of(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return the samples that are chosen."""
        return Samples(self.scores[:, chosen], np.unique(self.whose[chosen], return_inverse=True)[1].reshape(-1))


Divided = tuple[Samples, Samples]


def divided_anew(both: Divided, left: int | None, rng: np.random.Generator) -> Divided:
    """Return validation and test samples of the same patients; `left` of them, drawn at random, are for validation."""
    validation, test = both
    scores = np.concatenate([validation.scores, test.scores], axis=1)
    every = Samples(scores, np.concatenate([validation.whose, validation.patients + test.whose]))
    drawn = rng.permutation(every.patients)[: validation.patients if left is None else left]
    chosen = np.isin(every.whose, drawn)
    return every.of(chosen), every.of(~chosen)


def keeping_up(home: Samples, reference: int, *, seed: int) -> list[int]:
    """Return the candidates that keep the own level on these validation samples, by the rule's thresholds."""
    level = abs(float(home.scores[reference].mean()))
    found = []
    for at, (_, against) in enumerate(intervals(home.scores, (reference,), seed=seed, patients=home.whose, most=1.0)):
        difference = against[reference]
        if (
            at != reference
            and difference.high >= -THRESHOLDS.close * level
            and difference.value >= -THRESHOLDS.margin * level
        ):
            found.append(at)
    return found or [reference]


def worth(
    parties: Sequence[Divided], pool: list[int], reference: int, weigh: Callable[[Floats], Floats]
) -> list[float]:
    """Return regret and what is gained at home, in points; the requester is the first of `parties`."""
    values = np.array([validation.scores.mean(axis=1) for validation, _ in parties])
    tests = np.array([test.scores.mean(axis=1) for _, test in parties])
    weights = weigh(np.array([validation.patients for validation, _ in parties], dtype=np.float64))
    means, truth = weights @ values, tests.mean(axis=0)
    chosen = max(pool, key=lambda at: means[at])
    return [100 * float(truth.max() - truth[chosen]), 100 * float(tests[0, chosen] - tests[0, reference])]


def cases(study: Study, seed: int, folder: Path, epochs: int | None) -> Iterator[tuple[Asked, dict[str, Divided]]]:
    """Yield each requester with what was measured of every party's samples; the requester's come first."""
    every, at, data = kept(study, seed, folder, epochs=epochs).asked, kept_at(study, seed, folder), study.divide(seed)
    for asked in every:
        files = {
            party: at.with_suffix("") / asked.requester / party / "scores.safetensors" for party in asked.evaluations
        }
        if all(file.is_file() for file in files.values()):
            first = {party: _read(files[party], data[party]) for party in files}
            yield asked, {asked.requester: first.pop(asked.requester), **first}


def _read(file: Path, data: PartySamples) -> Divided:
    kept_scores = load_file(file)
    whose = np.arange(len(data.split)) if data.group is None else np.unique(data.group, return_inverse=True)[1]
    both = []
    for split in ("validation", "test"):
        own = Samples(kept_scores[split].astype(np.float64), whose.reshape(-1)[data.split == split])
        both.append(own.of(np.ones(len(own.whose), dtype=bool)))
    return both[0], both[1]


def drawn_worths(
    asked: Asked, samples: Mapping[str, Divided], *, at_home: bool, left: int | None, seed: int
) -> dict[str, list[list[float]]]:
    """Return for each way to weigh what every draw was worth."""
    rng = np.random.default_rng(seed)
    own = asked.evaluations[asked.requester]
    evidence = Evidence(asked.candidates, own, [other for other in asked.evaluations.values() if other is not own])
    reference = int(evidence.reference[1:])
    worths = defaultdict(list)
    for _ in range(DRAWS):
        parties = [
            divided_anew(both, left, rng) if (party == asked.requester) == at_home else both
            for party, both in samples.items()
        ]
        pool = keeping_up(parties[0][0], reference, seed=seed)
        for name, weigh in WEIGHTS.items():
            worths[name].append(worth(parties, pool, reference, weigh))
    return worths


def main() -> int:
    """Run the benchmark and print its table."""
    options = asked_for(__doc__)
    torch.set_num_threads(1)  # figures do not depend on the machine's cores
    console, every = Console(width=140), {}
    table = Table("study", "divided anew", "patients left for validation", *WEIGHTS, title="regret; gained at home")
    for name, study, seeds in studies_of(options):
        asking = [(seed, case) for seed in seeds for case in cases(study, seed, options.kept, options.epochs)]
        for at_home in (False, True):
            for left in LEFT:
                worths = defaultdict(list)
                for seed, (asked, samples) in asking:
                    for way, own in drawn_worths(asked, samples, at_home=at_home, left=left, seed=seed).items():
                        worths[way] += own
                row = {way: np.mean(own, axis=0).tolist() for way, own in worths.items()}
                who, many = "the requester" if at_home else "the others", "as many" if left is None else str(left)
                every[f"{name}, {who}, {many}"] = row
                table.add_row(name, who, many, *(f"{regret:.2f}; {home:+.2f}" for regret, home in row.values()))
    console.print(table)
    if options.json is not None:
        write_json(options.json, "few_patients", every, seeds=options.seeds, first=options.first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
