"""A study is played seed by seed; what is done is kept, so that it goes on after it was stopped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from suture_local.folder_lock import lock
from suture_local.study import table
from suture_local.study.data import Study
from suture_local.study.kept import KeptSeeds
from suture_local.study.results import SeedResult
from suture_local.study.run import Setup, run_seed
from suture_local.study.training import OnShare


def play(study: Study, setup: Setup, seeds: Sequence[int], out: Path, console: Console) -> Iterator[list[SeedResult]]:
    """Run the seeds whose results are not in the folder `out` yet; yield all results after each, in the seeds' order.

    Raises `SutureError`, `study.damaged` for a result that is not in order, before anything is trained.
    """
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        kept, results = KeptSeeds(study, setup, out), {}
        for seed in seeds:
            if (result := kept.load(seed)) is not None:
                results[seed] = result
                console.print(f"{study.name}, seed {seed}: read from {kept.path(seed)}, not run again", soft_wrap=True)
        missing = [seed for seed in seeds if seed not in results]
        if not missing:
            yield [results[seed] for seed in seeds]
        for number, seed in enumerate(missing, len(results) + 1):
            title = f"{study.name}, seed {seed}" + (f" ({number} of {len(seeds)})" if len(seeds) > 1 else "")
            with stages(console, title) as stage:
                results[seed] = run_seed(study, setup, seed, stage, kept.working(seed))
            kept.save(results[seed])
            shutil.rmtree(kept.working(seed), ignore_errors=True)
            console.print(f"{study.name}, seed {seed}: {stage.seconds:.0f} s")
            yield [results[seed] for seed in seeds if seed in results]


def notes_on(study: Study, results: Sequence[SeedResult]) -> list[str]:
    """Return the notes on the data and on the seeds."""
    return [*study.notes, *table.seed_notes(results)]


class Stages:
    """Shows which stage of a seed's work is being done, and how much of it."""

    def __init__(self, bar: Progress, title: str) -> None:
        self._bar, self._title, self._name = bar, title, ""
        self._task = bar.add_task(title, total=1.0)
        self._started = self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the seed has been worked on."""
        return time.perf_counter() - self._began

    def __call__(self, name: str) -> OnShare:
        """Begin a stage; return where to report the part of it that is done."""
        self.end()
        self._name, self._started = name, time.perf_counter()
        self._bar.reset(self._task, description=f"{self._title}: {name}")
        return lambda done: self._bar.update(self._task, completed=done)

    def end(self) -> None:
        """End the present stage."""
        if self._name and not self._bar.console.is_terminal:
            took = time.perf_counter() - self._started
            self._bar.console.print(f"{self._title}: {self._name}, {took:.1f} s", soft_wrap=True)
        self._name = ""


@contextmanager
def stages(console: Console, title: str) -> Iterator[Stages]:
    """Show a bar while the stages of a seed are worked on."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        stage = Stages(bar, title)
        yield stage
        stage.end()
