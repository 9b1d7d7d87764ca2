"""`suture hub gc|reconcile|backup|restore`: keeping database and store together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, prints
from suture_contract.exit_codes import ExitCode
from suture_service.maintenance.backup import Copied
from suture_service.maintenance.collection import Collected
from suture_service.settings import read_settings

if TYPE_CHECKING:
    from suture_service.maintenance.progress import OnProgress

_SHOWN = 20

GraceOption = Annotated[
    float, typer.Option("--older-than-hours", min=1, help="what came later may still wait for its commit")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", file_okay=False, help="the backup's folder")]


@dataclass(frozen=True)
class Collection(Collected):
    """What was removed, or after a dry run what would be."""

    dry_run: bool


@dataclass(frozen=True)
class Reconciled:
    """What does not fit between database and store, as digests; `sound` where nothing is missing or damaged."""

    sound: bool
    referred: int
    stored: int
    missing: list[str]
    wrong_size: list[str]
    damaged: list[str] | None
    orphaned: list[str]
    orphaned_bytes: int


@prints(Collection)
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    older_than_hours: GraceOption = 24,
    format: FormatOption = Format.text,
) -> None:
    """Remove what the store holds and nothing refers to: of broken-off uploads, and of models that are gone.

    Safe while hubs run. Once a day is enough.

    \b
    Examples:
      suture hub gc --dry-run
      suture hub gc --older-than-hours 72
    """
    from suture_service.maintenance.collection import collect

    settings = read_settings()
    with _progress(format) as on_progress:
        done = collect(settings, grace=timedelta(hours=older_than_hours), dry_run=dry_run, on_progress=on_progress)
    if format is Format.json:
        print_json(Collection(**asdict(done), dry_run=dry_run))
        return
    verb = "would remove" if dry_run else "removed"
    console.print(f"{verb} {len(done.blobs)} files that nothing refers to, {decimal(done.bytes)}")
    console.print(f"{verb} {done.received} sent files from the lists of those that wait for a commit")
    if not dry_run:
        console.print(f"removed {done.temporary} temporary files of uploads that broke off")


@prints(Reconciled)
def reconcile(
    deep: Annotated[bool, typer.Option("--deep", help="read and hash all content, too")] = False,
    older_than_hours: GraceOption = 24,
    format: FormatOption = Format.text,
) -> None:
    """Compare the database with the store, both ways; changes nothing. Exit code 8 if content is missing or damaged.

    Safe while hubs run. Orphaned files do no harm: `suture hub gc` removes them.

    \b
    Examples:
      suture hub reconcile
      suture hub reconcile --deep --format json
    """
    from suture_service.maintenance.reconciling import reconcile

    settings = read_settings()
    with _progress(format) as on_progress:
        comparison = reconcile(settings, deep=deep, grace=timedelta(hours=older_than_hours), on_progress=on_progress)
    if format is Format.json:
        print_json(Reconciled(**asdict(comparison), sound=comparison.sound))
    else:
        console.print(f"{comparison.referred} files are referred to, {comparison.stored} are in the store")
        _list("missing", comparison.missing)
        _list("of another size than the database says", comparison.wrong_size)
        if comparison.damaged is not None:
            _list("of another content than the database says", comparison.damaged)
        console.print(f"{len(comparison.orphaned)} orphaned, {decimal(comparison.orphaned_bytes)}")
        if not comparison.sound:
            notes.print(
                "next:  put these files back from a backup: sha256/ab/abcd… in its folder, the same in the store"
            )
    if not comparison.sound:
        raise typer.Exit(ExitCode.TARGET)


@prints(Copied)
def backup(folder: FolderArgument, format: FormatOption = Format.text) -> None:
    """Back up database and store into a folder, or bring the backup in it up to date: only new files are copied.

    Safe while hubs run. The folder holds keys and digests of tokens: keep it as safe as the hub.

    \b
    Example, every night:
      suture hub backup /backup/hub
    """
    from suture_service.maintenance.backup import back_up

    settings = read_settings()
    with _progress(format) as on_progress:
        done = back_up(settings, folder, on_progress=on_progress)
    if format is Format.json:
        print_json(done)
    else:
        console.print(
            f"{folder} holds the database and {done.blobs} files, {decimal(done.bytes)}; {done.copied} are new"
        )
        _list("missing in the store, and so in the backup", done.missing)
    if done.missing:
        raise typer.Exit(ExitCode.TARGET)


@prints(Copied)
def restore(
    folder: FolderArgument,
    purges: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="what was purged since: `suture hub purges --format json` wrote it"),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Fill a new, empty hub with a backup, on SQLite or PostgreSQL, in a folder or a bucket; all content is verified.

    SUTURE_HUB_DATABASE_URL and SUTURE_HUB_STORE name the new hub. Broken off, it can be repeated.
    What was purged after the backup was made comes back unless --purges names it, or the backup was told.

    \b
    Examples:
      SUTURE_HUB_DATABASE_URL=postgresql://hub@db/new SUTURE_HUB_STORE=s3://new suture hub restore /backup/hub
      suture hub restore /backup/hub --purges purges.json
    """
    from suture_service.maintenance.backup import read_purges, restore

    settings = read_settings()
    with _progress(format) as on_progress:
        purged = read_purges(purges) if purges is not None else ()
        done = restore(settings, folder, purged=purged, on_progress=on_progress)
    if format is Format.json:
        print_json(done)
    else:
        console.print(f"restored the database and {done.blobs} files, {decimal(done.bytes)}")
        _list("missing since before the backup", done.missing)


def _list(what: str, digests: list[str]) -> None:
    console.print(f"{len(digests)} {what}")
    for digest in digests[:_SHOWN]:
        console.print(f"  {digest}")
    if len(digests) > _SHOWN:
        console.print(f"  and {len(digests) - _SHOWN} more; --format json lists all")


@contextmanager
def _progress(format: Format) -> Iterator[OnProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    quiet = format is Format.json or not notes.is_terminal
    with Progress(*columns, console=notes, transient=True, disable=quiet) as shown:
        bars: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=None)
            shown.update(bars[what], completed=done, total=total or None)

        yield tell
