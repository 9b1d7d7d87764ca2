"""The blob store: a folder or an S3-compatible bucket, each file under the sha256 of its content.

An upload goes to a temporary name, is hashed on the way, and gets its final name once the caller keeps it. Whatever is
not kept is removed, so an upload that breaks off leaves nothing behind. Weights are looked at on the way, too: what was
seen to be finite is not read for that again, neither now nor when a commit names it later.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import anyio
from anyio.to_thread import run_sync

from suture_contract.errors import SutureError
from suture_contract.model.finite import Arriving, SeenWeights
from suture_service.errors import HubError, TooLarge
from suture_service.settings import Settings
from suture_service.storage.bucket import Bucket
from suture_service.storage.folder import Folder
from suture_service.storage.places import Place, Room, Stored, TemporaryFile, missing

#: Every change of hands costs as much as hashing some ten thousand bytes does: there should not be many.
BUFFER = 6 * 2**20
_FIRST = 2**18
#: Of so many files that came last is known what was seen of them.
_SEEN = 1000
_BLOBS = "sha256"
#: Files in parts, as some clients send them; nobody downloads these, and no digest leads to them.
_PIECES = "pieces"
_NAME = re.compile(rf"{_BLOBS}/[0-9a-f]{{2}}/([0-9a-f]{{64}})")


class Content(Protocol):
    """A file that can be read in parts."""

    @property
    def size(self) -> int:
        """Return how many bytes it has."""

    @property
    def seen(self) -> SeenWeights | None:
        """Return what was seen of its weights when it came; None where that is not known."""

    def read(self, offset: int, length: int, /) -> bytes:
        """Return up to `length` bytes from `offset`."""

    def read_into(self, offset: int, buffer: memoryview, /) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""


class Upload:
    """A file that has arrived under a temporary name: `sha256` (hex) and `size` in bytes are those of its content."""

    def __init__(self, place: Place, file: TemporaryFile, sha256: str, size: int, seen: SeenWeights | None) -> None:
        self._place, self._file = place, file
        self.sha256 = sha256
        self.size = size
        self.seen = seen

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        length = min(length, self.size - offset)
        return self._file.read(offset, length) if offset >= 0 and length > 0 else b""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""
        buffer = buffer[: max(self.size - offset, 0)]
        return self._file.read_into(offset, buffer) if offset >= 0 and buffer else 0

    async def keep(self) -> None:
        """Give the file its final name; harmless when the same content is there already, which counts as new then."""
        with anyio.CancelScope(shield=True):
            await self._place.keep(self._file, _path(self.sha256), self.size)

    async def keep_as_piece(self) -> str:
        """Keep the file apart from the blobs, until `sweep_pieces`; return the name by which `read_piece` finds it."""
        name = secrets.token_hex(16)
        with anyio.CancelScope(shield=True):
            await self._place.keep(self._file, f"{_PIECES}/{name}", self.size)
        return name


@dataclass(frozen=True)
class KeptFile:
    """A file that is kept under its sha256 (hex); `size` in bytes."""

    store: BlobStore
    sha256: str
    size: int

    @property
    def seen(self) -> SeenWeights | None:
        """Return what was seen of its weights when it came; None where that is not known."""
        return self.store.seen.get(self.sha256)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        return self.store.read(self.sha256, offset, length, self.size)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""
        return self.store.read_into(self.sha256, offset, buffer, self.size)


class BlobStore:
    """`url` is a folder or `s3://bucket/prefix`, on the server at `endpoint` if it is not Amazon's.

    Memory use does not depend on the size of a file.
    """

    def __init__(self, url: str, *, endpoint: str | None = None) -> None:
        scheme = urlsplit(url).scheme
        self._place: Place
        #: How many uploads are on their way into it, through this process.
        self.receiving = 0
        #: By sha256 (hex), what was seen of files that came through this process.
        self.seen: dict[str, SeenWeights] = {}
        if scheme == "s3":
            self._place = Bucket(url, endpoint)
        elif scheme in ("", "file"):
            self._place = Folder(Path(urlsplit(url).path if scheme else url).expanduser().absolute())
        else:
            raise SutureError("hub.store", f"{scheme}: is not supported", where="store", hint="a folder or s3://bucket")

    @asynccontextmanager
    async def receive(
        self, chunks: AsyncIterator[bytes | memoryview], *, limit: int, where: str, buffer: int = BUFFER
    ) -> AsyncIterator[Upload]:
        """Store what `chunks` yields under a temporary name; removed at the end unless it was kept.

        `buffer` bytes are hashed and written at once; at most twice as many are held in memory.
        Raises `TooLarge` (`upload.too_large`) as soon as more than `limit` bytes have come, `StoreFull` when the store
        has no room, `Unavailable` when it does not answer.
        """
        file = await self._place.create(limit)
        self.receiving += 1
        try:
            sha256, size, seen = await _write(file, chunks, limit, where, buffer)
            self._remember(sha256, seen)
            yield Upload(self._place, file, sha256, size, seen)
        finally:
            self.receiving -= 1
            with anyio.CancelScope(shield=True):
                await file.discard()

    def _remember(self, sha256: str, seen: SeenWeights | None) -> None:
        if seen is not None:
            self.seen.pop(sha256, None)
            self.seen[sha256] = seen
            if len(self.seen) > _SEEN:
                del self.seen[next(iter(self.seen))]

    async def put(self, contents: Mapping[str, bytes]) -> None:
        """Keep small files, each under the sha256 that the caller has made of it; harmless where one is there already.

        Costs a fraction of what `receive` does. Raises what that raises; those kept before then stay.
        """
        with anyio.CancelScope(shield=True):
            await self._place.put({_path(sha256): content for sha256, content in contents.items()})

    def read(self, sha256: str, offset: int, length: int, size: int) -> bytes:
        """Return up to `length` bytes from `offset` of a kept file of `size` bytes."""
        length = min(length, size - offset)
        return self._place.read(_path(sha256), offset, length) if offset >= 0 and length > 0 else b""

    def read_into(self, sha256: str, offset: int, buffer: memoryview, size: int) -> int:
        """Fill a buffer from `offset` of a kept file of `size` bytes; return how many bytes there were."""
        buffer = buffer[: max(size - offset, 0)]
        return self._place.read_into(_path(sha256), offset, buffer) if offset >= 0 and buffer else 0

    def read_all(self, sha256: str, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end` (exclusive) of a kept file; raises `Unavailable` (`store.missing`)."""
        content = self._place.read(_path(sha256), start, end - start) if start < end else b""
        if len(content) != end - start:
            raise missing(_path(sha256))
        return content

    async def stream(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes `start` to `end` (exclusive) of a kept file.

        Raises `Unavailable` (`store.missing`) before the first byte if the store has lost it.
        """
        return await self._place.stream(_path(sha256), start, end) if start < end else _nothing()

    def sign(self, sha256: str, seconds: int) -> str | None:
        """Return an address from which anyone may read the file for `seconds`; None where the store has none."""
        return self._place.sign(_path(sha256), seconds)

    def keeps_versions(self, digests: Iterable[str]) -> bool:
        """Whether what is removed, such as these files, stays behind as old versions for the store's operator."""
        return self._place.keeps_versions([_path(sha256) for sha256 in digests])

    def room(self) -> Room | None:
        """Return how much room the store has; None where nobody can say."""
        return self._place.room()

    def sizes(self, digests: Iterable[str]) -> dict[str, int | None]:
        """Return the size in bytes of each file; None where there is none."""
        return {sha256: stored.size if stored else None for sha256, stored in self.find(digests).items()}

    def find(self, digests: Iterable[str]) -> Mapping[str, Stored | None]:
        """Return what is kept under each digest."""
        wanted = list(digests)
        return dict(zip(wanted, self._place.find([_path(sha256) for sha256 in wanted]), strict=True))

    def list(self) -> Iterator[tuple[str, Stored]]:
        """Yield digest and file of everything that is kept."""
        for stored in self._place.list(_BLOBS):
            match = _NAME.fullmatch(stored.name)
            if match is not None:
                yield match[1], stored

    def delete(self, digests: Iterable[str]) -> None:
        """Remove kept files. Only `maintenance` and `purges` may say which."""
        self._place.delete([_path(sha256) for sha256 in digests])

    def read_piece(self, name: str, offset: int, length: int) -> bytes:
        """Return bytes of what `Upload.keep_as_piece` has kept; they must lie inside it."""
        return self._place.read(f"{_PIECES}/{name}", offset, length)

    def delete_pieces(self, names: Iterable[str]) -> None:
        """Remove pieces; one that is not there is no error."""
        self._place.delete([f"{_PIECES}/{name}" for name in names])

    def sweep_pieces(self, before: datetime) -> int:
        """Remove pieces kept before a moment; return how many."""
        names = [stored.name for stored in self._place.list(_PIECES) if stored.modified < before]
        self._place.delete(names)
        return len(names)

    def check(self) -> None:
        """Raise if the store cannot be reached and written to."""
        self._place.check()

    def sweep(self) -> int:
        """Remove temporary files that a killed hub left behind; return how many."""
        return self._place.sweep()


def open_store(settings: Settings) -> BlobStore:
    """Return the hub's store."""
    return BlobStore(settings.store, endpoint=settings.s3_endpoint)


async def _write(
    file: TemporaryFile, chunks: AsyncIterator[bytes | memoryview], limit: int, where: str, buffer: int
) -> tuple[str, int, SeenWeights | None]:
    digest, arriving, size = hashlib.sha256(), Arriving(), 0
    # One is filled while the other is hashed and written; used again and again, they are cheaper than new ones. Most
    # files are small: what comes first is held in less.
    filling, other, filled = memoryview(bytearray(min(_FIRST, buffer))), memoryview(bytearray()), 0
    running: asyncio.Task[None] | None = None

    def read(content: memoryview) -> None:
        digest.update(content)
        arriving.update(content)

    async def consume(content: memoryview) -> None:
        # Both leave Python's lock, so they run beside each other and beside the receiving of the next buffer.
        for error in await asyncio.gather(run_sync(read, content), file.write(content), return_exceptions=True):
            if error is not None:
                raise error

    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit, where)
            rest = memoryview(chunk)
            while rest:
                taken = min(len(rest), len(filling) - filled)
                filling[filled : filled + taken] = rest[:taken]
                filled, rest = filled + taken, rest[taken:]
                if filled == len(filling):
                    if running is not None:
                        await asyncio.shield(running)
                    running = asyncio.create_task(consume(filling))
                    if len(other) < buffer:
                        other = memoryview(bytearray(buffer))
                    filling, other, filled = other, filling, 0
        if running is not None:
            await asyncio.shield(running)
        running = asyncio.create_task(consume(filling[:filled]))
        await asyncio.shield(running)
        await file.finish()
    finally:
        if running is not None:
            # Its threads use the file, even when nobody waits for them any more.
            with anyio.CancelScope(shield=True):
                await asyncio.wait([running])
                running.exception()  # asked for, so that nobody complains that it was not
    return digest.hexdigest(), size, arriving.seen


def _too_large(limit: int, where: str) -> TooLarge:
    return TooLarge(
        "upload.too_large",
        f"larger than the {limit} bytes this hub takes",
        where=where,
        hint="ask the hub's operator to raise the limit",
    )


def _path(sha256: str) -> str:
    return f"{_BLOBS}/{sha256[:2]}/{sha256}"


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


def read_document(file: Content, limit: int, where: str) -> bytes:
    """Return the whole content of a small file; raises `TooLarge` over `limit` bytes."""
    if file.size > limit:
        raise TooLarge("upload.too_large", f"larger than {limit} bytes", where=where)
    content = file.read(0, file.size)
    if len(content) != file.size:
        raise HubError("upload.truncated", "the file ended early", where=where, hint="upload it again")
    return content
