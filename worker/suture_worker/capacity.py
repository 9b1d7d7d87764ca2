"""How many tasks a site can do at once: what its running workers say, on whichever of its machines.

A worker keeps a file in `state/workers` and holds its lock as long as it runs; the kernel frees the lock of one that
was killed, and its file no longer counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_PLACES = 64
_FOLDER = "workers"


@contextmanager
def offering(state: Path, count: int) -> Iterator[Callable[[], None]]:
    """Say, as a worker, that it does `count` tasks at once, until it ends or calls what it is passed."""
    folder = state / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    hidden = folder / f".{path.name}"
    with hidden.open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(count))
        file.flush()
        hidden.rename(path)  # seen only now that it is locked

        def withdraw() -> None:
            path.unlink(missing_ok=True)

        try:
            yield withdraw
        finally:
            withdraw()


def places(state: Path) -> int:
    """Return how many tasks the running workers do at once, all together; one where none has said so."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        total = sum(_offered(path) for path in (state / _FOLDER).iterdir() if not path.name.startswith("."))
    return max(1, min(MAX_PLACES, total))


def _offered(path: Path) -> int:
    try:
        with path.open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return max(1, int(file.read(8)))
            path.unlink(missing_ok=True)  # of a worker that was killed
    except (OSError, ValueError):
        pass
    return 0
