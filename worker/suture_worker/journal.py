"""A file that only grows, one line after the other, each durable before what it speaks of happens."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_LINE = 2**20


class Journal:
    """Appends whole lines to `path`; one process at a time, each opening first removes a line that was cut short.

    Such a line names nothing that happened: it was not durable yet when its writer died.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        start, tail = self._tail()
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, start + tail.rfind(b"\n") + 1)

    def last(self) -> bytes | None:
        """Return the last line, if there is one."""
        lines = self._tail()[1].splitlines()
        return lines[-1] if lines else None

    def append(self, line: bytes) -> None:
        """Add a line; durable on return. Raises `OSError` when the disk is full, and then nothing was added."""
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line + b"\n") != len(line) + 1:
                raise OSError(errno.ENOSPC, "the disk is full", str(self.path))
            os.fsync(self._descriptor)  # which a file server whose disk is full refuses, having taken the line
        except BaseException:
            os.ftruncate(self._descriptor, before)
            raise

    @contextmanager
    def appended(self, line: bytes) -> Iterator[None]:
        """Add a line for good if the block ends well; if it raises, the line is taken back."""
        before = os.fstat(self._descriptor).st_size
        self.append(line)
        try:
            yield
        except BaseException:
            os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _tail(self) -> tuple[int, bytes]:
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - _LONGEST_LINE)
        return start, os.pread(self._descriptor, size - start, start)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a journal, without one that is still being written; none if there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()
