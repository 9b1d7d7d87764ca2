"""The log of what left this site: append-only, one line per message, each line chained to the one before by its hash.

    {"seq": 7, "time": "...", "task": "...", "kind": "result", "name": null, "sha256": "...", "size": 412,
     "body": null, "prev": "<sha256 of the line before>"}

`sha256` and `size` are those of the exact bytes. Short messages are in the line itself (`body`); documents lie under
their digest in `documents/`; model and stitch files are too large to keep, their digest names them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suture_stitching.errors import SutureError
from suture_worker import files

_START = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line of the log."""

    seq: int
    time: str
    task: str
    kind: str
    name: str | None
    sha256: str
    size: int
    body: str | None
    prev: str


class EgressLog:
    """Appends to `folder/egress.jsonl`; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "egress.jsonl"
        self.documents = folder / "documents"
        self.documents.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._drop_torn_line()
        self._seq, self._prev = _last(self.path)
        # Progress is sent from another thread than results.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def small(self, task: str, kind: str, body: bytes) -> None:
        """Note a short message that is about to leave; durable on return."""
        self._append(task, kind, None, hashlib.sha256(body).hexdigest(), len(body), body.decode())

    def document(self, task: str, kind: str, name: str | None, body: bytes) -> None:
        """Note a document that is about to leave and keep its exact bytes; durable on return."""
        digest = hashlib.sha256(body).hexdigest()
        files.write(self.documents / digest, body)
        self._append(task, kind, name, digest, len(body), None)

    def file(self, task: str, name: str, sha256: str, size: int) -> None:
        """Note a large file that is about to leave; durable on return."""
        self._append(task, "file", name, sha256, size, None)

    def _append(self, task: str, kind: str, name: str | None, sha256: str, size: int, body: str | None) -> None:
        with self._turn:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = Entry(self._seq + 1, time, task, kind, name, sha256, size, body, self._prev)
            line = json.dumps(entry.__dict__, ensure_ascii=True, separators=(",", ":")).encode()
            before = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, line + b"\n") != len(line) + 1:
                os.ftruncate(self._descriptor, before)
                raise OSError(errno.ENOSPC, "the disk is full", str(self.path))
            os.fsync(self._descriptor)
            self._seq, self._prev = entry.seq, hashlib.sha256(line).hexdigest()

    def _drop_torn_line(self) -> None:
        # A line is durable before its message is sent, so an incomplete one at the end names nothing that left.
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - 2**20)
        tail = os.pread(self._descriptor, size - start, start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, start + tail.rfind(b"\n") + 1)


def verify(path: Path) -> list[Entry]:
    """Return all entries; raises `SutureError` `egress.broken` naming the first line that was altered or is missing."""
    entries: list[Entry] = []
    prev = _START
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is None or entry.prev != prev or entry.seq != number:
            raise SutureError(
                "egress.broken",
                f"line {number} does not follow from the line before: lines were altered, removed or added",
                where=str(path),
                hint="restore the log from a backup and find out who changed it",
            )
        entries.append(entry)
        prev = hashlib.sha256(line).hexdigest()
    return entries


def _last(path: Path) -> tuple[int, str]:
    """Return number and hash of the last line."""
    last: bytes | None = None
    with path.open("rb") as file:
        for line in file:
            last = line
    if last is None:
        return 0, _START
    entry = _parse(last)
    if entry is None:
        raise SutureError("egress.broken", "the last line cannot be read", where=str(path), hint="restore the log")
    return entry.seq, hashlib.sha256(last.rstrip(b"\n")).hexdigest()


def _parse(line: bytes) -> Entry | None:
    try:
        content: Any = json.loads(line)
        return Entry(**content)
    except (ValueError, TypeError):
        return None
