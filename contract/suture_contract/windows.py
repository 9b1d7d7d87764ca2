"""Names that Windows gives another meaning, and modules that only Unix has.

The client runs on Windows; hubs and sites do not. Names that come from elsewhere are checked before they become files.
"""

from __future__ import annotations

import os
import re

from suture_contract.errors import SutureError

#: Of Python's own modules, those that are missing there and that hubs and sites need.
UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}
#: Whether this is Windows.
HERE = os.name == "nt"
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_SPECIAL = re.compile(r'[<>:"|?*\\\x00-\x1f]')


def check_path(path: str) -> str:
    """Return a path from elsewhere, with `/`; raise `SutureError` `file.name` if on this system it names another."""
    if HERE and not is_plain(path):
        raise SutureError(
            "file.name",
            "on Windows this name means something else than a file",
            where=path,
            hint="name another folder; a model with such a file can be pulled on Linux or macOS",
        )
    return path


def is_plain(path: str) -> bool:
    """Whether every part of a path with `/` is a plain name on Windows, too: no device, drive or stream."""
    return not any(
        _SPECIAL.search(part) or part.endswith((".", " ")) or part.partition(".")[0].strip().lower() in _DEVICES
        for part in path.split("/")
    )


def unsupported(where: str | None) -> SutureError:
    """Return the error for what does not run on this system."""
    return SutureError(
        "system.unsupported",
        f"{where or 'this part of Suture'} runs on Linux, and for trying it out on macOS, but not on this system",
        hint="the client's commands run here; run hub and sites on Linux",
    )
