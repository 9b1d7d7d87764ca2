"""The log of what left this site: append-only, one line per message, each line chained to the one before by its hash.

    {"seq": 7, "time": "...", "task": "...", "kind": "result", "name": null, "sha256": "...", "size": 412,
     "body": null, "prev": "<sha256 of the line before>", "rules": "<sha256 of the site.toml in force>",
     "party": "south", "job": "..."}

`sha256` and `size` are those of the exact bytes. Short messages are in the line itself (`body`); documents lie under
their digest in `documents/`; model and stitch files are too large to keep, their digest names them. `egress.head` holds
number and hash of the last line, so that lines missing at the end are found, too.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suture_contract.errors import SutureError
from suture_worker import files
from suture_worker.journal import Journal, whole_lines

_START = "0" * 64
_HEAD = "egress.head"


@dataclass(frozen=True)
class EgressEntry:
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
    rules: str | None
    #: For whom, and for which job; None in messages about no task.
    party: str | None
    job: str | None


class EgressLog:
    """Appends to `folder/egress.jsonl`; one process at a time.

    Raises `egress.broken` if its end is not as it was left: a site whose log does not add up sends nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "egress.jsonl"
        self.documents = folder / "documents"
        self.documents.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._journal = Journal(self.path)
        self._seq, self._prev = self._end()
        #: The SHA-256 of the site.toml that is in force.
        self.rules: str | None = None
        # Progress is sent from another thread than results.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def small(self, task: str, kind: str, body: bytes, *, party: str | None = None, job: str | None = None) -> None:
        """Note a short message that is about to leave; durable on return."""
        self._append(task, kind, None, hashlib.sha256(body).hexdigest(), len(body), body.decode(), party, job)

    def document(
        self, task: str, kind: str, name: str | None, body: bytes, *, party: str | None = None, job: str | None = None
    ) -> None:
        """Note a document that is about to leave and keep its exact bytes; durable on return."""
        digest = hashlib.sha256(body).hexdigest()
        files.write(self.documents / digest, body)
        self._append(task, kind, name, digest, len(body), None, party, job)

    def file(
        self, task: str, name: str, sha256: str, size: int, *, party: str | None = None, job: str | None = None
    ) -> None:
        """Note a large file that is about to leave; durable on return."""
        self._append(task, "file", name, sha256, size, None, party, job)

    def _end(self) -> tuple[int, str]:
        """Return number and hash of the last line, which must be the head or follow it."""
        head = _head(self.path)
        line = self._journal.last()
        last = _parse(line) if line is not None else None
        end = (last.seq, hashlib.sha256(line).hexdigest()) if line is not None and last is not None else (0, _START)
        if end != head and (last is None or (last.seq - 1, last.prev) != head):
            _check_lines(whole_lines(self.path), head, self.path, at_most=head[0] + 1)
            raise _broken(f"record {end[0]} was edited", self.path)
        return end

    def _append(
        self,
        task: str,
        kind: str,
        name: str | None,
        sha256: str,
        size: int,
        body: str | None,
        party: str | None,
        job: str | None,
    ) -> None:
        with self._turn:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = EgressEntry(
                self._seq + 1, time, task, kind, name, sha256, size, body, self._prev, self.rules, party, job
            )
            line = json.dumps(entry.__dict__, ensure_ascii=True, separators=(",", ":")).encode()
            digest = hashlib.sha256(line).hexdigest()
            with self._journal.appended(line):
                files.write(self.path.with_name(_HEAD), f"{entry.seq} {digest}\n")
            self._seq, self._prev = entry.seq, digest


def kept(log: Path, entry: EgressEntry) -> bytes | None:
    """Return the bytes that left with a record; None where their digest alone is kept."""
    if entry.body is not None:
        return entry.body.encode()
    document = document_of(log, entry)
    return document.read_bytes() if document.exists() else None


def document_of(log: Path, entry: EgressEntry) -> Path:
    """Return where a record's document lies, if it is kept."""
    return log.parent / "documents" / entry.sha256


def in_words(content: bytes) -> str | None:
    """Return bytes that left as a text; None where they are none, as sums over patients are not."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def verify(path: Path) -> list[EgressEntry]:
    """Return all entries; raises `SutureError` `egress.broken` naming the record that was altered or is missing."""
    # Before and after: the agent may write on meanwhile.
    before, lines, after = _head(path), whole_lines(path), _head(path)
    entries = _check_lines(lines, before, path, at_most=after[0] + 1)
    for entry in entries:
        if entry.body is not None:
            _expect_digest(entry, entry.body.encode(), path)
        elif entry.kind != "file" or document_of(path, entry).exists():
            try:
                content = document_of(path, entry).read_bytes()
            except OSError:
                raise _broken(f"the document of record {entry.seq} is missing", path) from None
            _expect_digest(entry, content, path)
    return entries


def _check_lines(lines: Sequence[bytes], head: tuple[int, str], path: Path, *, at_most: int) -> list[EgressEntry]:
    hashes = [_START, *(hashlib.sha256(line).hexdigest() for line in lines)]
    entries: list[EgressEntry] = []
    parsed = [_parse(line) for line in lines]
    for number, entry in enumerate(parsed, start=1):
        if entry is None:
            raise _broken(f"record {number} was edited: it cannot be read", path)
        if entry.seq != number:
            raise _broken(_out_of_place(number, entry.seq, parsed), path)
        if entry.prev != hashes[number - 1]:
            # Which of the two was edited shows by who still agrees with a third.
            after = parsed[number] if number < len(parsed) else None
            intact = after.prev == hashes[number] if after is not None else head == (number, hashes[number])
            raise _broken(f"record {number - 1 if intact and number > 1 else number} was edited", path)
        entries.append(entry)
    seq, digest = head
    if seq > len(lines):
        raise _broken(f"records {len(lines) + 1} to {seq} are missing at the end", path)
    if len(lines) > at_most:
        raise _broken(f"records {at_most + 1} to {len(lines)} were added, or egress.head was changed", path)
    if hashes[seq] != digest:
        raise _broken(f"record {seq} was edited", path)
    return entries


def _out_of_place(number: int, seq: int, parsed: Sequence[EgressEntry | None]) -> str:
    if any(entry is not None and entry.seq == number for entry in parsed):
        return f"record {seq} stands in the place of record {number}: records were reordered or added"
    return f"record {number} is missing" + (f", and all up to {seq - 1}" if seq > number + 1 else "")


def _head(path: Path) -> tuple[int, str]:
    """Return number and hash of the last line when the head was written: of the last but one if the agent died then."""
    head = path.with_name(_HEAD)
    try:
        seq, digest = head.read_text(encoding="ascii").split()
        return int(seq), digest
    except FileNotFoundError:
        return 0, _START
    except ValueError:
        raise _broken("egress.head cannot be read", path) from None


def _expect_digest(entry: EgressEntry, content: bytes, path: Path) -> None:
    if hashlib.sha256(content).hexdigest() != entry.sha256 or len(content) != entry.size:
        raise _broken(f"record {entry.seq} does not hold what left", path)


def _broken(problem: str, path: Path) -> SutureError:
    return SutureError(
        "egress.broken",
        problem,
        where=str(path),
        hint="restore the log from a backup and find out who changed it",
    )


def _parse(line: bytes) -> EgressEntry | None:
    try:
        content: Any = json.loads(line)
        entry = EgressEntry(**{"rules": None, "party": None, "job": None, **content})  # older lines do not say
    except (ValueError, TypeError):
        return None
    return entry if isinstance(entry.seq, int) else None
