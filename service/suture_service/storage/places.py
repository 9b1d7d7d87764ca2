"""What a store is to the hub: a folder and a bucket offer the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from suture_service.errors import Unavailable

TEMPORARY = "tmp"


@dataclass(frozen=True)
class Stored:
    """A file in the store: its size in bytes, when it was last given its name, and whether it is a version of many."""

    name: str
    size: int
    modified: datetime
    versioned: bool = False


class Room(NamedTuple):
    """How many bytes a store has left, and of how many."""

    free: int
    total: int


class TemporaryFile(Protocol):
    """A file that is being received."""

    async def write(self, content: memoryview) -> None:
        """Append."""

    async def finish(self) -> None:
        """Make all that was written durable and readable."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset` of a finished file."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` of a finished file on; return how many bytes there were."""

    async def discard(self) -> None:
        """Remove it, finished or not; harmless after it was kept."""


class Place(Protocol):
    """A folder or a bucket. Raises `StoreFull` when there is no room, `Unavailable` when it does not answer."""

    async def create(self, limit: int) -> Any:
        """Return a new `TemporaryFile` for at most `limit` bytes."""

    async def keep(self, file: Any, name: str, size: int) -> None:
        """Give a finished temporary file its final name, at once; afterwards it counts as new."""

    async def put(self, contents: Mapping[str, bytes]) -> None:
        """Store small files under their final names, each whole or not at all; afterwards they count as new."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, which must lie inside the file."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on, which must lie inside the file; return how many bytes there were."""

    async def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes `start` to `end` (exclusive); a missing file raises before it returns."""

    def sign(self, name: str, seconds: int) -> str | None:
        """Return an address from which anyone may read the file for that long, where the store can."""

    def find(self, names: Sequence[str]) -> list[Stored | None]:
        """Return what is stored under each of the names."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield everything below a folder."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""

    def keeps_versions(self, names: Sequence[str]) -> bool:
        """Whether what is removed, such as these files, stays behind as old versions for the store's operator."""

    def room(self) -> Room | None:
        """Return how much room there is; None where nobody can say."""

    def check(self) -> None:
        """Raise unless the store can be written to."""

    def sweep(self) -> int:
        """Remove temporary files that a killed hub left behind; return how many."""


def missing(name: str) -> Unavailable:
    """Return the error for a file that the database names and the store does not hold."""
    return Unavailable(
        "store.missing",
        "the hub's store does not hold this file's content",
        where=name.rpartition("/")[2],
        hint="tell the hub's operator: `suture hub reconcile` shows what is missing",
    )
