"""A PostgreSQL server that can be killed and started again on what it left."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from tests.conftest import Postgres


class Killable(Postgres):
    """Written back as in real use: what a killed server has promised must be there again."""

    def kill(self) -> None:
        """SIGKILL, to the server and to the processes that serve its connections."""
        server = psutil.Process(self.process.pid)
        family = [server, *server.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(120)
        psutil.wait_procs(family, timeout=60)


@contextlib.contextmanager
def killable() -> Iterator[Killable]:
    """Yield a server of one's own."""
    folder = Path(tempfile.mkdtemp(prefix="suture-pg-"))
    try:
        server = Killable(folder, durable=True)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
