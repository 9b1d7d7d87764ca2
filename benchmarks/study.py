"""Every way to use several parties' models, side by side: `python benchmarks/study.py digits --seeds 5`.

    python benchmarks/study.py digits heart cells --data FOLDER
    python benchmarks/study.py --task segmentation --party NORTH=north.npz --party SOUTH=south.npz --budget 60
    python benchmarks/study.py --task classification --party A=a.csv --party B=b.csv --label COLUMN

Each party's data are divided into training, validation and test samples, and each party trains a network of a design
of its own. Compared are, on the same divisions and seeds: each model alone, the plain ensemble, distillation, weight
averaging, federated averaging, training on all data together, and stitching, with each party as the requester in turn.
Writes a page with the tables, plots, and JSON with versions, seeds and hardware. Each seed's result is kept beside
them: the same command goes on after a study was killed, and seeds that were run one by one come into one page.

`.npz` files hold `images` (N, H, W[, C]) or (N, C, H, W), with `masks` (N, H, W) or `labels` (N,), and optionally
`group` (N,), whose samples stay in one split; `.csv` files have a header, and may have a column `group`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from common import write_json
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from studies import cells_study, digits_study, heart_study

from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_local.study import plots, table
from suture_local.study.data import Study
from suture_local.study.kept import KeptSeeds
from suture_local.study.reading import files_study
from suture_local.study.results import SeedResult
from suture_local.study.run import StudyRunner
from suture_local.study.scores import METRICS
from suture_local.study.summary import Summary, summarise
from suture_local.study.training import OnShare

KNOWN = ("digits", "heart", "cells")
#: Minutes for data that are not among the known ones.
BUDGET = 60.0
#: Part of the bounded time that is kept back for reading data, starting up and writing the results.
SPARE = 0.04


class Stages:
    """Shows which stage of a seed's work is being done, and how long each one took."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=1.0)
        self._started, self._name, self._title = time.perf_counter(), "", ""
        self.seconds: dict[str, float] = {}

    def begin(self, title: str) -> None:
        """Begin a seed."""
        self._title, self._name, self.seconds = title, "", {}

    def __call__(self, name: str) -> OnShare:
        """Begin a stage; return where to report the part of it that is done."""
        self.end()
        self._name, self._started = name, time.perf_counter()
        self._bar.update(self._task, description=f"{self._title}: {name}", completed=0.0)
        return lambda done: self._bar.update(self._task, completed=done)

    def end(self) -> None:
        """End the present stage."""
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._started
            if not self._bar.console.is_terminal:
                self._bar.console.print(f"{self._title}: {self._name}, {self.seconds[self._name]:.1f} s")
            self._name = ""


@contextmanager
def stages(console: Console) -> Iterator[Stages]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stages(bar)


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    seeds: range
    budget: float | None
    device: torch.device
    out: Path


def study_of(options: argparse.Namespace) -> list[Study]:
    """Return the studies that the command line names; raises `SutureError` or `SystemExit` for what cannot be."""
    if options.party:
        if options.task is None:
            raise SystemExit("--party needs --task segmentation or --task classification")
        pairs = [str(one).partition("=") for one in options.party]
        if len(pairs) < 2 or any(not name or not file for name, _, file in pairs):
            raise SystemExit("give --party NAME=FILE twice or more")
        files = {name: Path(file) for name, _, file in pairs}
        if len(files) < len(pairs):
            raise SystemExit("give every --party a name of its own")
        if odd := [name for name in files if not all(sign.isalnum() or sign in "-_. " for sign in name)]:
            raise SystemExit(f"a party's name has letters, digits, '-', '_', '.' and spaces only: {odd[0]!r}")
        for file in files.values():
            if not file.is_file():
                raise SystemExit(f"there is no file {file}")
        return [files_study(options.task, files, options.label)]
    names = options.studies or (KNOWN if options.data else ("digits",))
    if options.data is None and "cells" in names:
        raise SystemExit("cells need --data FOLDER")
    makers = {"digits": digits_study, "heart": heart_study}
    return [cells_study(options.data) if name == "cells" else makers[name]() for name in names]


def kept_seeds(study: Study, settings: Settings, console: Console) -> dict[int, SeedResult]:
    """Return the results of those seeds that an earlier run left in the folder for results."""
    kept, found = KeptSeeds(study, settings.device, settings.budget, settings.out), {}
    for seed in settings.seeds:
        if (result := kept.load(seed)) is not None:
            found[seed] = result
            console.print(f"{study.name}, seed {seed}: read from {kept.path(seed)}, not run again")
    return found


