"""A stranger's model is looked at in a process of its own, with limits: a few hundred bytes can ask for much."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from suture_contract.errors import SutureError
from suture_contract.inspection import Inspection

#: So many seconds, and so many bytes beside what the program itself takes.
SECONDS, MEMORY = 60.0, 2 * 2**30
#: Where Linux tells how much memory a process has.
_STATUS = Path("/proc/self/status")


def inspect_apart(
    path: Path,
    *,
    metadata: Path | None = None,
    sizes: Sequence[Sequence[int]] = (),
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> Inspection:
    """Return what `suture_stitching.inspect.inspect` finds, in a child that has so much time and memory (bytes).

    The child is forked, so that torch is imported once; where a system cannot fork, the time alone is limited. Raises
    `SutureError`, `model.over_budget` where the child came to an end of what it has.
    """
    from suture_stitching.inspect import inspect

    if not (hasattr(os, "fork") and _STATUS.exists()):
        return inspect(path, metadata=metadata, sizes=sizes, seconds=seconds)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def look() -> None:
        try:
            _limit(seconds, memory)
            answer = inspect(path, metadata=metadata, sizes=sizes, seconds=seconds).model_dump_json()
            there.send_bytes(json.dumps({"found": answer}).encode())
        except SutureError as error:
            there.send_bytes(json.dumps({"error": error.as_dict()}).encode())
        except MemoryError:
            pass
        finally:
            there.close()
            # Without what the program that it was forked from would do at its end.
            os._exit(0)

    child = context.Process(target=look, daemon=True)
    child.start()
    there.close()
    try:
        answer = _read(here, time.monotonic() + seconds + 5)
    finally:
        here.close()
        with suppress(OSError):
            child.kill()
        child.join()
    if answer is None:
        raise SutureError(
            "model.over_budget",
            f"looking at it takes more than {seconds:.0f} s or {memory / 2**30:.3g} GiB",
            where=str(path),
            hint="honest files take seconds; if you trust this one, give --seconds and --memory",
        )
    if "error" in answer:
        raise SutureError(**answer["error"])
    return Inspection.model_validate_json(answer["found"])


def _read(pipe: Connection, until: float) -> dict[str, Any] | None:
    try:
        if not pipe.poll(max(0.0, until - time.monotonic())):
            return None
        content: dict[str, Any] = json.loads(pipe.recv_bytes())
    except (EOFError, OSError, ValueError):
        return None
    return content


def _limit(seconds: float, memory: int) -> None:
    import resource

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Parts of torch that are imported later ask where temporary files go, which is found out by writing one.
    tempfile.gettempdir()
    with _STATUS.open(encoding="ascii", errors="replace") as status:
        (line,) = [line for line in status if line.startswith("VmData")]
    for kind, value in (
        (resource.RLIMIT_DATA, int(line.split()[1]) * 1024 + memory),
        (resource.RLIMIT_CPU, int(seconds) + 5),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
