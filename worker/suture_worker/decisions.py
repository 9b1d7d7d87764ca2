"""What people at this site decided: `decisions.jsonl` of a folder has a line for each, and never leaves the site."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suture_worker.journal import Journal


def operator() -> str:
    """Return who is at the command line, as the operating system knows them."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def note_decision(folder: Path, decision: Mapping[str, Any]) -> None:
    """Add what was decided to the folder's `decisions.jsonl`, with the time; durable on return."""
    journal = Journal(folder / "decisions.jsonl")
    try:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        journal.append(json.dumps({"time": time, **decision}, ensure_ascii=False).encode())
    finally:
        journal.close()
