"""Files on their way: where they land, what has come of a download, and what is read for an upload."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from suture_stitching.errors import SutureError

#: Told how many more bytes went over the wire; negative when a transfer had to start again.
OnBytes = Callable[[int], None]


@contextmanager
def landing(target: Path) -> Iterator[Path]:
    """Give a temporary file beside `target` that takes its place, synced, when the block ends; gone if it raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class Incoming:
    """The received part of a download: written, hashed and counted together."""

    def __init__(self, file: io.BufferedWriter, size: int | None, on_bytes: OnBytes) -> None:
        self.digest = hashlib.sha256()
        self.received = 0
        self._file = file
        self._size = size
        self._on_bytes = on_bytes

    def write(self, chunk: bytes) -> None:
        """Take what has come; raises `SutureError` `download.size` when it is more than was promised."""
        if self._size is not None and self.received + len(chunk) > self._size:
            raise SutureError("download.size", f"more than the promised {self._size} bytes came", where="download")
        self._file.write(chunk)
        self.digest.update(chunk)
        self.received += len(chunk)
        self._on_bytes(len(chunk))

    def restart(self) -> None:
        """Forget what has come: it comes again from the beginning."""
        self._on_bytes(-self.received)
        self._file.seek(0)
        self._file.truncate()
        self.digest = hashlib.sha256()
        self.received = 0


class Outgoing(io.FileIO):
    """A file being uploaded that tells how much of it was read."""

    def __init__(self, path: Path, on_bytes: OnBytes | None) -> None:
        super().__init__(path, "rb")
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        chunk = super().read(size if size is not None else -1)
        if self._on_bytes is not None:
            self._on_bytes(len(chunk))
        return chunk

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to another place in the file, as a repeated request does."""
        position = self.tell()
        target = super().seek(offset, whence)
        if self._on_bytes is not None and target != position:
            self._on_bytes(target - position)
        return target


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
