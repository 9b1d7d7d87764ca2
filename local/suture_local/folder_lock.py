"""A folder is worked in by one process at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from suture_contract.errors import SutureError


def lock(root: Path) -> IO[bytes]:
    """Take the folder for this process until the returned file is closed; raises `SutureError` `root.in_use`."""
    file = (root / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SutureError(
            "root.in_use", "another process works in this folder", where=str(root), hint="stop it first (Ctrl-C)"
        ) from None
    return file
