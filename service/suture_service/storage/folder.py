"""A folder as the hub's store.

Plain file calls, made in threads: they tell a full disk from any other error, can be synced, and move a gigabyte in
half the time that a general writer takes.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from anyio.to_thread import run_sync

from suture_contract.files import can_lock, telling, trouble
from suture_service.errors import StoreFull
from suture_service.storage.places import TEMPORARY, Room, Stored, missing

_CHUNK = 2**20
#: So many small files are written at once.
_THREADS = 4
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FolderFile:
    """A temporary file of the store. It is locked while it is open, so that no other hub takes it for left behind."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._written = 0

    async def write(self, content: memoryview) -> None:
        """Append."""
        await run_sync(self.append, content)

    async def finish(self) -> None:
        """Bring everything to the disk."""
        await run_sync(self.sync)

    def sync(self) -> None:
        """Bring everything to the disk, in this thread."""
        with _reporting_full():
            os.fsync(self._file.fileno())

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, wherever the file has been moved to."""
        return os.pread(self._file.fileno(), length, offset)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on, as `read` does; return how many bytes there were."""
        return os.preadv(self._file.fileno(), [buffer], offset)

    async def discard(self) -> None:
        """Remove the file, unless it has been moved to its place."""
        self.remove()

    def remove(self) -> None:
        """As `discard`, in this thread."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def append(self, content: memoryview) -> None:
        """As `write`, in this thread."""
        start = self._written
        with _reporting_full():
            while content:
                count = self._file.write(content)
                content = content[count:]
                self._written += count
        if hasattr(os, "posix_fadvise"):
            # On Linux this begins to bring it to the disk, and does not wait for it: little is left to do at the end.
            os.posix_fadvise(self._file.fileno(), start, self._written - start, os.POSIX_FADV_DONTNEED)


class Folder:
    """Blobs as files `sha256/ab/abcd…`, temporary files in `tmp`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with telling(path, code="hub.store"), _reporting_full():
            for folder in (path, path / TEMPORARY):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(OSError):  # one may read a backup where one cannot write
            if path.stat().st_mode & 0o077:
                path.chmod(0o700)
            if not can_lock(path / TEMPORARY):
                raise trouble(OSError(errno.ENOLCK, ""), where=path, code="hub.store")

    async def create(self, limit: int) -> FolderFile:
        """Return a new temporary file; `limit`, the most that will come, does not matter here."""
        return await run_sync(self._create)

    def _create(self) -> FolderFile:
        while True:
            path = self._path / TEMPORARY / secrets.token_hex(16)
            with _reporting_full():
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            file = os.fdopen(descriptor, "r+b", buffering=0)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else a sweep came between these lines
                return FolderFile(path, file)
            file.close()

    async def keep(self, file: FolderFile, name: str, size: int) -> None:
        """Give a temporary file its final name; a file that has it is replaced, and is young again."""
        await run_sync(self._keep, file.path, self._path / name)

    def _keep(self, source: Path, target: Path) -> None:
        with _reporting_full():
            os.utime(source)
            _move(source, target)
            _sync(target.parent)

    async def put(self, contents: Mapping[str, bytes]) -> None:
        """Write small files: a disk syncs several at once, and each folder is synced once."""
        files = list(contents.items())
        portions = [files[start::_THREADS] for start in range(min(_THREADS, len(files)))]
        done = await asyncio.gather(*(run_sync(self._put, portion) for portion in portions), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    def _put(self, files: Sequence[tuple[str, bytes]]) -> None:
        folders = set()
        with _reporting_full():
            for name, content in files:
                file, target = self._create(), self._path / name
                try:
                    file.append(memoryview(content))
                    file.sync()
                    _move(file.path, target)
                finally:
                    file.remove()
                folders.add(target.parent)
            for folder in folders:
                _sync(folder)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        with self._open(name) as file:
            return os.pread(file.fileno(), length, offset)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were."""
        with self._open(name) as file:
            return os.preadv(file.fileno(), [buffer], offset)

    async def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes `start` to `end` (exclusive)."""
        return _stream(await run_sync(self._open, name), name, start, end)

    def sign(self, name: str, seconds: int) -> str | None:
        """Return None: a folder has no address of its own."""
        return None

    def find(self, names: Sequence[str]) -> list[Stored | None]:
        """Return what is stored under each of the names."""
        return [self._stat(name) for name in names]

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield what is stored in the folder `prefix` and in those below it."""
        for folder, _, files in os.walk(self._path / prefix):
            for name in files:
                stored = self._stat(os.path.relpath(os.path.join(folder, name), self._path))  # noqa: PTH118
                if stored is not None:
                    yield stored

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def keeps_versions(self, names: Sequence[str]) -> bool:
        """Return False: a file that is removed is gone."""
        return False

    def room(self) -> Room | None:
        """Return how much room the disk has."""
        usage = shutil.disk_usage(self._path)
        return Room(usage.free, usage.total)

    def check(self) -> None:
        """Raise if the folder cannot be written to."""
        file = self._create()
        file.path.unlink()
        file._file.close()

    def sweep(self) -> int:
        """Remove temporary files whose process has ended; return how many."""
        count = 0
        for path in (self._path / TEMPORARY).iterdir():
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    count += 1
            except (BlockingIOError, FileNotFoundError):
                continue  # being written, or just gone
        return count

    def _open(self, name: str) -> BinaryIO:
        try:
            return (self._path / name).open("rb", buffering=0)
        except FileNotFoundError:
            raise missing(name) from None

    def _stat(self, name: str) -> Stored | None:
        try:
            stat = (self._path / name).stat()
        except FileNotFoundError:
            return None
        return Stored(name, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


async def _stream(file: BinaryIO, name: str, start: int, end: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(start)
        left = end - start
        while left > 0:
            chunk: bytes = await run_sync(file.read, min(_CHUNK, left))
            if not chunk:
                raise missing(name)
            left -= len(chunk)
            yield chunk


@contextmanager
def _reporting_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull() from None
        raise


def _move(source: Path, target: Path) -> None:
    """Give a file its name; its folder is made where it is missing, and to be synced."""
    if not target.parent.exists():
        target.parent.parent.mkdir(mode=0o700, exist_ok=True)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _sync(target.parent.parent)
    source.replace(target)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
