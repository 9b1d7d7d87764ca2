"""How much room the disk under a site's state must have."""

from __future__ import annotations

import shutil
from pathlib import Path

from suture_contract.errors import SutureError

#: What a site needs to go on at all, in bytes: journals, logs, a task's small files.
SPARE = 64 * 2**20
#: The code of what could not be done because there was no room.
DISK_FULL = "site.disk_full"
#: How much must be free, for people.
RULE = f"{SPARE / 2**20:.0f} MiB, and for a task twice what its models and files take"


def needed_for(size: int) -> int:
    """Return the bytes that must be free for a task whose files have `size` bytes: they come once, and results go."""
    return 2 * size + SPARE


def free_room(state: Path) -> int:
    """Return the bytes that are free on the disk under the state."""
    return shutil.disk_usage(state).free


def check_room(state: Path, size: int = 0) -> None:
    """Raise `SutureError` `site.disk_full` unless there is room for a task whose files have `size` bytes."""
    free, needed = free_room(state), needed_for(size)
    if free < needed:
        raise SutureError(
            DISK_FULL,
            f"{free / 2**20:.0f} MiB are free, {needed / 2**20:.0f} MiB are needed: {RULE}",
            where=str(state),
            hint="make room, or give the site another state folder; it goes on by itself",
        )
