"""Telling how far a long piece of work is."""

from __future__ import annotations

from collections.abc import Callable

#: Told what is counted (`blobs`, `bytes`, `rows`), how many are done, and of how many; 0 where nobody knows.
OnProgress = Callable[[str, int, int], None]


def ignore(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""
