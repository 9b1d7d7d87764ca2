"""Nothing that a test run starts outlives it, whatever ends the run: its end, Ctrl-C, SIGTERM, SIGKILL.

What the run starts inherits a mark in its environment. A small process, which no signal to the run reaches, waits until
the run is gone, then ends everything that bears the mark and removes the run's folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: The mark: a folder of the run's own. In it each of several workers has one as its mark.
MARK = "TESTS_STARTED_BY"
GRACE_SECONDS = 3.0
ROUNDS = 20


class Watch:
    """Marks what this process starts from now on, and has it ended when this process is gone, or at `end`."""

    def __init__(self, mark: Path) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-E", __file__, str(mark), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != MARK},
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"watching\n"
        self._keeper.stdout.close()
        self.mark = mark
        os.environ[MARK] = str(mark)

    def end(self) -> None:
        """End what is left, and return when it is gone."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()


def new_run() -> Path:
    """Make the folder that marks a run. A socket's path has at most 107 bytes: it is short."""
    folder = Path(tempfile.mkdtemp(prefix="suture-tests-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account
    return folder


def _wait(parent: int) -> None:
    """Return when `parent` is gone, killed and not yet missed included, or asks for the end."""
    watched: list[int] = [sys.stdin.fileno()]
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError):
            watched.append(os.pidfd_open(parent))
    print("watching", flush=True)
    select.select(watched, [], [])


def _end_marked(mark: str) -> None:
    import psutil

    def marked() -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                value = process.environ().get(MARK, "")
                if value == mark or value.startswith(f"{mark}/"):
                    yield process

    for round_number in range(ROUNDS):
        found = set(marked())
        for process in list(found):
            with contextlib.suppress(psutil.Error):
                found.update(process.children(recursive=True))
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate() if round_number == 0 else process.kill()
        psutil.wait_procs(list(found), timeout=GRACE_SECONDS)


if __name__ == "__main__":
    _wait(int(sys.argv[2]))
    _end_marked(sys.argv[1])
    shutil.rmtree(sys.argv[1], ignore_errors=True)
