"""A migration in a process of its own that is killed, or counts its statements.

The process is forked by one that has imported the hub: doing that anew takes longer than the migration.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.queues import SimpleQueue
from typing import Any

from suture_service import operate
from suture_service.settings import Settings

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["suture_service.operate"])


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
