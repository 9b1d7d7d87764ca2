"""What went wrong, in full, for this site's eyes only: `logs/failures.log`.

Others learn a code and a correlation id; this is where the id leads to.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

MAX_LOG = 16 * 2**20
MAX_TEXT = 32 * 1024

log = structlog.get_logger(__name__)


def new_correlation_id() -> str:
    """Return an id that says nothing but where to look."""
    return secrets.token_hex(8)


class Failure(BaseModel):
    """One entry of the log: when, of which task, and the whole text."""

    time: str
    correlation_id: str
    task: str
    code: str
    text: str


def find(state: Path, id: str) -> list[Failure]:
    """Return the failures noted under a correlation id, or of a task, oldest first."""
    failures = []
    for name in ("failures.log.1", "failures.log"):
        path = state / "logs" / name
        if not path.exists():
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if id not in line:
                    continue
                with contextlib.suppress(ValidationError):  # a line that was cut short
                    entry = Failure.model_validate_json(line)
                    if id in (entry.correlation_id, entry.task):
                        failures.append(entry)
    return failures


def note(state: Path, *, task: str, code: str, correlation_id: str, text: str) -> None:
    """Append one failure to the site's log, moving a log that has grown large to `failures.log.1`."""
    path = state / "logs" / "failures.log"
    if path.exists() and path.stat().st_size > MAX_LOG:
        path.replace(path.with_name("failures.log.1"))
    time = datetime.now(UTC).isoformat(timespec="seconds")
    # Half of a character would be no JSON.
    text = text[-MAX_TEXT:].encode("utf-8", "replace").decode()
    entry = {"time": time, "correlation_id": correlation_id, "task": task, "code": code, "text": text}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:  # a full disk, say: the task is told of all the same
        log.warning(
            "a failure could not be noted", task=task, code=code, correlation_id=correlation_id, problem=str(error)
        )
