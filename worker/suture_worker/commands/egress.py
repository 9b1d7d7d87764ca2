"""`suture site egress`: what left, byte for byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.errors import SutureError
from suture_worker.commands.config import HERE, ConfigArgument, load, size
from suture_worker.egress.log import EgressEntry, document_of, in_words, kept
from suture_worker.egress.log import verify as verified

SequenceArgument = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="the record's number in the list")]

#: Messages that say nothing but how far a task is, or that it waits for a person.
_SIGNS = ("progress", "wait")


@dataclass(frozen=True)
class UnbrokenLog:
    """A log that is as it was written: how many records it has, and its file."""

    records: int
    log: str


@dataclass(frozen=True)
class Shown(EgressEntry):
    """A record with what left, as text; `content` is null for moments, which are no text, and for what is not kept."""

    content: str | None


@prints(UnbrokenLog)
def verify(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """Check that no record was edited, removed, reordered or cut off; ends with 5 and names the record otherwise.

    \b
    Example:
      suture site egress verify
    """
    log = _log(path)
    entries = _verified(log)
    if format is Format.json:
        print_json(UnbrokenLog(len(entries), str(log)))
    else:
        console.print(f"{len(entries)} records, unbroken: {log}")


@prints(list[EgressEntry])
def list_records(
    path: ConfigArgument = HERE,
    task: Annotated[str | None, typer.Option(help="of this task only")] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many of the newest")] = 50,
    signs: Annotated[bool, typer.Option("--heartbeats", help="with how far tasks are, and that they wait")] = False,
    format: FormatOption = Format.text,
) -> None:
    """List what left, newest last: for whom, in which job. Messages that only tell how far a task is must be asked for.

    \b
    Examples:
      suture site egress list
      suture site egress list --task task_0c9d2e3a48576b1f --format json
    """
    every = [entry for entry in _verified(_log(path)) if task in (None, entry.task)]
    entries = [entry for entry in every if signs or entry.kind not in _SIGNS][-limit:]
    if format is Format.json:
        print_json(entries)
        return
    rows = [
        (
            entry.seq,
            entry.time[:16].replace("T", " "),
            entry.party or "the hub",
            entry.job or "",
            _what(entry),
            size(entry.size),
            entry.task,
            entry.body or entry.sha256,
        )
        for entry in entries
    ]
    print_table(
        ("no.", "time (UTC)", "for", "job", "what", "size", "task", "content or sha256"),
        rows,
        empty="nothing left",
        prose=("what",),
        spare=("content or sha256", "task", "size"),
    )


@prints(Shown)
def show(number: SequenceArgument, path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """Print the exact bytes of one record; of moments where they lie, of files that are not kept the digest.

    \b
    Example:
      suture site egress show 12
    """
    log = _log(path)
    entry = next((entry for entry in _verified(log) if entry.seq == number), None)
    if entry is None:
        raise SutureError(
            "egress.unknown", "there is no such record", where=str(number), hint="suture site egress list"
        )
    content = kept(log, entry)
    text = in_words(content) if content is not None else None
    if format is Format.json:
        print_json(Shown(**asdict(entry), content=text))
    elif text is not None:
        print(text)
    else:
        where = "not kept" if content is None else f"kept at {document_of(log, entry)}"
        notes.print(f"{entry.name}: {entry.size} bytes, sha256 {entry.sha256}; {where}")


def _what(entry: EgressEntry) -> str:
    """Return a record's kind, and which file it is or what its message says."""
    body = json.loads(entry.body) if entry.body is not None else {}
    step = f"{body['step']} {body['done']}/{body['total']}" if entry.kind == "progress" else None
    return f"{entry.kind} {entry.name or body.get('code') or body.get('waits_for') or step or ''}".rstrip()


def _log(path: Path) -> Path:
    return load(path).state / "outbox" / "egress.jsonl"


def _verified(log: Path) -> list[EgressEntry]:
    return verified(log)
