"""A process that has imported what every task needs, and forks a child for each.

`python -m suture_worker.compute.forkserver PARENT`

Importing torch and the engine takes longer than many a task. The server does it once, with an empty environment, one
thread, no socket and no secret, and reads nothing but what its worker tells it: the folder of the next task. The child
it forks gives up what it does not need before it reads anything of the task's, does that one task, and ends.

The worker writes a line for a task, `{"folder": ..., "words": [...]}`, and an empty one to have its child killed; it
reads the child's process id and then its status, each on a line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from suture_contract.files import is_full
from suture_worker.compute import confine
from suture_worker.folder import TaskFolder

#: All of the worker's environment that a child gets: no token, no proxy, no broker.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "TZ")
COMMAND = ("-I", "-B", "-m", "suture_worker.compute.forkserver")
NAME = "suture-task"
_ANSWER_SECONDS = 10.0
#: How a child ends that has no room to write how it ended: EX_IOERR of sysexits.h.
NO_ROOM = 74
_TICK = 0.02


class ForkServer(threading.local):
    """The worker's side: one server, started again when it is gone.

    Each thread has its own: the kernel ends a server with the thread that started it.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, state: Path) -> subprocess.Popen[bytes]:
        """Return the server, which is started unless it runs; it is not waited for. It begins in the site's state."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
            # Threads that wait sleep instead of spinning: on a shared machine small models are several times faster.
            environment |= {"HOME": str(state), "TMPDIR": str(state), "OMP_WAIT_POLICY": "PASSIVE"}
            # NumPy would start threads, which no child has after a fork.
            environment |= {"OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *COMMAND, str(os.getpid())],
                env=environment,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        return self._process

    def stop(self) -> None:
        """End the server, and with it any child."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def fork(self, folder: TaskFolder) -> ForkedChild:
        """Have a child do the task in the folder. Its output goes to the folder's log."""
        folder.log.unlink(missing_ok=True)  # an earlier run's
        state = folder.path.parent.parent
        request = json.dumps({"folder": str(folder.path), "words": folder.words}).encode() + b"\n"
        try:
            return ForkedChild(self, self.start(state), request)
        except BrokenPipeError:  # it ended since it was looked at
            self.stop()
            return ForkedChild(self, self.start(state), request)


class ForkedChild:
    """A child at work. One that did not end by itself takes its server with it: the next ones have other addresses."""

    def __init__(self, owner: ForkServer, server: subprocess.Popen[bytes], request: bytes) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._owner, self._server = owner, server
        self._requests, self._answers = server.stdin, server.stdout
        self._received = b""
        self._pid: int | None = None
        self._status: int | None = None
        self._requests.write(request)

    def wait(self, seconds: float) -> int | None:
        """Return its status (negative: by that signal) once it has ended; None if it has not within so many seconds."""
        deadline = time.monotonic() + seconds
        while self._status is None and self._speaks(deadline):
            chunk = self._answers.read(64)
            if not chunk:
                self._lost()
            self._received += chunk
            first, *rest = self._received.split(b"\n")
            self._pid = int(first) if rest else None
            self._status = int(rest[0]) if len(rest) > 1 else self._status
        return self._status

    def _speaks(self, deadline: float) -> bool:
        """Whether the server says something before the deadline."""
        return bool(select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0])

    def end(self) -> int:
        """Kill it, if it is still there, with all it started; return its status."""
        if self.wait(0) is None:
            with contextlib.suppress(BrokenPipeError):
                self._requests.write(b"\n")
            if self.wait(_ANSWER_SECONDS) is None:
                self._lost()
        assert self._status is not None
        if self._status < 0:
            self._owner.stop()
        return self._status

    def _lost(self) -> None:
        """End what is left of a server that says no more, and of its child, and take its outcome for the child's."""
        self._server.kill()
        self._status = self._server.wait()
        deadline = time.monotonic() + _ANSWER_SECONDS
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while self._pid is not None and time.monotonic() < deadline:
                os.killpg(self._pid, signal.SIGKILL)
                time.sleep(_TICK)


def main(arguments: Sequence[str]) -> None:
    """Import, and serve until the worker is gone."""
    (parent,) = arguments
    confine.die_with_parent(int(parent))
    confine.adopt()
    # What is imported may print, and must not be taken for an answer.
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    environment, places = dict(os.environ), list(sys.path)
    environment.pop("OPENBLAS_NUM_THREADS")
    with tempfile.TemporaryDirectory(prefix="forkserver-") as scratch:
        os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = scratch
        _import()
    # Parts of torch keep places in that folder: no child is to look there.
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = places
    while request := _line(requests):
        if request.strip():
            confine.need_one_thread()
            asked = json.loads(request)
            server = os.getpid()
            if (pid := os.fork()) == 0:
                os.close(requests)
                os.close(answers)
                _be_child(Path(asked["folder"]), asked["words"], server)
            os.write(answers, b"%d\n" % pid)
            os.write(answers, b"%d\n" % _watch(pid, requests))


def _import() -> None:
    """Import what every task needs, and nothing that starts a thread or asks for a device."""
    import numpy  # noqa: F401 - its threads are counted when it is imported

    os.environ.pop("OPENBLAS_NUM_THREADS", None)
    import torch
    from torch.nn.functional import conv2d

    from suture_stitching import data  # noqa: F401
    from suture_stitching.ensemble import compose  # noqa: F401
    from suture_stitching.evaluation import evaluate, select  # noqa: F401
    from suture_stitching.fitting import fit  # noqa: F401
    from suture_stitching.portable import dry_run, runtime  # noqa: F401
    from suture_stitching.portable.shape_kernels import without_compiler
    from suture_worker.compute import child  # noqa: F401
    from suture_worker.leased_task import import_sides

    import_sides()

    # The first convolution that runs on shapes alone has torch import SymPy.
    without_compiler()
    images = torch.empty(1, 1, 1, 1, device="meta")
    conv2d(images, images)
    gc.collect()
    gc.freeze()  # a collection in a child does not touch, and so copy, what it shares with the server


def _line(requests: int) -> bytes:
    """Return the next line, which the worker writes at once; empty when the worker is gone."""
    line = b""
    while not line.endswith(b"\n"):
        if not (chunk := os.read(requests, 4096)):
            return b""
        line += chunk
    return line


def _be_child(folder: Path, words: Sequence[str], parent: int) -> NoReturn:
    """Do the task and end, whatever happens: nothing of this process may go back to serving."""
    status = 1
    try:
        os.setsid()
        confine.die_with_parent(parent)
        confine.name(NAME)
        from suture_worker.compute import child

        place = child.find(folder, words)
        log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.update(HOME=str(place.scratch), TMPDIR=str(place.scratch))
        tempfile.tempdir = None
        os.chdir(place.scratch)
        child.main(place)
        status = 0
    except BaseException as error:
        status = NO_ROOM if is_full(error) else 1
        with contextlib.suppress(OSError):
            traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _watch(pid: int, requests: int) -> int:
    """Return the status of a child that has ended, or that the worker wants killed or has left."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == 0 and select.select([requests], [], [], _TICK)[0]:
            _line(requests)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0)
        if ended:
            confine.end_adopted()  # what it started, in whatever session that is by now
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main(sys.argv[1:])
