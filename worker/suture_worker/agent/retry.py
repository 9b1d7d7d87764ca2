"""What ends an agent's waiting: time, being told to stop, and the loss of a lease."""

from __future__ import annotations

import random
from collections.abc import Callable

from suture_worker.agent.heartbeat import Heartbeat
from suture_worker.stop import Stop

LONGEST_PAUSE = 60.0


class Lost(Exception):
    """The lease is no longer ours."""


class Stopping(Exception):
    """The agent was told to stop; the task stays for its next start."""


def check(stop: Stop, heartbeat: Heartbeat | None) -> None:
    """Raise `Stopping` or `Lost` if that is so."""
    if stop.is_set():
        raise Stopping
    if heartbeat is not None and heartbeat.lost.is_set():
        raise Lost


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Return how many seconds to wait after so many failures in a row: doubling from 1 to 60, half of it random."""
    return min(LONGEST_PAUSE, 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * jitter())
