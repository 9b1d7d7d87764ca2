"""What privacy costs: the chosen and the best candidate with noise and without, and what an attack still reads.

    python benchmarks/privacy.py digits heart cells --data FOLDER --json privacy.json

Each party trains a network, and each asks once for a fit: exact, and with noise for epsilon 16, 8, 4 and 2 at delta
1e-5. All parties evaluate all candidates exactly, and the default rule chooses. `chosen` and `best` (on all parties'
validation data) are measured on test data, at home and as the mean over the others, beside the requester's own model
and the plain ensemble. `read` is the error of the best image that a spy's network gets out of such a fit, as a part of
the distance between two patients: near 0 it is a patient, around 1 or above it is nobody. It is read once for each
setting, by the first attack of tests/security/attacks.

Cells are fitted without refinement in all rows. So there the exact row is that of closed forms, as noise has them, too.

A row is printed as soon as it is measured, and kept in --json: called again, it goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_json
from rich.console import Console
from rich.table import Table
from studies import CARRIED, cells_study

from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_local.study.data import Study
from suture_local.study.run import member_of
from suture_local.study.training import machine_of, recipe_of, train
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, Member, fit

EPSILONS: tuple[float | None, ...] = (None, 16.0, 8.0, 4.0, 2.0)
DELTA = 1e-5
CPU = torch.device("cpu")
Row = dict[str, Any]


def promise(epsilon: float | None) -> Privacy | None:
    """Return what noise is to promise; None for an exact fit."""
    return None if epsilon is None else Privacy(epsilon=epsilon, delta=DELTA)


def trained(study: Study, seed: int, folder: Path, epochs: int | None) -> list[Member]:
    """Return each party's model, trained for so many epochs."""
    members = []
    for design, own in enumerate(study.divide(seed).values()):
        part, shape = own.part("train", CPU), own.inputs.shape[1:]
        recipe = recipe_of(study.task, len(shape) - 1, study.augment, epochs)
        module = train(
            study.untrained(design, shape, seed),
            part,
            [own.part("validation", CPU)],
            recipe,
            machine_of(CPU, shape),
            seed=seed,
        )
        members.append(member_of(study, design, module, part, folder / f"{design}.safetensors"))
    return members


def measured(study: Study, seed: int, epochs: int | None, known: Sequence[Row]) -> Iterator[Row]:
    """Yield a row for each requester and setting of a seed that is not among those `known`."""
    wanted = [
        (party, epsilon)
        for party in study.parties
        for epsilon in EPSILONS
        if not any((row["seed"], row["party"], row["epsilon"]) == (seed, party, epsilon) for row in known)
    ]
    if not wanted:
        return
    data = study.divide(seed)
    datasets = {party: study.dataset(party, own) for party, own in data.items()}
    with tempfile.TemporaryDirectory() as folder:
        members = trained(study, seed, Path(folder), epochs)
        for party, epsilon in wanted:
            own, options = study.parties.index(party), FitOptions(seed=seed, refine=study.task != "segmentation")
            try:
                fitted = fit(members, datasets[party], options=options, own=own, privacy=promise(epsilon))
            except SutureError as error:  # too little to learn from: this party cannot ask
                yield {"seed": seed, "party": party, "epsilon": epsilon, "skipped": error.code}
                continue
            found = {
                name: evaluate(members, fitted, one, own=index) for index, (name, one) in enumerate(datasets.items())
            }
            choice = choose(fitted.candidates, found, requester=party)
            ids = [candidate.id for candidate in fitted.candidates.candidates]
            best = max(ids, key=lambda id: sum(one.splits["validation"].scores[id].value for one in found.values()))
            row: Row = {"seed": seed, "party": party, "epsilon": epsilon, "kind": fitted.candidate(choice.chosen).kind}
            row["patients"] = datasets[party].patients("train") + datasets[party].patients("validation")
            ways = {"chosen": choice.chosen, "best": best, "own": ids[own], "plain": ids[len(members)]}
            for name, id in ways.items():
                scores = {other: one.splits["test"].scores[id].value for other, one in found.items()}
                row[name] = [scores.pop(party), float(np.mean(list(scores.values())))]
            yield row


def reading_errors() -> dict[float | None, float]:
    """Return by epsilon what the attack on one-patient bins reads from a fit of 160 patients."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.security.attacks import reading, spies, victim
    from tests.security.attacks.test_attacks import CHANNELS, narrow
    from tests.security.attacks.victim import patients

    own = patients()
    with tempfile.TemporaryDirectory() as folder:
        spy = victim.trained(spies.Spy(narrow(own), CHANNELS), patients(seed=3))
        both = victim.members(own, spy, Path(folder))
        found = {}
        for epsilon in EPSILONS:
            result = victim.fitted(both, own, min_patients=1, privacy=promise(epsilon))
            found[epsilon] = reading.read_stitches(result.stitches, CHANNELS, own.flat()).share
    return found


def table(study: str, rows: Sequence[Row], read: Mapping[float | None, float]) -> Table:
    """Return the means over seeds and requesters, in points of the metric."""
    by_setting: dict[float | None, list[Row]] = defaultdict(list)
    for row in rows:
        if "skipped" not in row:
            by_setting[row["epsilon"]].append(row)
    seeds = len({row["seed"] for row in rows})
    shown = Table(title=f"{study}, {seeds} seeds", title_justify="left")
    for column in ("epsilon", "chosen: home", "others", "best: home", "others", "own: home", "plain: home", "others"):
        shown.add_column(column)
    shown.add_column("chosen kinds")
    shown.add_column("read")
    for epsilon in EPSILONS:
        own = by_setting[epsilon]
        if not own:
            continue
        means = {name: np.mean([row[name] for row in own], axis=0) for name in ("chosen", "best", "own", "plain")}
        pairs = (means["chosen"], means["best"], means["own"][:1], means["plain"])
        kinds = [row["kind"] for row in own]
        shown.add_row(
            "exact" if epsilon is None else f"{epsilon:g}",
            *(f"{100 * value:.1f}" for pair in pairs for value in pair),
            ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
            f"{read[epsilon]:.2f}",
        )
    return shown


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=("digits", "heart", "cells"))
    parser.add_argument("--data", type=Path, help="folder with the cells' images")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of each training, by default those of the study")
    parser.add_argument("--json", type=Path, help="keep the rows here, and go on from those that are there")
    asked = parser.parse_args()
    if asked.data is None and "cells" in asked.studies:
        parser.error("cells need --data FOLDER")
    console = Console(width=140)
    kept = json.loads(asked.json.read_text(encoding="utf-8"))["results"] if asked.json and asked.json.exists() else {}
    every: dict[str, list[Row]] = {name: list(kept.get(name, ())) for name in (*kept, *asked.studies)}
    read = reading_errors()
    for name in asked.studies:
        study = cells_study(asked.data) if name == "cells" else CARRIED[name]()
        for seed in range(asked.seeds):
            for row in measured(study, seed, asked.epochs, every[name]):
                every[name].append(row)
                console.print(name, json.dumps(row), soft_wrap=True, highlight=False)
                if asked.json is not None:
                    settings = {"delta": DELTA, "epochs": asked.epochs}
                    write_json(asked.json, "privacy", every, **settings)
        console.print(table(name, [row for row in every[name] if row["seed"] < asked.seeds], read))
    return 0


if __name__ == "__main__":
    sys.exit(main())
