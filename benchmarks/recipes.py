"""The published method beside this one: `python benchmarks/recipes.py digits heart --seeds 5`.

Each party in turn asks twice for a stitched ensemble of the same networks: with `recipe="paper"`, which has stitches in
closed form at one pair of layers or at two, double-batched, and with all that there is otherwise. One rule chooses from
either, by validation data of all parties. What is shown are means of the metric on test data over seeds and requesters:
at home, elsewhere, and how often the requester surely lost (paired interval below zero). The best candidate that there
was, by the mean over the parties' test data, says what each recipe could have reached.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from common import write_json
from contribution import trained
from rich.console import Console
from rich.table import Table
from studies import CARRIED

from suture_contract.documents import Evaluation
from suture_contract.fit_options import FitOptions
from suture_local.study.data import Study
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import fit

#: By row, for each requester: the metric at home and elsewhere, and 1 where the requester surely lost.
Cells = dict[str, list[tuple[float, float, float]]]
RECIPES = ("paper", "full")


def measured(study: Study, seed: int) -> Cells:
    """Return what each requester gets."""
    datasets = {party: study.dataset(party, own) for party, own in study.divide(seed).items()}
    cells: Cells = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        members = trained(study, seed, Path(folder))
        for index, requester in enumerate(study.parties):
            if datasets[requester].n("train") and len(set(datasets[requester].targets("train"))) < 2:
                continue  # a hospital with one class fits no refined stitches
            for recipe in RECIPES:
                fitted = fit(
                    members, datasets[requester], own=index, options=FitOptions.read({"seed": seed, "recipe": recipe})
                )
                evaluations = {
                    party: evaluate(members, fitted, own, own=number)
                    for number, (party, own) in enumerate(datasets.items())
                }
                chosen = choose(fitted.candidates, evaluations, requester=requester).chosen
                ids = [candidate.id for candidate in fitted.candidates.candidates]
                best = max(ids, key=lambda id: np.mean([_value(own, id) for own in evaluations.values()]))
                add = {f"{recipe}: chosen": chosen, f"{recipe}: best there was": best}
                if recipe == "full":
                    add |= {"own model": ids[index], "plain ensemble": ids[len(members)]}
                for row, id in add.items():
                    cells[row].append(_cell(evaluations, requester, id))
    return cells


def _cell(evaluations: dict[str, Evaluation], requester: str, id: str) -> tuple[float, float, float]:
    away = [_value(own, id) for party, own in evaluations.items() if party != requester]
    difference = evaluations[requester].splits["test"].scores[id].difference
    lost = float(difference is not None and difference.high < 0)
    return _value(evaluations[requester], id), float(np.mean(away)), lost


def _value(evaluation: Evaluation, id: str) -> float:
    return evaluation.splits["test"].scores[id].value


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=CARRIED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    asked = parser.parse_args()
    console, every = Console(width=100), {}
    table = Table("study", "model", "at home", "elsewhere", "mean", "surely lost at home")
    for name in asked.studies:
        study = CARRIED[name]()
        cells: Cells = defaultdict(list)
        for seed in range(asked.seeds):
            for row, values in measured(study, seed).items():
                cells[row] += values
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = cells
        for row in ("own model", "plain ensemble", *(row for row in cells if ":" in row)):
            home, away, lost = np.mean(cells[row], axis=0)
            count = len(cells[row])
            table.add_row(
                name, row, f"{home:.3f}", f"{away:.3f}", f"{(home + away) / 2:.3f}", f"{lost * count:.0f} of {count}"
            )
    console.print(table)
    if asked.json is not None:
        write_json(asked.json, "recipes", every, seeds=asked.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
