"""Keeping a site's processes running: restarted when they end, stopped together, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from suture_worker.stop import Stop

STABLE_SECONDS = 60.0
LONGEST_PAUSE = 60.0
GRACE_SECONDS = 8.0
MAX_LOG = 16 * 2**20
#: The event under which a part says why it cannot go on.
LAST_WORDS = "cannot go on"
_LAST_BYTES, _SHOWN = 2**16, 300
_TICK = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SitePart:
    """A process that must run: its command line and the file its output goes to.

    `first` is another command line that is as good for the first time, and sooner there.
    """

    name: str
    command: Sequence[str]
    log: Path
    first: Sequence[str] = ()


def pause_before(restart: int) -> float:
    """Return the seconds to wait before restart number `restart` (from 1) in a row: 1, 2, 4 ... 60."""
    return min(LONGEST_PAUSE, 2.0 ** min(restart - 1, 10))


def last_words(path: Path, start: int) -> dict[str, str]:
    """Return why a process ended, by its log from byte `start` on: its own reason, or its last line."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, path.stat().st_size - _LAST_BYTES))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == LAST_WORDS:
            names = {"code": "code", "message": "problem", "where": "where", "hint": "next"}
            return {new: str(entry[name]) for name, new in names.items() if entry.get(name)}
    return {"last_line": lines[-1][:_SHOWN]} if lines else {}


class _Kept:
    """One part with the process that currently plays it."""

    def __init__(self, part: SitePart, environment: Mapping[str, str]) -> None:
        self.part = part
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = environment
        self._first = part.first
        self._started = 0.0
        self._failures = 0
        self._again_at = 0.0
        self._said_before = 0

    def start(self) -> None:
        path = self.part.log
        if path.exists() and path.stat().st_size > MAX_LOG:
            path.replace(path.with_name(f"{path.name}.1"))
        self._said_before = path.stat().st_size if path.exists() else 0
        command = self._first or self.part.command
        self._first = ()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own programs
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self._environment),
                start_new_session=True,
            )
        self._started = time.monotonic()

    def keep(self) -> None:
        now = time.monotonic()
        if self.process is None:
            if now >= self._again_at:
                self.start()
            return
        status = self.process.poll()
        if status is None:
            return
        self.sweep_up()
        self._failures = 1 if now - self._started > STABLE_SECONDS else self._failures + 1
        self._again_at = now + pause_before(self._failures)
        self.process = None
        log.warning(
            "ended by itself; it is started again",
            part=self.part.name,
            status=status,
            **last_words(self.part.log, self._said_before),
            again_in=pause_before(self._failures),
            log=str(self.part.log),
        )

    def ask_to_stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def stop(self, deadline: float) -> None:
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        self.sweep_up()
        self.process.wait()
        self.process = None

    def sweep_up(self) -> None:
        """End the process and whatever it started and left in its group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def supervise(parts: Sequence[SitePart], stop: Stop, *, environment: Mapping[str, str]) -> None:
    """Start `parts` in order and keep them running until `stop` is set; then stop them, the last one first.

    Call it from the main thread: the kernel ends a part when the thread that started it is gone.
    """
    kept = [_Kept(part, environment) for part in parts]
    try:
        for part in kept:
            part.start()
        while not stop.wait(_TICK):
            for part in kept:
                part.keep()
    finally:
        # All but the first (Redis) are asked at once; the first is needed until the others have let go of it.
        deadline = time.monotonic() + GRACE_SECONDS
        for part in reversed(kept[1:]):
            part.ask_to_stop()
        for part in reversed(kept):
            part.ask_to_stop()
            part.stop(deadline)
