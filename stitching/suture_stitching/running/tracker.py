"""How far a work of several steps is, and how long it still takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic

from suture_stitching.running.progress import OnProgress, Progress

#: After so many units, a step's own speed counts as much as that of the whole work.
_TRUST = 3.0
#: This part of the time at least is taken to be arithmetic, whatever is said to take its seconds on every machine.
_ARITHMETIC = 0.1


@dataclass(frozen=True)
class UnitCost:
    """What a unit of a step costs: arithmetic, in any unit, and `seconds` that it takes about on every machine."""

    work: float = 1.0
    seconds: float = 0.0

    def __add__(self, other: UnitCost) -> UnitCost:
        return UnitCost(self.work + other.work, self.seconds + other.seconds)

    def times(self, factor: float) -> UnitCost:
        """Return what so many of it cost."""
        return UnitCost(factor * self.work, factor * self.seconds)


_NOTHING = UnitCost(0.0)


class Tracker:
    """Counts the units of each step; steps come in the order in which they are first expected.

    What is reported never goes back: steps come in their order, no unit is taken back, and a step has as many units as
    when its first one was reported. Every step that is ended reports all of its units as done. How fast arithmetic is
    here comes from the time that units took so far, and by how much a step differs from what it was said to cost, from
    its own units.
    """

    def __init__(self, progress: OnProgress) -> None:
        self._progress = progress
        self._costs: dict[str, list[UnitCost]] = {}
        #: Of each step, by how many units are done, what those that are left cost.
        self._rest: dict[str, list[UnitCost]] = {}
        self._done: dict[str, int] = {}
        #: Of each step, what the units cost that were done here, and how long they took.
        self._measured: dict[str, UnitCost] = {}
        self._units: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        #: The step that the time since then belongs to, none before the first unit; and the unit that was begun last.
        self._step, self._since = "", 0.0
        self._begun: tuple[str, UnitCost] | None = None
        self._last: Progress | None = None

    def expect(self, step: str, costs: Sequence[UnitCost]) -> None:
        """Say what each unit of a step costs.

        It can be said again as more becomes known: how many units there are, until the first is begun.
        """
        self._costs[step] = list(costs)
        # Summed here once: a report must not cost more the more units a step has.
        self._rest[step] = list(accumulate(reversed(costs), initial=_NOTHING))[::-1]
        self._measured.setdefault(step, _NOTHING)
        self._done.setdefault(step, 0)
        self._units.setdefault(step, 0)
        self._seconds.setdefault(step, 0.0)

    def tick(self, step: str) -> None:
        """Report one more unit of `step`, before it is done."""
        self._report(step)
        if self._done[step] < len(self._costs[step]):
            self._begun = (step, self._costs[step][self._done[step]])
        self._done[step] += 1

    def skip(self, step: str, units: int) -> None:
        """Count units of `step` that need not be done, or not again: they do not say how fast this work is."""
        self._done[step] += units

    def reached(self, step: str, done: int) -> None:
        """Report that `done` units of `step` are done; where that is known already, what was reported last."""
        if self._last is not None and (self._last.step, self._last.done) == (step, done):
            self._progress(self._last)
            return
        for cost in self._costs[step][self._done[step] : done]:
            self._measure(step, cost)
        self._done[step] = max(done, self._done[step])
        self._report(step)

    def end(self, step: str) -> None:
        """Report that all units of `step` are done, if it has any."""
        self._done[step] = len(self._costs[step])
        if self._costs[step]:
            self._report(step)

    def finish(self, name: str) -> None:
        """Report that all of the work, called `name`, is done."""
        self._progress(Progress(name, 1, 1, 0.0))

    def _report(self, step: str) -> None:
        now = monotonic()
        if self._step:
            self._seconds[self._step] += now - self._since
        if self._begun is not None:
            self._measure(*self._begun)
            self._begun = None
        self._step, self._since = step, now
        self._last = Progress(step, self._done[step], len(self._costs[step]), self._left())
        self._progress(self._last)

    def _measure(self, step: str, cost: UnitCost) -> None:
        self._measured[step] += cost
        self._units[step] += 1

    def _left(self) -> float | None:
        """Return the seconds that what is left takes; None while nothing is known of how fast this work is."""
        measured = sum((cost for step, cost in self._measured.items() if self._units[step]), _NOTHING)
        if not measured.work:
            return None
        seconds = sum(self._seconds[step] for step, units in self._units.items() if units)
        speed = max(seconds - measured.seconds, _ARITHMETIC * seconds) / measured.work
        return sum(self._left_of(step, speed) for step in self._costs)

    def _left_of(self, step: str, speed: float) -> float:
        """Return the seconds that what is left of a step takes where a unit of arithmetic takes `speed` seconds."""
        left = self._rest[step][min(self._done[step], len(self._costs[step]))]
        usual, units, measured = left.work * speed + left.seconds, self._units[step], self._measured[step]
        expected = measured.work * speed + measured.seconds
        if not units or not expected:
            return usual
        return usual * (_TRUST + units * self._seconds[step] / expected) / (_TRUST + units)
