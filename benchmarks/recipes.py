"""The published method beside this one: `python benchmarks/recipes.py digits heart --seeds 5 --kept FOLDER`.

Each party in turn asks twice for a stitched ensemble of the same networks: with `recipe="paper"`, which has stitches in
closed form at one pair of layers or at two, double-batched, and with all that there is otherwise. One rule chooses from
either, by validation data of all parties: from the paper's at one pair alone, at two alone, and from both. Shown are
means of the metric on test data over requesters and seeds: at home, elsewhere, over all parties, how far that is from
what is chosen otherwise (paired, with a 95 % interval over seeds by Student's t), and how often the requester surely
lost. The best candidate that there was, by the mean over the parties' test data, is what each could have reached.

What is done is kept in FOLDER, the same as that of `choice.py`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from choice import Asked, chosen_today, kept, restricted
from common import over_seeds, write_json
from rich.console import Console
from rich.table import Table
from studies import asked_for, studies_of

from suture_contract.documents import Candidate
from suture_local.study.data import Study

#: At home, elsewhere, over all parties, and 1 where the requester surely lost.
Cell = tuple[float, float, float, float]
OURS, BEST = "ours: chosen", "best there was"
#: What the paper's recipe offers, by how many pairs of layers it joins.
PAIRS = {"one pair": (1,), "two pairs": (2,), "either": (1, 2)}


def measured(study: Study, seed: int, folder: Path, epochs: int | None) -> dict[str, list[Cell]]:
    """Return by row what each requester gets."""
    cells: dict[str, list[Cell]] = defaultdict(list)
    for ours, paper in zip(
        kept(study, seed, folder, epochs=epochs).asked, kept(study, seed, folder, "paper", epochs).asked, strict=True
    ):
        candidates = ours.candidates.candidates
        cells["own model"].append(cell(ours, candidates[study.parties.index(ours.requester)].id))
        cells["plain ensemble"].append(cell(ours, candidates[len(study.parties)].id))
        for name, pairs in PAIRS.items():
            offered = restricted(paper, {own.id for own in paper.candidates.candidates if is_offered(own, pairs)})
            cells[f"paper, {name}: chosen"].append(cell(offered, chosen_today(offered)))
        cells[f"paper: {BEST}"].append(cell(paper, best_of(paper)))
        cells[OURS].append(cell(ours, chosen_today(ours)))
        cells[f"ours: {BEST}"].append(cell(ours, best_of(ours)))
    return cells


def is_offered(candidate: Candidate, pairs: Sequence[int]) -> bool:
    """Return whether a candidate is no stitched one, or joins so many pairs of layers."""
    return candidate.kind != "stitched" or len(candidate.matches) in pairs


def best_of(asked: Asked) -> str:
    """Return the candidate that is the best by the mean over the parties' test data."""
    return max((own.id for own in asked.candidates.candidates), key=lambda id: cell(asked, id)[2])


def cell(asked: Asked, id: str) -> Cell:
    """Return what a candidate is worth to its requester, the others, and all."""
    scores = {party: own.splits["test"].scores[id] for party, own in asked.evaluations.items()}
    away = [score.value for party, score in scores.items() if party != asked.requester]
    home = scores[asked.requester]
    lost = float(home.difference is not None and home.difference.high < 0)
    return home.value, float(np.mean(away)), float(np.mean([score.value for score in scores.values()])), lost


def add_rows(table: Table, study: str, runs: Sequence[Mapping[str, Sequence[Cell]]]) -> None:
    """Add a row for each way to choose."""
    values = {row: np.array([np.mean(run[row], axis=0) for run in runs]) for row in runs[0]}
    for row, by_seed in values.items():
        lost, asked = sum(own[3] for run in runs for own in run[row]), sum(len(run[row]) for run in runs)
        mean, low, high = over_seeds(by_seed[:, 2] - values[OURS][:, 2])
        less = "" if row == OURS else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        table.add_row(study, row, *(f"{value:.3f}" for value in by_seed.mean(0)[:3]), less, f"{lost:.0f} of {asked}")
    table.add_section()


def main() -> int:
    """Run the benchmark and print its table."""
    options = asked_for(__doc__, least_seeds=2)
    torch.set_num_threads(1)  # figures do not depend on the machine's cores
    console, every = Console(width=140), {}
    table = Table("study", "model", "at home", "elsewhere", "mean", "above ours", "surely lost at home")
    for name, study, seeds in studies_of(options):
        runs = []
        for seed in seeds:
            runs.append(measured(study, seed, options.kept, options.epochs))
            console.print(f"{name}, seed {seed} done", style="dim")
        every[name] = runs
        add_rows(table, name, runs)
    console.print(table)
    if options.json is not None:
        write_json(options.json, "recipes", every, seeds=options.seeds, first=options.first, epochs=options.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
