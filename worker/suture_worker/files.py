"""Writing files so that they appear whole or not at all, for this user's eyes only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from suture_contract.errors import SutureError

_T = TypeVar("_T")


def write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: temporary name, fsync, rename, fsync of the folder. Mode 0600."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def still_there(paths: Iterable[Path], read: Callable[[Path], _T]) -> list[_T]:
    """Return what `read` makes of each path, less those that another process took away in the meantime."""
    contents = []
    for path in paths:
        try:
            contents.append(read(path))
        except (OSError, SutureError):
            if path.exists():
                raise
    return contents
