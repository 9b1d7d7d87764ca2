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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

MAX_PLACES = 64
_FOLDER = "workers"
_LARGEST_FILE = 64 * 1024


class WorkerOffer(BaseModel):
    """A running worker: on which machine, since when, and how many tasks it does at once, on which devices."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    host: str
    pid: int
    since: AwareDatetime
    places: int = Field(ge=1)
    devices: tuple[str, ...] = ()


@contextmanager
def offering(state: Path, count: int, devices: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
    """Say, as a worker, that it does `count` tasks at once, until it ends or calls what it is passed."""
    offer = WorkerOffer(
        host=socket.gethostname(), pid=os.getpid(), since=datetime.now(UTC), places=count, devices=tuple(devices)
    )
    folder = state / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{offer.host}-{offer.pid}-{secrets.token_hex(4)}"
    hidden = folder / f".{path.name}"
    with hidden.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(offer.model_dump_json())
        file.flush()
        hidden.rename(path)  # seen only now that it is locked

        def withdraw() -> None:
            path.unlink(missing_ok=True)

        try:
            yield withdraw
        finally:
            withdraw()


def workers(state: Path) -> list[WorkerOffer]:
    """Return the workers that run, in the order of their machines."""
    offers: list[WorkerOffer | None] = []
    with contextlib.suppress(FileNotFoundError):
        offers = [_offered(path) for path in sorted((state / _FOLDER).iterdir()) if not path.name.startswith(".")]
    return [offer for offer in offers if offer is not None]


def places(running: Iterable[WorkerOffer]) -> int:
    """Return how many tasks these workers do at once, all together; one where there is none."""
    return max(1, min(MAX_PLACES, sum(offer.places for offer in running)))


def _offered(path: Path) -> WorkerOffer | None:
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return WorkerOffer.model_validate_json(file.read(_LARGEST_FILE))
            path.unlink(missing_ok=True)  # of a worker that was killed
    except (OSError, ValueError, ValidationError):
        pass
    return None
