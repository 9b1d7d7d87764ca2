"""Files on their way: where they land, what has come of a download, and what is read for an upload."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from suture_contract.errors import SutureError
from suture_contract.files import replacing, telling

#: Told how many more bytes went over the wire; negative when a transfer had to start again.
OnBytes = Callable[[int], None]
#: Every change of hands costs as much as hashing some ten thousand bytes does: there should not be many.
_BUFFER = 4 * 2**20
_FIRST = 2**18


@contextmanager
def landing(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary file beside `target` that takes its place, synced, when the block ends; gone if it raises.

    It has the rights that the umask leaves, or is `private`, its owner's alone.
    """
    with telling(target.parent, code="file.unwritable"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, private=private) as partial:
        yield partial


class Incoming:
    """The received part of a download: while more of it comes, a thread hashes and writes what has come.

    A context: its end ends the thread. What goes wrong in the thread is raised by the next call that waits for it: a
    `write` that fills a buffer, `restart`, or `digest`.
    """

    def __init__(self, file: io.FileIO, size: int | None, on_bytes: OnBytes) -> None:
        self.received = 0
        self._file = file
        self._size = size
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        # One is filled while the other is hashed and written. Most files are small: what comes first is held in less.
        self._filling, self._other, self._filled = memoryview(bytearray(_FIRST)), memoryview(b""), 0
        self._thread = ThreadPoolExecutor(1, "suture-download")
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def write(self, chunk: bytes) -> None:
        """Take what has come; raises `SutureError` `download.size` when it is more than was promised."""
        if self._size is not None and self.received + len(chunk) > self._size:
            raise SutureError("download.size", f"more than the promised {self._size} bytes came", where="download")
        rest = memoryview(chunk)
        while rest:
            taken = min(len(rest), len(self._filling) - self._filled)
            self._filling[self._filled : self._filled + taken] = rest[:taken]
            self._filled, rest = self._filled + taken, rest[taken:]
            if self._filled == len(self._filling):
                self._hand_over()
        self.received += len(chunk)
        self._on_bytes(len(chunk))

    def restart(self) -> None:
        """Forget what has come: it comes again from the beginning."""
        self._wait()
        self._on_bytes(-self.received)
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.received = self._filled = 0

    def digest(self) -> str:
        """Return the sha256 (hex) of what has come, once all of it is in the file."""
        self._wait()
        self._take(self._filling[: self._filled])
        self._filled = 0
        return self._hash.hexdigest()

    def _hand_over(self) -> None:
        self._wait()
        self._running = self._thread.submit(self._take, self._filling)
        if len(self._other) < _BUFFER:
            self._other = memoryview(bytearray(_BUFFER))
        self._filling, self._other, self._filled = self._other, self._filling, 0

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _take(self, content: memoryview) -> None:
        self._hash.update(content)
        while content:
            content = content[self._file.write(content) :]


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
