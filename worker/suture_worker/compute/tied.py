"""A program of somebody else's, ended by the kernel when the process that started it is gone.

`python -m suture_worker.compute.tied PARENT PROGRAM [ARGUMENT ...]`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from suture_worker.compute import confine


def tied(command: Sequence[str]) -> list[str]:
    """Return the command line by which this process starts `command`, which is the absolute path of a program first."""
    return [sys.executable, "-m", __name__, str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Become the program, which keeps this process's number and its tie."""
    parent, *command = arguments
    confine.die_with_parent(int(parent))
    os.execv(command[0], command)  # noqa: S606 - our own command


if __name__ == "__main__":
    main(sys.argv[1:])
