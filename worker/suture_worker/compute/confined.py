"""Processes that look at what strangers have made: how one gives up all it does not need, and how one is asked.

Neither token nor network is within reach of such a process, and it ends when it takes more memory or time than it may.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from suture_contract.console.plain import InertStream
from suture_worker.compute import confine

#: All that such a process gets of its parent's environment.
_PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH")
#: Libraries, and what the C library looks up; not the whole of /etc or /opt, where a site may keep its token.
_SYSTEM = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/cuda",
    "/usr/share",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
)
_ETC = ("ld.so.cache", "localtime", "passwd", "group", "nsswitch.conf")


def give_up(
    *,
    read: Iterable[Path],
    write: Iterable[Path] = (),
    memory_bytes: int,
    cpu_seconds: int,
    file_bytes: int,
    local_sockets: bool = False,
) -> None:
    """Keep only these files, the interpreter and its libraries; say on standard error what this kernel cannot take.

    Raises RuntimeError when there is a second thread: what got the better of this one could have that do its work.
    """
    confine.need_one_thread()
    # What goes wrong from here on may be told in words of a file that somebody else wrote.
    sys.stderr = InertStream(sys.stderr.fileno())
    interpreter = {Path(place) for place in (*sys.path, sys.prefix, sys.base_prefix, sys.executable) if place}
    libraries = [Path(place) for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place]
    system = [*map(Path, _SYSTEM), *(Path("/etc") / name for name in _ETC), *libraries]
    # Before files are taken away: it reads what other processes there are, and says that this one is the first to end.
    confine.limit(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds, file_bytes=file_bytes)
    if not confine.only_files(read=[*interpreter, *system, *read], write=write):
        print("this kernel cannot keep the child to its own files", file=sys.stderr)
    if not confine.no_network(local=local_sockets):
        print("this kernel cannot keep the child from the network", file=sys.stderr)
    if not confine.no_processes():
        print("this kernel cannot keep the child from starting processes", file=sys.stderr)
    if not confine.no_needless_calls():
        print("this kernel cannot keep the child from what no model needs of it", file=sys.stderr)
    if not confine.no_privileges():
        print("this kernel cannot take the superuser's privileges away", file=sys.stderr)


def ask(
    module: str,
    arguments: Sequence[str],
    *,
    question: bytes = b"",
    folder: Path,
    log: IO[bytes],
    seconds: float,
    most: int,
) -> bytes | None:
    """Run `python -m module arguments... PARENT` and return what it prints; None if it fails or prints, or takes, more.

    It reads `question` from standard input, and begins in `folder`, which is its HOME, too. `log` gets its errors.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as asked:
        asked.write(question)
        asked.seek(0)
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-I", "-B", "-m", module, *arguments, str(os.getpid())],
            env=environment,
            cwd=folder,
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,
        )
    with process:
        assert process.stdout is not None
        try:
            answer = _read(process.stdout, time.monotonic() + seconds, most)
            return answer if answer is not None and process.wait(seconds) == 0 else None
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _read(output: IO[bytes], deadline: float, most: int) -> bytes | None:
    answer = b""
    while len(answer) <= most:
        if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        if not (more := output.read(most + 1 - len(answer))):
            return answer
        answer += more
    return None
