"""`suture purge`: take away what should never have been published."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.filesize import decimal

from suture.cli.models import RepoArgument
from suture.hub import Hub
from suture.responses import Purged
from suture_contract.console.terminal import Format, FormatOption, confirm, console, notes, print_json, prints
from suture_contract.errors import SutureError


@prints(Purged)
def purge(
    repo: RepoArgument,
    reason: Annotated[str, typer.Option(help="why; everyone who sees the model reads this: no names in it")],
    path: Annotated[str | None, typer.Option(help="all content that was ever under this path")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="ID", help="or a revision, and the content that no other one holds")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask; scripts need it")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Take content out of all models of your party for good, with every revision that holds it.

    What was made of these revisions is flagged, and jobs that need them end. `suture withdraw` flags a revision, and
    leaves its files. What others have downloaded or published cannot be taken back: tell them, and the hub's operator.

    \b
    Examples:
      suture purge north/digits --path patients.csv --reason "rows of patients"
      suture purge north/digits --revision 3f0a52c4 --reason "trained without consent" --yes
    """
    if (path is None) == (revision is None):
        raise SutureError("purge.what", "say what is to go: a path, or a revision", where="--path, --revision")
    with Hub() as hub:
        planned = hub.purge(repo, path=path, revision=revision, reason=reason, dry_run=True)
        if planned.id is None:
            notes.print(f"{len(planned.digests)} files, {decimal(planned.bytes)}, and these revisions go for good:")
            for row in planned.revisions:
                notes.print(f"  {row.repo} at {row.revision}")
            notes.print(f"{len(planned.descendants)} revisions were made of them, and are flagged")
            notes.print(f"{len(planned.jobs)} jobs need them, and end")
            confirm("purge it? This cannot be undone", yes=yes, what=f"{repo} is as it was")
        done = hub.purge(repo, path=path, revision=revision, reason=reason)
    if format is Format.json:
        print_json(done)
    else:
        console.print(f"purged {len(done.digests)} files and {len(done.revisions)} revisions: {done.id}")
