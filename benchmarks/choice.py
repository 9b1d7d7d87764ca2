"""How well the choice is made: `python benchmarks/choice.py digits heart --seeds 5 --kept FOLDER`.

Each party in turn asks for a stitched ensemble, and all parties evaluate all candidates. Then the rule chooses by
validation data, and test data tell what the choice was worth. Both are means over the parties:

- regret: the best candidate's value on test data less the chosen one's;
- regret of those that keep up: the same, over those that lose at most 2 % there of the requester's own model's value;
- optimism: the chosen one's value on validation data less that on test data.

What is done is kept in FOLDER: the same command goes on after it was stopped, and another rule is tried on the same
evaluations in a second. Trains as `study.py` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from common import write_json
from contribution import trained
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from studies import CARRIED, cells_study

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.errors import SutureError
from suture_contract.files import read_text, write_text
from suture_local.study.data import Study
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.rule import Evidence, signed
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, Member, fit

#: Who loses at most this part of its own model's value keeps up.
KEPT = 0.02


class Asked(BaseModel):
    """What the parties measured when one of them asked."""

    requester: str
    candidates: CandidateSet
    evaluations: dict[str, Evaluation]


class Seed(BaseModel):
    """All requesters of one seed."""

    asked: list[Asked]


@dataclass(frozen=True)
class Worth:
    """What a choice was worth on test data: `home` and `away` are the chosen one's less the own model's there.

    `lost` is 1 where the requester surely lost, by the paired interval, else 0.
    """

    regret: float
    regret_of_those_that_keep_up: float
    optimism: float
    home: float
    away: float
    lost: float


def measured(study: Study, seed: int, folder: Path, *, declared: bool, epochs: int | None = None) -> Seed:
    """Return what all parties measured for `seed`, with each as the requester.

    Members that have not `declared` their shares of labels are corrected nowhere. What is done is kept in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    members = trained(study, seed, folder, epochs)
    if not declared:
        members = [
            replace(member, metadata=member.metadata.model_copy(update={"label_prior": None})) for member in members
        ]
    return measured_of(study, seed, members, folder)


def measured_of(study: Study, seed: int, members: Sequence[Member], folder: Path) -> Seed:
    """Return what all parties measured of the fits of these `members`, one of each party, with each as the requester.

    Those with one class cannot ask. What is done is kept in `folder`: a measurement that was stopped goes on.
    """
    datasets = {party: study.dataset(party, own) for party, own in study.divide(seed).items()}
    found = []
    for index, requester in enumerate(study.parties):
        at, options = folder / requester, FitOptions(seed=seed)
        try:
            fitted = fit(members, datasets[requester], own=index, options=options, checkpoint=at / "fit")
        except SutureError as error:
            if error.code != "dataset.one_class":
                raise
            continue
        evaluations = {
            party: evaluate(members, fitted, own, own=number, checkpoint=at / party)
            for number, (party, own) in enumerate(datasets.items())
        }
        found.append(Asked(requester=requester, candidates=fitted.candidates, evaluations=evaluations))
    return Seed(asked=found)


def kept(study: Study, seed: int, folder: Path, *, declared: bool, epochs: int | None = None) -> Seed:
    """Return what was measured for `seed`, from the folder where it is there."""
    path = kept_at(study, seed, folder, declared=declared)
    if path.is_file():
        return Seed.model_validate_json(read_text(path))
    found = measured(study, seed, path.with_suffix(""), declared=declared, epochs=epochs)
    write_text(path, found.model_dump_json(by_alias=True))
    return found


def kept_at(study: Study, seed: int, folder: Path, *, declared: bool = True) -> Path:
    """Return the file of what was measured; the folder beside it, of the same name, holds what it came from."""
    return folder / f"{study.name}-{seed}{'' if declared else '-undeclared'}.json"


def worth(asked: Asked, chosen: str) -> Worth:
    """Return what `chosen` was worth."""
    every = list(asked.evaluations.values())
    own = asked.evaluations[asked.requester]
    others = [one for one in every if one is not own]

    def mean(id: str, split: str, parties: Sequence[Evaluation] = every) -> float:
        return float(np.mean([signed(one, id, split) for one in parties]))  # type: ignore[arg-type]

    reference = Evidence(asked.candidates, own, others).reference
    level = mean(reference, "test", [own])
    every_id = [one.id for one in asked.candidates.candidates]
    keeping = [id for id in every_id if mean(id, "test", [own]) >= level - KEPT * abs(level)]
    difference = own.splits["test"].scores[chosen].difference
    return Worth(
        max(mean(id, "test") for id in every_id) - mean(chosen, "test"),
        max(0.0, max(mean(id, "test") for id in keeping) - mean(chosen, "test")),
        mean(chosen, "validation") - mean(chosen, "test"),
        mean(chosen, "test", [own]) - level,
        mean(chosen, "test", others) - mean(reference, "test", others),
        float(difference is not None and difference.high < 0),
    )


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=[*CARRIED, "cells"])
    parser.add_argument("--data", type=Path, help="folder with the cells' images")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--epochs", type=int, help="of each training, by default those of the kind of data")
    parser.add_argument("--undeclared", action="store_true", help="no member declares its shares of labels")
    parser.add_argument("--kept", type=Path, required=True, help="evaluations are kept in this folder")
    parser.add_argument("--json", type=Path, help="also write the results here")
    asked = parser.parse_args()
    if asked.data is None and "cells" in asked.studies:
        parser.error("cells need --data FOLDER")
    console, every = Console(width=120), {}
    table = Table(
        *("study", "who asks", "regret", "of those that keep up", "optimism"),
        *("at home, over the own model", "elsewhere, over it", "surely lost at home"),
    )
    for name in asked.studies:
        study = cells_study(asked.data) if name == "cells" else CARRIED[name]()
        found: dict[str, list[Worth]] = {}
        for seed in range(asked.first, asked.first + asked.seeds):
            for one in kept(study, seed, asked.kept, declared=not asked.undeclared, epochs=asked.epochs).asked:
                chosen = choose(one.candidates, one.evaluations, requester=one.requester).chosen
                found.setdefault(one.requester, []).append(worth(one, chosen))
            console.print(f"{name}, seed {seed} done", style="dim")
        found["all"] = [one for ones in found.values() for one in ones]
        every[name] = found
        for requester, ones in found.items():
            means = np.mean([astuple(one) for one in ones], axis=0)
            table.add_row(name, requester, *(f"{value:+.4f}" for value in means))
    console.print(table)
    if asked.json is not None:
        write_json(asked.json, "choice", every, seeds=asked.seeds, first=asked.first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
