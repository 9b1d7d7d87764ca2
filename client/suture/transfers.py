"""Files on their way: where they land, what has come of a download, and what is read for an upload."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
#: What is read, and handed to the socket, at once.
_SENT = 2**18


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


class Outgoing:
    """A file being uploaded, piece by piece, that tells how much of it was read; anew from its beginning each time.

    Where it is `hashed`, a thread hashes what is on its way. Raises `SutureError` `publish.changed` where it becomes
    shorter or longer than was said.
    """

    def __init__(self, path: Path, on_bytes: OnBytes | None, *, hashed: bool = False) -> None:
        self._path = path
        self._on_bytes = on_bytes or (lambda _count: None)
        self._hashed = hashed
        self._gone = 0
        self._size = path.stat().st_size
        #: Of a hashed one the sha256 (hex), once all of it was read.
        self.sha256: str | None = None

    def __len__(self) -> int:
        """Return its size in bytes."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """Yield its bytes."""
        if self._gone:
            self._on_bytes(-self._gone)
            self._gone = 0
        with self._path.open("rb", buffering=0) as file:
            for chunk in self._hashing(file) if self._hashed else iter(partial(file.read, _SENT), b""):
                self._gone += len(chunk)
                if self._gone > self._size:
                    break
                self._on_bytes(len(chunk))
                yield chunk
        if self._gone != self._size:
            raise SutureError(
                "publish.changed",
                "the file was changed while it was sent",
                where=str(self._path),
                hint="nothing was published: publish again once nothing writes to it",
            )

    def _hashing(self, file: io.FileIO) -> Iterator[bytes]:
        digest, running = hashlib.sha256(), None
        # One is read and sent while the other is hashed.
        size = max(min(_BUFFER, len(self)), 1)
        filling, other = memoryview(bytearray(size)), memoryview(bytearray(size))
        with ThreadPoolExecutor(1, "suture-upload") as thread:
            while length := file.readinto(filling):
                if running is not None:
                    running.result()
                running = thread.submit(digest.update, filling[:length])
                for start in range(0, length, _SENT):
                    yield bytes(filling[start : min(start + _SENT, length)])
                filling, other = other, filling
        self.sha256 = digest.hexdigest()


class Form:
    """Several files on their way as one `multipart/form-data`; `parts` is field -> (file name, content)."""

    def __init__(self, parts: Mapping[str, tuple[str, Outgoing | bytes]]) -> None:
        # As long as one may be. A hub looks for it in all that comes: for a long one in larger steps.
        boundary = secrets.token_hex(35)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._parts: list[tuple[bytes, Outgoing | bytes]] = []
        for field, (name, content) in parts.items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
            self._parts.append((f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), content))
        self._end = f"--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        """Return the size of the whole in bytes."""
        return sum(len(head) + len(content) + 2 for head, content in self._parts) + len(self._end)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes of the whole."""
        for head, content in self._parts:
            yield head
            if isinstance(content, bytes):
                yield content
            else:
                yield from content
            yield b"\r\n"
        yield self._end
