"""`suture hub purge|purges`: take away what should never have been published, in backups too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from suture_contract.console.terminal import (
    Format,
    FormatOption,
    confirm,
    console,
    notes,
    print_json,
    print_table,
    prints,
)
from suture_contract.errors import SutureError
from suture_service.commands.options import YesOption
from suture_service.purges.schemas import KeptPurge, PurgeOut
from suture_service.settings import read_settings

_SHOWN = 10


@prints(PurgeOut)
def purge(
    repo: Annotated[str, typer.Argument(metavar="PARTY/NAME", help="the model, also one that was deleted")],
    reason: Annotated[str, typer.Option(help="why; everyone who sees the model reads this: no names in it")],
    path: Annotated[str | None, typer.Option(help="all content that was ever under this path")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="ID", help="or a revision or commit, and what no other one holds")
    ] = None,
    yes: YesOption = False,
    format: FormatOption = Format.text,
) -> None:
    """Take content away for good, wherever this hub has it, with every revision that holds it, of any party.

    Says first what goes. Then no file of these revisions can be had any more. Branches go on with what is left. What
    was made of the revisions is flagged, and jobs that need them end. The store gives the content up, also what was
    sent of it by LFS or Xet. Broken off, the same command finishes it. Backups keep it until they are told:
    `suture hub purges --backup FOLDER`.

    \b
    Examples:
      suture hub purge north/polyps --path patients.csv --reason "rows of patients"
      suture hub purge north/polyps --revision 3f0a52c4 --reason "trained without consent" --yes
    """
    from suture_service import operate
    from suture_service.audit.chain import OPERATOR
    from suture_service.purges import service
    from suture_service.purges.service import PurgeTarget

    if (path is None) == (revision is None):
        raise SutureError("purge.what", "say what is to go: a path, or a revision", where="--path, --revision")
    target = PurgeTarget(repo, path=path, revision=revision)
    with operate.running(read_settings()) as hub:
        with hub.database.reading() as session:
            planned = service.plan(session, target, "hub")
        if planned.id is None:
            _announce(planned)
            confirm("purge it? This cannot be undone", yes=yes, what=f"{repo} is as it was")
        done = service.purge(hub, target, "hub", by=OPERATOR, reason=reason)
    if format is Format.json:
        print_json(done)
        return
    console.print(f"purged {len(done.digests)} files and {len(done.revisions)} revisions: {done.id}")
    if done.versions_kept:
        notes.print(
            "next:  the bucket keeps old versions of it: remove them, or wait until its own rules do. They are of"
        )
        for digest in done.digests[:_SHOWN]:
            notes.print(f"  sha256/{digest[:2]}/{digest}")
        if len(done.digests) > _SHOWN:
            notes.print(f"  and {len(done.digests) - _SHOWN} more: --format json lists all")
        notes.print("  and of objects below tmp/ and pieces/, through which they came")
    notes.print("next:  for each backup that you keep,  suture hub purges --backup FOLDER")
    notes.print("copies that others have downloaded are theirs: tell those who read it (suture hub audit list)")


@prints(list[KeptPurge])
def purges(
    backup: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="take it out of this backup, too; repeatable")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """List what was purged, and take it out of backups that are older.

    A backup that cannot be changed is restored with this list: `suture hub restore FOLDER --purges FILE`.

    \b
    Examples:
      suture hub purges
      suture hub purges --backup /backup/monday --backup /backup/sunday
      suture hub purges --format json > purges.json
    """
    from suture_service import operate
    from suture_service.maintenance.backup import purge_backup
    from suture_service.purges import service

    settings = read_settings()
    with operate.reading(settings) as session:
        known = service.kept(session)
    for folder in backup or ():
        applied = purge_backup(settings, folder, known)
        notes.print(f"{folder}: {len(applied)} purges were new to it" if applied else f"{folder}: holds nothing of it")
    if format is Format.json:
        print_json(known)
        return
    rows = [
        (
            row.id,
            f"{row.at:%Y-%m-%d %H:%M}",
            row.repo,
            row.by,
            str(len(row.digests)),
            row.reason,
            "done" if row.done_at is not None else "unfinished: suture hub gc",
        )
        for row in known
    ]
    columns = ("purge", "when (UTC)", "model", "by", "files", "why", "state")
    print_table(columns, rows, empty="nothing was purged", prose=("why",))


def _announce(planned: PurgeOut) -> None:
    notes.print(f"{len(planned.digests)} files, {decimal(planned.bytes)}, go from the store")
    for what, rows in {
        "revisions go with them": planned.revisions,
        "revisions were made of these, and are flagged": planned.descendants,
    }.items():
        notes.print(f"{len(rows)} {what}")
        for row in rows[:_SHOWN]:
            notes.print(f"  {row.repo} at {row.revision}")
        if len(rows) > _SHOWN:
            notes.print(f"  and {len(rows) - _SHOWN} more")
    notes.print(f"{len(planned.jobs)} jobs need them, and end: {', '.join(planned.jobs[:_SHOWN]) or 'none'}")
