"""One callback for all long work: what is being done, how far it is, how long it still takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `step`; `seconds_left` for the whole work, once it can be estimated."""

    step: str
    done: int
    total: int
    seconds_left: float | None = None


#: Called between batches. It may raise `Cancelled` to stop the work.
OnProgress = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """Do nothing: the default callback."""