def measure(
    study: Study, found: Mapping[int, SeedResult], settings: Settings, console: Console, started: float
) -> Summary:
    """Run the seeds that were not `found`, within the study's time, which began at `started`; print what all gave.

    Results are kept, and the page is written, after every seed.
    """
    results, missing = dict(found), [seed for seed in settings.seeds if seed not in found]
    summary = write(study, settings, results) if results else None
    if missing:
        kept = KeptSeeds(study, settings.device, settings.budget, settings.out)
        with stages(console) as stage:
            stage.begin(study.name)
            stage("trying the networks")
            runner = StudyRunner(study, settings.device)
            seconds = None if settings.budget is None else settings.budget * 60 * (1 - SPARE)
            took = 0.0
            for index, seed in enumerate(missing):
                share = None
                if seconds is not None:
                    left = seconds - (time.perf_counter() - started)
                    # As many seeds as can be trained in full; one, cut short, where there is not time for that.
                    fitting = max(1, min(len(missing) - index, int(left / runner.full_seconds)))
                    if index and left < 0.8 * took:
                        break
                    share = left / fitting
                stage.begin(f"{study.name}, seed {seed}")
                with tempfile.TemporaryDirectory() as folder:
                    result = runner.run(seed, share, stage, Path(folder))
                stage.end()
                result.seconds.update(stage.seconds)
                took = sum(stage.seconds.values())
                results[seed] = result
                kept.save(result)
                summary = write(study, settings, results)
                console.print(f"{study.name}, seed {seed}: {took:.0f} s")
    assert summary is not None  # the first seed that is missing is run, however little time there is
    table.show(console, study.name, METRICS[study.task], study.parties, summary)
    for note in notes_on(study, results):
        console.print(f"- {note}")
    return summary


def notes_on(study: Study, results: Mapping[int, SeedResult]) -> list[str]:
    """Return the notes on the data and on the seeds."""
    return [*study.notes, *table.seed_notes([results[seed] for seed in sorted(results)])]


def write(study: Study, settings: Settings, found: Mapping[int, SeedResult]) -> Summary:
    """Write page, plots and JSON of the seeds found into the folder for results; return the summary."""
    results, notes, metric = [found[seed] for seed in sorted(found)], notes_on(study, found), METRICS[study.task]
    summary = summarise(study.parties, results)
    names = []
    for asked in summary.asked:
        names.append(f"{study.name}-{asked.requester}.svg")
        with replacing(settings.out / names[-1]) as temporary:
            temporary.write_text(plots.plot(asked, summary, study.parties, metric), encoding="utf-8")
    with replacing(settings.out / f"{study.name}.md") as temporary:
        temporary.write_text(table.markdown(study.name, metric, study.parties, summary, notes, names), encoding="utf-8")
    write_json(
        settings.out / f"{study.name}.json",
        "study",
        table.document(study.task, metric, study.parties, summary, results, notes),
        seeds=sorted(found),
        budget_minutes=settings.budget,
        device=str(settings.device),
    )
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "studies",
        nargs="*",
        choices=[*KNOWN, []],
        metavar="STUDY",
        help=f"{', '.join(KNOWN)}; all that there are data of",
    )
    parser.add_argument("--data", type=Path, help="folder with the cells' images")
    parser.add_argument("--task", choices=["segmentation", "classification"], help="of the parties' files")
    parser.add_argument("--party", action="append", metavar="NAME=FILE", help="a party's .npz or .csv, twice or more")
    parser.add_argument("--label", metavar="COLUMN", help="of the tables")
    parser.add_argument("--seeds", type=int, default=5, help="at most so many (default 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help=f"for each study (own files: {BUDGET:g})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("study-results"), help="folder for results")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    budget = options.budget or (BUDGET if options.party else None)
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    settings = Settings(seeds, budget, torch.device(name), options.out)
    console = Console(width=160 if not sys.stdout.isatty() else None)
    settings.out.mkdir(parents=True, exist_ok=True)
    started, summaries = time.perf_counter(), []
    try:
        # A damaged result is told before anything is trained.
        studies = [(study, kept_seeds(study, settings, console)) for study in study_of(options)]
        for study, found in studies:
            summaries.append(measure(study, found, settings, console, started))
            started = time.perf_counter()
    except SutureError as error:
        console.print(f"[red]{error}[/red]")
        return 2
    missed = sum(summary.missed for summary in summaries)
    console.print(f"{missed} targets missed" if missed else "all targets met")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
