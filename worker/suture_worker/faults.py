"""What went wrong, in full, for this site's eyes only: `logs/failures.log`.

Others learn a code and a correlation id; this is where the id leads to.
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

MAX_LOG = 16 * 2**20
MAX_TEXT = 32 * 1024


def new_correlation_id() -> str:
    """Return an id that says nothing but where to look."""
    return secrets.token_hex(8)


def note(state: Path, *, task: str, code: str, correlation_id: str, text: str) -> None:
    """Append one failure to the site's log, moving a log that has grown large to `failures.log.1`."""
    path = state / "logs" / "failures.log"
    if path.exists() and path.stat().st_size > MAX_LOG:
        path.replace(path.with_name("failures.log.1"))
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {"time": time, "correlation_id": correlation_id, "task": task, "code": code, "text": text[-MAX_TEXT:]}
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    finally:
        os.close(descriptor)
