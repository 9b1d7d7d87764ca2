"""`suture hub audit`: read, export and check the log of who did what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_service.commands.documents import AuditHead, ListedEntry
from suture_service.settings import read_settings


@prints(AuditHead)
def verify(
    expect: Annotated[
        str | None, typer.Option(metavar="ID:DIGEST", help="what an earlier `verify` printed; noted outside the hub")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Check that no entry was changed, removed or slipped in, and print the newest entry's number and digest.

    Whoever can write to the database could also compute the whole chain anew. Note what this prints in another place
    and pass it to the next run: then that shows, too.

    \b
    Examples:
      suture hub audit verify
      suture hub audit verify --expect 4711:9f86d081…
    """
    from suture_service.audit import chain
    from suture_service.operate import reading

    with reading(read_settings()) as session:
        head = chain.verify(session, chain.read_head(expect) if expect is not None else None)
    if format is Format.json:
        print_json(AuditHead(head.id, head.digest))
    else:
        console.print(str(head), highlight=False)
        notes.print(f"{head.id} entries, all as they were written; note the line above outside the hub")


def export(
    file: Annotated[Path | None, typer.Argument(help="where to write; standard output without it")] = None,
    after: Annotated[int, typer.Option(min=0, help="only entries after this number")] = 0,
) -> None:
    """Write the log as JSON, one entry per line.

    \b
    Example:
      suture hub audit export audit.ndjson
    """
    from suture_contract.files import replacing
    from suture_service.audit import chain
    from suture_service.operate import reading

    with reading(read_settings()) as session:
        lines = (json.dumps(chain.as_dict(entry)) + "\n" for entry in chain.walk(session, after))
        if file is None:
            sys.stdout.writelines(lines)
        else:
            with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as output:
                output.writelines(lines)


@prints(list[ListedEntry])
def list_entries(
    last: Annotated[int, typer.Option(min=1, max=10_000, help="how many of the newest")] = 30,
    format: FormatOption = Format.text,
) -> None:
    """Show the newest entries, newest last.

    \b
    Example:
      suture hub audit list --last 100
    """
    from sqlalchemy import select

    from suture_service.audit import chain
    from suture_service.operate import reading
    from suture_service.tables import AuditEntry

    with reading(read_settings()) as session:
        newest = session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc()).limit(last)).all()
        entries = [chain.as_dict(entry) for entry in reversed(newest)]
    if format is Format.json:
        print_json([ListedEntry(**entry) for entry in entries])
        return
    rows = [
        (
            str(entry["id"]),
            entry["at"][:19].replace("T", " "),
            entry["actor"],
            entry["action"],
            entry["what"],
            entry["address"] or "",
        )
        for entry in entries
    ]
    print_table(("entry", "when (UTC)", "who", "did", "what", "from"), rows, empty="the log is empty")
