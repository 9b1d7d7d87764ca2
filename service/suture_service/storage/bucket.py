"""A bucket of an S3-compatible server as the hub's store."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import S3Store

from suture_contract.object_store import cause_of
from suture_service.errors import Unavailable
from suture_service.storage.places import TEMPORARY, Room, Stored, missing

log = structlog.get_logger(__name__)

#: S3 takes parts of 5 MiB to 5 GiB, and at most 10,000 of them.
_PART = 8 * 2**20
_MOST_PARTS = 9_000
#: The largest object that S3 copies in one call.
COPY_LIMIT = 5 * 2**30
#: How many parts of an upload travel at once, and how many of a download are fetched before they are wanted.
_AT_ONCE = 2
_HEADS_AT_ONCE, _PUTS_AT_ONCE = 16, 8
#: S3 removes at most 1000 in one call.
_DELETED_AT_ONCE = 1000
_ABANDONED = timedelta(days=2)
# For one part or one question; a copy inside the server may take longer than a part.
_TIMEOUTS = {"timeout": "60s", "connect_timeout": "10s"}
_RETRIES: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=90),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
}


class BucketFile:
    """A temporary object. It can be read once it is finished."""

    def __init__(self, bucket: Bucket, name: str, limit: int) -> None:
        self.name = name
        self._bucket = bucket
        part = max(_PART, limit // _MOST_PARTS)
        self._writer: Any = obstore.open_writer_async(bucket.store, name, buffer_size=part, max_concurrency=_AT_ONCE)

    async def write(self, content: memoryview) -> None:
        """Append."""
        with _answered(self.name):
            await self._writer.write(bytes(content))

    async def finish(self) -> None:
        """Complete the object."""
        with _answered(self.name):
            await self._writer.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return self._bucket.read(self.name, offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""
        return self._bucket.read_into(self.name, offset, buffer)

    async def discard(self) -> None:
        """Remove the object. Parts of an unfinished one are left to the bucket's own rule for them."""
        self._writer = None  # dropped without close, a writer gives up what it has
        with suppress(FileNotFoundError, Unavailable), _answered(self.name):
            await obstore.delete_async(self._bucket.store, self.name)


class Bucket:
    """`url` is `s3://bucket/prefix`; credentials come from the usual AWS variables.

    `endpoint` is the server's address where it is not Amazon's.
    """

    def __init__(self, url: str, endpoint: str | None) -> None:
        options: Any = dict(_TIMEOUTS)
        where: dict[str, Any] = {}
        if endpoint is not None:
            where["endpoint"] = endpoint
            options["allow_http"] = endpoint.startswith("http://")
        self.store = S3Store.from_url(url, client_options=options, retry_config=_RETRIES, **where)

    async def create(self, limit: int) -> BucketFile:
        """Return a new temporary object for at most `limit` bytes."""
        return BucketFile(self, f"{TEMPORARY}/{secrets.token_hex(16)}", limit)

    async def keep(self, file: BucketFile, name: str, size: int) -> None:
        """Copy a temporary object to its final name, inside the server where the server can."""
        with _answered(name):
            if size <= COPY_LIMIT:
                await obstore.copy_async(self.store, file.name, name)
                return
            writer = obstore.open_writer_async(
                self.store, name, buffer_size=max(_PART, size // _MOST_PARTS), max_concurrency=_AT_ONCE
            )
            async for chunk in await self.stream(file.name, 0, size):
                await writer.write(chunk)
            await writer.close()

    async def put(self, contents: Mapping[str, bytes]) -> None:
        """Write small objects, each in one call: the server shows it whole or not at all."""
        waiting = iter(contents.items())

        async def work() -> None:
            for name, content in waiting:
                with _answered(name):
                    await obstore.put_async(self.store, name, content)

        done = await asyncio.gather(*(work() for _ in range(_PUTS_AT_ONCE)), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        with _answered(name):
            return bytes(obstore.get_range(self.store, name, start=offset, length=length))

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""
        content = self.read(name, offset, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    async def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes `start` to `end` (exclusive)."""
        # In ranges: each is retried by itself, and its timeout does not depend on the length of the whole.
        ranges = iter([(at, min(at + _PART, end)) for at in range(start, end, _PART)])
        first = await self._range(name, *next(ranges))
        return self._rest(name, first, ranges)

    async def _rest(self, name: str, first: bytes, ranges: Iterator[tuple[int, int]]) -> AsyncIterator[bytes]:
        coming: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                while len(coming) < _AT_ONCE and (wanted := next(ranges, None)) is not None:
                    coming.append(asyncio.create_task(self._range(name, *wanted)))
                yield first
                if not coming:
                    return
                first = await coming.popleft()
        finally:
            for task in coming:
                task.cancel()

    async def _range(self, name: str, start: int, end: int) -> bytes:
        with _answered(name):
            content = bytes(await obstore.get_range_async(self.store, name, start=start, end=end))
        if len(content) != end - start:
            raise missing(name)
        return content

    def sign(self, name: str, seconds: int) -> str | None:
        """Return an address from which anyone may read the object for that long."""
        return obstore.sign(self.store, "GET", name, timedelta(seconds=seconds))

    def find(self, names: Sequence[str]) -> list[Stored | None]:
        """Return what is stored under each of the names."""
        with ThreadPoolExecutor(_HEADS_AT_ONCE) as pool:
            return list(pool.map(self._head, names))

    def _head(self, name: str) -> Stored | None:
        with _answered(name):
            try:
                head = obstore.head(self.store, name)
            except FileNotFoundError:
                return None
            return Stored(name, head["size"], head["last_modified"], head["version"] is not None)

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every object below `prefix`."""
        with _answered(prefix):
            for batch in obstore.list(self.store, prefix=prefix):
                for entry in batch:
                    yield Stored(str(entry["path"]), entry["size"], entry["last_modified"])

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        doomed = list(names)
        for start in range(0, len(doomed), _DELETED_AT_ONCE):
            with _answered(TEMPORARY), suppress(FileNotFoundError):
                obstore.delete(self.store, doomed[start : start + _DELETED_AT_ONCE])

    def keeps_versions(self, names: Sequence[str]) -> bool:
        """Whether what is removed, such as these objects, stays behind as an old version.

        The server names the version of what is written now, or was while the bucket kept versions.
        """
        return self._probe() is not None or any(stored and stored.versioned for stored in self.find(names))

    def room(self) -> Room | None:
        """Return None: a bucket tells nobody."""
        return None

    def check(self) -> None:
        """Raise unless the bucket can be written to."""
        self._probe()

    def _probe(self) -> str | None:
        """Write and remove an object; return its version, None where the bucket keeps none."""
        name = f"{TEMPORARY}/ready-{secrets.token_hex(8)}"
        with _answered(name):
            version = obstore.put(self.store, name, b"ready")["version"]
            obstore.delete(self.store, name)
        return version

    def sweep(self) -> int:
        """Remove temporary objects that are older than any upload; return how many."""
        horizon = datetime.now(UTC) - _ABANDONED
        names = [stored.name for stored in self.list(TEMPORARY) if stored.modified < horizon]
        self.delete(names)
        return len(names)


@contextmanager
def _answered(name: str) -> Iterator[None]:
    """Turn the store's errors into the hub's."""
    try:
        yield
    except FileNotFoundError:
        raise missing(name) from None
    except (BaseError, OSError) as error:  # a writer raises the latter
        log.error("store", error=type(error).__name__, cause=cause_of(error).words)
        raise Unavailable(
            "store.unavailable", "the hub's store does not answer as it should", hint="try again in a moment"
        ) from error
