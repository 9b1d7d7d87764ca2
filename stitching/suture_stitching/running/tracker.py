"""How far a work of several steps is, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from suture_stitching.running.progress import OnProgress, Progress


class Tracker:
    """Counts the units of each step; `steps` gives how many there will be and what one of them costs, in any unit.

    What is reported never goes back within a step, and every step that is ended reports all of its units as done.
    """

    def __init__(self, progress: OnProgress, steps: Mapping[str, tuple[int, float]]) -> None:
        self._progress, self._started = progress, time.monotonic()
        self._totals = {step: total for step, (total, _) in steps.items()}
        self._costs = {step: cost for step, (_, cost) in steps.items()}
        self._done = dict.fromkeys(steps, 0)
        #: Units that were done before, by work that was interrupted: they say nothing about how fast this one is.
        self._before = dict.fromkeys(steps, 0)

    def tick(self, step: str) -> None:
        """Report one more unit of `step`, before it is done."""
        self._report(step)
        self._done[step] += 1

    def skip(self, step: str, units: int) -> None:
        """Count units of `step` that need not be done again."""
        self._done[step] += units
        self._before[step] += units

    def reached(self, step: str, done: int, total: int) -> None:
        """Report that `done` units of now `total` ones are done."""
        self._done[step], self._totals[step] = done, total
        self._report(step)

    def end(self, step: str) -> None:
        """Report that all units of `step` are done."""
        self._totals[step] = self._done[step] = max(self._totals[step], self._done[step])
        self._report(step)

    def finish(self, name: str) -> None:
        """Report that all of the work, called `name`, is done."""
        self._progress(Progress(name, 1, 1, 0.0))

    def _report(self, step: str) -> None:
        totals = {name: max(total, self._done[name]) for name, total in self._totals.items()}
        spent = sum(self._done[name] * cost for name, cost in self._costs.items())
        before = sum(self._before[name] * cost for name, cost in self._costs.items())
        whole = sum(totals[name] * cost for name, cost in self._costs.items())
        elapsed = time.monotonic() - self._started
        left = elapsed * (whole - spent) / (spent - before) if spent > before else None
        self._progress(Progress(step, self._done[step], totals[step], left))
