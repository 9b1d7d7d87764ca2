"""A hub in a process of its own; a migration in one, which is killed or counts its statements.

The processes are forked by one that has imported the hub: doing that anew takes longer than most of what they do.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
from multiprocessing.queues import SimpleQueue
from typing import Any

from suture_service import operate
from suture_service.settings import Settings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["suture_service.main"])


def hub(settings: Settings, port: int) -> multiprocessing.process.BaseProcess:
    """Start a hub on a port of this machine."""
    process = _context.Process(target=_serve, args=(settings, port), daemon=True)
    process.start()
    return process


def _serve(settings: Settings, port: int) -> None:
    from suture_service.main import serve

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(settings, port=port)


def migrate(url: str, *, killed_at: int = 0) -> tuple[int, int | None]:
    """Migrate, or be killed just before that statement, from 1; return the status, and the number of statements."""
    answer: SimpleQueue[int] = _context.SimpleQueue()
    process = _context.Process(target=_migrate, args=(url, killed_at, answer))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it takes too long"
    return process.exitcode, answer.get() if process.exitcode == 0 else None


def _migrate(url: str, killed_at: int, answer: SimpleQueue[int]) -> None:
    from sqlalchemy import Engine, event

    count = 0

    @event.listens_for(Engine, "before_cursor_execute")
    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    operate.migrate(Settings(database_url=url))
    answer.put(count)
