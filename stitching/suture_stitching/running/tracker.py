"""How far a work of several steps is, and how long it still takes."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from suture_stitching.running.progress import OnProgress, Progress

#: How much sooner than its units are done a step's own speed is trusted. Its first units may take longer than others.
_TRUST = 2.0


class Tracker:
    """Counts the units of each step; `steps`, in their order, give how many units and what one costs, in any unit.

    What is reported never goes back: steps come in their order, no unit is taken back, and a step's total stays what
    it was when its first unit was reported. Every step that is ended reports all of its units as done. What is left is
    estimated from how long the units of each step took here; of a step that has hardly begun, from what they cost.
    """

    def __init__(self, progress: OnProgress, steps: Mapping[str, tuple[int, float]]) -> None:
        self._progress = progress
        self._totals = {step: total for step, (total, _) in steps.items()}
        self._costs = {step: cost for step, (_, cost) in steps.items()}
        self._done = dict.fromkeys(steps, 0)
        #: Units that an earlier step did, or work that was interrupted: they say nothing about how fast this one is.
        self._before = dict.fromkeys(steps, 0)
        self._seconds = dict.fromkeys(steps, 0.0)
        #: The step that the time since then belongs to.
        self._step, self._since = next(iter(steps)), monotonic()
        self._last: Progress | None = None

    def expect(self, step: str, units: int, cost: float) -> None:
        """Say how many units a step that has not begun has, and what one costs, where that is known only now."""
        self._totals[step], self._costs[step] = units, cost

    def tick(self, step: str, *, known: bool = False) -> None:
        """Report one more unit of `step`, before it is done; most of its work has been done before if it is `known`."""
        self._report(step)
        self._done[step] += 1
        self._before[step] += known

    def skip(self, step: str, units: int) -> None:
        """Count units of `step` that need not be done again."""
        self._done[step] += units
        self._before[step] += units

    def reached(self, step: str, done: int) -> None:
        """Report that `done` units of `step` are done; where that is known already, what was reported last."""
        last = self._last
        if last is not None and (last.step, last.done) == (step, done):
            self._progress(last)
            return
        self._done[step] = max(done, self._done[step])
        self._report(step)

    def end(self, step: str) -> None:
        """Report that all units of `step` are done, if it has any."""
        self._done[step] = self._totals[step]
        if self._totals[step]:
            self._report(step)

    def finish(self, name: str) -> None:
        """Report that all of the work, called `name`, is done."""
        self._progress(Progress(name, 1, 1, 0.0))

    def _report(self, step: str) -> None:
        now = monotonic()
        self._seconds[self._step] += now - self._since
        self._step, self._since = step, now
        self._last = Progress(step, self._done[step], self._totals[step], self._left())
        self._progress(self._last)

    def _left(self) -> float | None:
        """Return the seconds that what is left takes; None while nothing is known of how fast this work is."""
        here = {step: done - self._before[step] for step, done in self._done.items()}
        if not any(here[step] * self._costs[step] for step in here):
            return None
        return sum(self._left_of(step, here) for step, total in self._totals.items() if total > self._done[step])

    def _left_of(self, step: str, here: Mapping[str, int]) -> float:
        """Return the seconds that what is left of a step takes, where so many units of each were done `here`."""
        units, left = here[step], self._totals[step] - self._done[step]
        others = [other for other in here if other != step and here[other] * self._costs[other]]
        # The first step warms up, and is not only what it counts: what others say is nearer.
        others = [other for other in others if other != next(iter(here))] or others
        if not others:
            return left * self._seconds[step] / units
        speed = sum(self._seconds[one] for one in others) / sum(here[one] * self._costs[one] for one in others)
        usual = (units + left) * self._costs[step] * speed
        if not units:
            return max(usual - self._seconds[step], 0.0)
        trust = min(1.0, _TRUST * units / (units + left))
        whole = (1 - trust) * usual + trust * (units + left) * self._seconds[step] / units
        return max(whole - self._seconds[step], 0.0)
