"""Child processes that never outlive the block that started them: not after an error, Ctrl-C, SIGTERM or SIGKILL.

with Processes() as processes:
    processes.start("hub", [sys.executable, "-m", "suture", "hub", "serve"], log=folder / "hub.log")
    processes.wait_until(hub_answers, "the hub answers", seconds=60)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from suture_contract.errors import SutureError

GRACE_SECONDS = 20.0
_END_WITH = "SUTURE_END_WITH"
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Child:
    """One started process and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """Starts processes and stops them, the last one first, when the block ends in whatever way.

    Within the block SIGTERM ends this process as Ctrl-C does: through the block's end. Use it in the main thread.
    """

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._previous: dict[signal.Signals, Any] = {}
        self._signalled: int | None = None

    def __enter__(self) -> Self:
        for number in _STOPPING:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # as in the background
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _held_back_signals():
            self.stop()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None:
            self._heed()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signalled = number
        self._heed()

    def _heed(self) -> None:
        """Raise what the last signal asks for.

        Python drops an exception where nobody could catch it, as in the callback at the end of every import: then it is
        raised again at our next step.
        """
        if self._signalled == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signalled is not None:
            raise SystemExit(128 + self._signalled)

    def start(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a process with the output in `log`. It gets no input and none of this process's SUTURE_ variables."""
        self._heed()
        log.parent.mkdir(parents=True, exist_ok=True)
        with _held_back_signals(), log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - the callers name our own programs
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**_inherited(), _END_WITH: str(os.getpid()), **(environment or {})},
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop them in order
            )
            child = Child(name, process, log)
            self._children.append(child)
        return child

    def stop(self, name: str | None = None) -> None:
        """Stop the processes of that name, or all: asked first, and ended with their whole group if they do not go."""
        stopping = [child for child in reversed(self._children) if name is None or child.name == name]
        for child in stopping:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in stopping:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
            self._children.remove(child)

    def check(self) -> None:
        """Raise `SutureError` `process.ended`, with the last lines of its log, if one has ended by itself."""
        self._heed()
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                raise SutureError(
                    "process.ended",
                    f"it ended with {status}; its last words:\n{_last_lines(child.log)}",
                    where=f"{child.name} (log: {child.log})",
                    hint="the log says why",
                )

    def wait_until(self, ready: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Ask `ready` until it says yes; raises `SutureError` when a process ends meanwhile, or after `seconds`."""
        deadline = time.monotonic() + seconds
        between = 0.05
        self._heed()
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                logs = ", ".join(str(child.log) for child in self._children)
                raise SutureError("process.slow", f"waited {seconds:g} s in vain", where=what, hint=f"see {logs}")
            time.sleep(between)
            between = min(1.0, between * 1.5)


def end_with_parent() -> None:
    """Called by a process that `Processes` started: have the kernel end it when its parent is killed (Linux only)."""
    parent = os.environ.pop(_END_WITH, None)
    if parent is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _held_back_signals() -> Iterator[None]:
    """Let nothing interrupt the block; what was asked for meanwhile happens after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    previous = {number: signal.signal(number, lambda number, _frame: seen.append(number)) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if seen:
            os.kill(os.getpid(), seen[0])


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SUTURE_")}


def _last_lines(log: Path, count: int = 15) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]) or "(none)"
    except OSError:
        return "(no log)"
