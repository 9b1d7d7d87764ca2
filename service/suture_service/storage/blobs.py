"""The blob store: a folder or an S3-compatible bucket, each file under the sha256 of its content.

An upload goes to a temporary name, is hashed on the way, and gets its final name once the caller keeps it. Whatever is
not kept is removed, so an upload that breaks off leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import obstore
from anyio.to_thread import run_sync
from obstore.store import LocalStore, from_url

from suture_service.errors import HubError, TooLarge, Unavailable
from suture_stitching.errors import SutureError

TEMPORARY = "tmp"
CHUNK = 2**20
#: S3 takes parts of at least 5 MiB.
PART = 8 * 2**20
ABANDONED = timedelta(days=2)


class Upload:
    """A file that has arrived under a temporary name: `sha256` (hex) and `size` in bytes are those of its content."""

    def __init__(self, store: BlobStore, name: str, sha256: str, size: int) -> None:
        self._store = store
        self.name = name
        self.sha256 = sha256
        self.size = size
        self.kept = False

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        return self._store.read_at(self.name, offset, length, self.size)

    async def keep(self) -> None:
        """Give the file its final name; harmless when the same content is there already."""
        await self._store.keep(self)


class BlobStore:
    """`url` is a folder or `s3://bucket/prefix`. Memory use does not depend on the size of a file."""

    def __init__(self, url: str) -> None:
        self._folder: Path | None = None
        scheme = urlsplit(url).scheme
        if scheme == "s3":
            timeouts = {"timeout": "120s", "connect_timeout": "10s"}
            self._store = from_url(url, client_options=timeouts)  # type: ignore[call-overload]
        elif scheme in ("", "file"):
            self._folder = Path(urlsplit(url).path if scheme else url).expanduser().absolute()
            (self._folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(self._folder)
        else:
            raise SutureError("hub.store", f"{scheme}: is not supported", where="store", hint="a folder or s3://bucket")

    @asynccontextmanager
    async def receive(self, chunks: AsyncIterator[bytes], *, limit: int, where: str) -> AsyncIterator[Upload]:
        """Store what `chunks` yields under a temporary name; removed at the end unless it was kept.

        Raises `TooLarge` (`upload.too_large`) as soon as more than `limit` bytes have come.
        """
        name = f"{TEMPORARY}/{secrets.token_hex(16)}"
        upload: Upload | None = None
        try:
            upload = await self._write(name, chunks, limit, where)
            yield upload
        finally:
            if upload is None or not upload.kept:
                with anyio.CancelScope(shield=True):
                    await self._remove(name)

    async def keep(self, upload: Upload) -> None:
        """Give an upload its final name."""
        target = _path(upload.sha256)
        with anyio.CancelScope(shield=True):
            if self._folder is None:
                await obstore.rename_async(self._store, upload.name, target)
            else:
                await run_sync(_move, self._folder / upload.name, self._folder / target)
            upload.kept = True

    def read(self, sha256: str, offset: int, length: int, size: int) -> bytes:
        """Return up to `length` bytes from `offset` of a kept file of `size` bytes."""
        return self.read_at(_path(sha256), offset, length, size)

    def read_at(self, name: str, offset: int, length: int, size: int) -> bytes:
        """Return bytes of the file under a name in the store; fewer at its end."""
        end = min(offset + length, size)
        if offset < 0 or end <= offset:
            return b""
        return bytes(obstore.get_range(self._store, name, start=offset, end=end))

    async def stream(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes `start` to `end` (exclusive) of a kept file.

        Raises `Unavailable` (`store.missing`) before the first byte if the store has lost it.
        """
        if end <= start:
            return _nothing()
        try:
            result = await obstore.get_async(self._store, _path(sha256), options={"range": (start, end)})
        except FileNotFoundError:
            raise Unavailable(
                "store.missing",
                "the hub's store does not hold this file's content",
                where=sha256,
                hint="tell the hub's operator: database and store do not belong together",
            ) from None
        return aiter(result.stream(min_chunk_size=CHUNK))

    def check(self) -> None:
        """Raise if the store cannot be reached and written to."""
        name = f"{TEMPORARY}/ready-{secrets.token_hex(8)}"
        obstore.put(self._store, name, b"ready")
        obstore.delete(self._store, name)

    def sweep(self) -> int:
        """Remove temporary files that a killed hub left behind; return how many."""
        horizon = datetime.now(UTC) - ABANDONED
        if self._folder is not None:
            # Listed by hand: the store hides the parts of an unfinished upload.
            entries = list((self._folder / TEMPORARY).iterdir())
            old = [entry for entry in entries if entry.stat().st_mtime < horizon.timestamp()]
            for entry in old:
                entry.unlink(missing_ok=True)
            return len(old)
        names = [
            str(meta["path"])
            for batch in obstore.list(self._store, prefix=TEMPORARY)
            for meta in batch
            if meta["last_modified"] < horizon
        ]
        if names:
            obstore.delete(self._store, names)
        return len(names)

    async def _write(self, name: str, chunks: AsyncIterator[bytes], limit: int, where: str) -> Upload:
        digest, size = hashlib.sha256(), 0
        pending = bytearray()
        writer = obstore.open_writer_async(self._store, name, buffer_size=PART, max_concurrency=1)
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit, where)
                digest.update(chunk)
                pending += chunk
                if len(pending) >= CHUNK:
                    await writer.write(bytes(pending))
                    pending.clear()
            await writer.write(bytes(pending))
            await writer.close()
        finally:
            # Dropped without close, a writer gives up what it has; the error's traceback must not keep it alive.
            del writer
        if self._folder is not None:
            await run_sync(_flush, self._folder / name)
        return Upload(self, name, digest.hexdigest(), size)

    async def _remove(self, name: str) -> None:
        if self._folder is not None:
            # The parts of an unfinished upload lie beside it, as `name#1`.
            for path in (self._folder / TEMPORARY).glob(f"{name.removeprefix(TEMPORARY + '/')}*"):
                path.unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._store, name)


def _too_large(limit: int, where: str) -> TooLarge:
    return TooLarge(
        "upload.too_large",
        f"larger than the {limit} bytes this hub takes",
        where=where,
        hint="ask the hub's operator to raise the limit",
    )


def _path(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _flush(target.parent)


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


def read_document(upload: Upload, limit: int, where: str) -> bytes:
    """Return the whole content of a small file; raises `TooLarge` over `limit` bytes."""
    if upload.size > limit:
        raise TooLarge("upload.too_large", f"larger than {limit} bytes", where=where)
    content = upload.read(0, upload.size)
    if len(content) != upload.size:
        raise HubError("upload.truncated", "the file ended early", where=where, hint="upload it again")
    return content
