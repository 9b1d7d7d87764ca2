"""Arrays too large for memory: written once to a temporary file that is mapped, and gone with its last reader."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from suture_contract.errors import SutureError


class Spool:
    """Takes bytes or rows one after another; `array` then maps what was taken.

    The file has no name, so that nothing is left behind however the process ends. It lies in Python's temporary folder:
    `TMPDIR`, and for a site's task a folder in the site's state. When that is full, `SutureError` `dataset.disk_full`
    is raised.
    """

    def __init__(self) -> None:
        with naming_the_disk():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller's `with`

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A mapping keeps the content for as long as it is used. What a full disk did not take is not needed any more.
        with suppress(OSError):
            self._file.close()

    def append(self, content: bytes | NDArray[Any]) -> None:
        """Write `content` behind what is there already, rows in C order."""
        with naming_the_disk():
            self._file.write(content if isinstance(content, bytes) else np.ascontiguousarray(content).data)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike, *, fortran: bool = False) -> NDArray[Any]:
        """Return the content as an array that can be written to, too; pages are read when they are touched."""
        if not prod(shape):
            return np.empty(shape, dtype)
        with naming_the_disk():
            self._file.flush()
        mapped: NDArray[Any] = np.memmap(self._file, dtype, "r+", 0, shape, "F" if fortran else "C")
        return mapped


@contextmanager
def naming_the_disk() -> Iterator[None]:
    """Turn the system's error for a full disk into one that says which and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise SutureError(
            "dataset.disk_full",
            "no space is left to unpack the data",
            where=tempfile.gettempdir(),
            hint="free some, or move it to a larger disk: a site's state, or TMPDIR where there is no site",
        ) from None


__all__ = ["Spool", "naming_the_disk"]
