"""Every way to use several parties' models, side by side: `python benchmarks/study.py digits --seeds 5`.

    python benchmarks/study.py digits heart cells --data FOLDER

Each party's data are divided into training, validation and test samples, and each party trains a network of a design
of its own. Compared are, on the same divisions and seeds: each model alone, the plain ensemble, distillation, weight
averaging, federated averaging, training on all data together, and stitching, with each party as the requester in turn.
Writes a page with the tables, plots, and JSON with versions, seeds and hardware. What is done is kept beside them: the
same command goes on after a study was killed, and seeds that were run one by one come into one page. On own data,
`suture simulate` does the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from common import write_json
from rich.console import Console
from studies import CARRIED, cells_study

from suture_contract.errors import SutureError
from suture_contract.files import write_text
from suture_local.study import plots, table
from suture_local.study.data import Study
from suture_local.study.play import notes_on, play
from suture_local.study.results import SeedResult
from suture_local.study.run import Setup
from suture_local.study.scores import METRICS
from suture_local.study.summary import Summary, summarise

KNOWN = ("digits", "heart", "cells")


def write(study: Study, results: Sequence[SeedResult], setup: Setup, out: Path) -> Summary:
    """Write page, plots and JSON into the folder for results; return the summary."""
    notes, metric = notes_on(study, results), METRICS[study.task]
    summary = summarise(study.parties, results)
    names = []
    for asked in summary.asked:
        names.append(f"{study.name}-{asked.requester}.svg")
        write_text(out / names[-1], plots.plot(asked, summary, study.parties, metric))
    write_text(out / f"{study.name}.md", table.markdown(study.name, metric, study.parties, summary, notes, names))
    write_json(
        out / f"{study.name}.json",
        "study",
        table.document(study.task, metric, study.parties, summary, results, notes),
        seeds=[result.seed for result in results],
        epochs=setup.epochs,
        device=str(setup.device),
    )
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=KNOWN, metavar="STUDY", help=", ".join(KNOWN))
    parser.add_argument("--data", type=Path, help="folder with the cells' images")
    parser.add_argument("--seeds", type=int, default=5, help="at most so many (default 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of each training, by default those of the kind of data")
    parser.add_argument("--leave-out", action="store_true", help="leave each party out in turn, where there are three")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("study-results"), help="folder for results")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    if options.data is None and "cells" in options.studies:
        parser.error("cells need --data FOLDER")
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    setup, missed = Setup(torch.device(name), options.epochs, leave_out=options.leave_out), 0
    console = Console(width=160 if not sys.stdout.isatty() else None)
    makers = {**CARRIED, "cells": lambda: cells_study(options.data)}
    try:
        for study in (makers[name]() for name in options.studies):
            for results in play(study, setup, seeds, options.out, console):
                summary = write(study, results, setup, options.out)
            shown = table.tables(METRICS[study.task], study.parties, summary)
            table.show(console, study.name, [*shown, ("targets", *table.targets(summary))])
            for note in notes_on(study, results):
                console.print(f"- {note}")
            missed += summary.missed
    except SutureError as error:
        console.print(f"[red]{error}[/red]")
        return 2
    console.print(f"{missed} targets missed" if missed else "all targets met")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
