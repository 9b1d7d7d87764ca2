"""Commands about models: publish, models, pull, share, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from suture.bundle import Bundle
from suture.cli.documents import DryRun, FileToSend, Pulled, Signature
from suture.cli.keys import KeyOption, password_of
from suture.hub import Hub
from suture.publishing import Visibility
from suture.responses import Model, Revision
from suture_contract.console.terminal import (
    Format,
    FormatOption,
    console,
    notes,
    print_json,
    print_table,
    print_wide,
    prints,
)
from suture_contract.documents import Report
from suture_contract.errors import Cancelled, SutureError
from suture_contract.files import read_text, write_text
from suture_contract.model.metadata import InputFormat, Task
from suture_contract.model.signature import SIGNATURE
from suture_contract.windows import check_path

if TYPE_CHECKING:
    pass

Sort = Literal["name", "newest", "updated"]
RepoArgument = Annotated[str, typer.Argument(metavar="PARTY/NAME", help="the model's name at the hub")]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="ID", help="a revision's 40 hex digits; the newest by default")
]


@prints(Revision | DryRun)
def publish(
    path: Annotated[Path, typer.Argument(help="model.safetensors, or the folder that `suture export` wrote")],
    repo: RepoArgument,
    metadata: Annotated[Path | None, typer.Option(help="suture.json; by default the one beside the model")] = None,
    card: Annotated[Path | None, typer.Option(help="README.md; by default the one beside the model")] = None,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="every party at the hub may read it; by default your own alone")
    ] = False,
    key: KeyOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be sent, and where")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before sending; scripts need it")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Publish a portable model.

    Shows what leaves this machine, asks, sends it, and verifies what the hub stored. Sending the same content again
    is harmless and gives the same revision. Where nobody can be asked, it is sent with --yes alone. A new model is for
    your party alone until you share it: `suture share`.

    \b
    Examples:
      suture publish out north/digits
      suture publish out north/digits --dry-run
      suture publish model.safetensors north/digits --metadata suture.json --yes
      suture publish out north/digits --key north.pem --everyone
    """
    if not dry_run and not yes and not sys.stdin.isatty():
        raise SutureError(
            "publish.unconfirmed",
            "nothing was sent: it needs a yes, and there is no terminal to ask at",
            where=repo,
            hint="look at it with --dry-run, then give --yes",
        )

    def show(bundle: Bundle) -> None:
        _announce(bundle, repo, hub.url, visibility)
        if not yes and not typer.confirm("send it?", default=True, err=True):
            raise Cancelled("nothing was sent")
        bar.start()
        bar.add_task("send", total=bundle.size)

    visibility: Visibility = "all" if everyone else "private"
    content: dict[str, Any] = {
        "metadata": metadata,
        "card": read_text(card) if card is not None else None,
        "key": key,
        "password": password_of(key),
    }
    bar = _byte_bar()
    with Hub() as hub:
        if dry_run:
            _show_bundle(hub.pack_file(path, repo, **content), repo, hub.url, visibility, format)
            return
        try:
            revision = hub.publish_file(
                path,
                repo,
                **content,
                visibility=visibility,
                show=show,
                on_bytes=lambda count: bar.advance(bar.task_ids[0], count),
            )
        finally:
            bar.stop()
    if format is Format.json:
        print_json(revision)
    else:
        console.print(f"{repo} is now at revision {revision.id}")


def _announce(bundle: Bundle, repo: str, url: str, visibility: Visibility) -> None:
    notes.print(f"leaves this machine for {url} as {repo}:")
    for what, how_much in bundle.lines():
        notes.print(f"  {what:<20} {how_much}")
    notes.print(f"  {'visible to':<20} {'your party alone' if visibility == 'private' else 'every party at this hub'}")


def _show_bundle(bundle: Bundle, repo: str, url: str, visibility: Visibility, format: Format) -> None:
    """Say what would be sent, file by file. A signature differs each time it is made: it has no digest here."""
    digests = {**bundle.digests(), SIGNATURE: None}
    files = [FileToSend(name, size, digests[name]) for name, size in bundle.sizes().items()]
    if format is Format.json:
        print_json(DryRun(repo, url, visibility, files))
        return
    _announce(bundle, repo, url, visibility)
    rows = [(file.name, f"{file.size:,}", file.sha256 or "another with each signing") for file in files]
    print_table(("file", "bytes", "sha256"), rows, empty="")
    notes.print("nothing was sent; without --dry-run it is")


@prints(list[Model])
def models(
    search: Annotated[str | None, typer.Argument(help="words in the name or description")] = None,
    party: Annotated[str | None, typer.Option(help="only this party's")] = None,
    task: Annotated[Task | None, typer.Option(help="only models that do this")] = None,
    modality: Annotated[str | None, typer.Option(help="only models for this, such as CT")] = None,
    license: Annotated[str | None, typer.Option(help="only models under this licence")] = None,
    label: Annotated[list[str] | None, typer.Option(help="only models that know it; all, when repeated")] = None,
    input: Annotated[InputFormat | None, typer.Option(help="only models that read this")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="only models that read that many")] = None,
    dims: Annotated[int | None, typer.Option(min=0, max=3, help="axes of the input: 2 image, 3 volume")] = None,
    min_n: Annotated[int | None, typer.Option(min=0, help="training samples, at least")] = None,
    sort: Annotated[Sort, typer.Option(help="by name, or the latest first")] = "name",
    limit: Annotated[int | None, typer.Option(min=1, help="show that many at most")] = None,
    format: FormatOption = Format.text,
) -> None:
    """List the models you may read, narrowed to those that have all that is asked for.

    \b
    Examples:
      suture models
      suture models polyps --task segmentation --format json
      suture models --modality CT --dims 3 --label lesion --min-n 100 --sort newest
    """
    with Hub() as hub:
        matching = hub.models(
            search,
            party=party,
            task=task,
            modality=modality,
            license=license,
            labels=label or (),
            format=input,
            num_channels=channels,
            spatial_dims=dims,
            min_n=min_n,
            sort=sort,
            limit=limit,
        )
    if format is Format.json:
        print_json(matching)
        return
    rows = [
        (
            model.id,
            model.metadata.task,
            next(iter(model.metadata.inputs.values())).modality or "",
            len(model.metadata.labels or ()) or "",
            _learnt_from(model),
            model.metadata.license,
            "flagged" if model.flags else "stitched" if model.metadata.lineage else "",
            "everyone" if model.visibility == "all" else "private",
            model.revision[:10],
            f"{model.updated_at:%Y-%m-%d %H:%M}",
        )
        for model in matching
    ]
    columns = ("model", "task", "modality", "labels", "n", "license", "note", "visible to", "revision", "updated (UTC)")
    spare = ("revision", "labels", "visible to", "modality", "license", "task", "n", "note")
    print_table(columns, rows, empty="no models; publish one with `suture publish`", spare=spare)


def _learnt_from(model: Model) -> str:
    data = model.metadata.training_data
    return f"{data.n:,}" if data is not None and data.n is not None else ""


@prints(Pulled)
def pull(
    repo: RepoArgument,
    folder: Annotated[Path | None, typer.Argument(help="where to put the files; ./NAME by default")] = None,
    revision: RevisionOption = None,
    allow_flagged: Annotated[bool, typer.Option("--allow-flagged", help="even if it was withdrawn")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Download a model with metadata, card and report.

    Signature, digests and lineage are verified; files that are there already are left alone. What was withdrawn, or
    made of it, is refused unless you say so. So is a newest revision that was signed before one that you have seen:
    an older one comes if you name it.

    \b
    Examples:
      suture pull north/stitched
      suture pull north/digits folder --revision 3f0c…
    """
    target = folder or Path(check_path(repo.rpartition("/")[2]))
    with Hub() as hub, _byte_bar() as bar:
        receiving = bar.add_task("receiving", total=None)
        pulled = hub.pull(
            repo,
            target,
            revision,
            allow_flagged=allow_flagged,
            on_bytes=lambda count: bar.advance(receiving, count),
        )
        signed, older = hub.signature(pulled), hub.older(pulled)
    if format is Format.json:
        print_json(Pulled(str(target), pulled, Signature.of(signed) if signed is not None else None, older))
        return
    for file in pulled.files:
        console.print(f"{target / file.name}  {file.size:,} bytes, sha256 {file.sha256}")
    if signed is not None:
        notes.print(signed.words)
    if older is not None:
        notes.print(f"you named an older revision: {older}")


@prints(Model)
def share(
    repo: RepoArgument,
    parties: Annotated[list[str] | None, typer.Argument(metavar="PARTY...", help="who may read it")] = None,
    everyone: Annotated[bool, typer.Option("--everyone", help="every party at this hub")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="let them read it no longer")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Let other parties read a model of yours, such as a stitched ensemble, or no longer.

    The result of a job is readable by your party alone until you share it; those who evaluated see its report anyway.
    Sharing again adds to those who may read it.

    \b
    Examples:
      suture share north/joint south
      suture share north/joint --everyone
      suture share north/joint south --stop
    """
    if not parties and not everyone:
        raise typer.BadParameter("name a party, or say --everyone", param_hint="PARTY")
    with Hub() as hub:
        model = hub.share(repo, parties or (), everyone=everyone, stop=stop)
    if format is Format.json:
        print_json(model)
        return
    owner = repo.partition("/")[0]
    readers = "every party at this hub" if model.visibility == "all" else ", ".join([owner, *model.shared_with])
    console.print(f"{model.id} is readable by {readers}")


@prints(Report)
def report(
    source: Annotated[
        str, typer.Argument(metavar="PARTY/NAME|JOB|FILE", help="a stitched ensemble, a job's id, or a report.json")
    ],
    html: Annotated[Path | None, typer.Option(help="write the whole report with its plot to this file")] = None,
    revision: RevisionOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Show the party report of a stitched ensemble.

    For each party, on its own test data: its own model, its peers', the plain ensemble, the stitched ensemble.

    \b
    Examples:
      suture report north/stitched
      suture report job_1f2e3d --html report.html
      suture report .suture/demo/report.json --format json
    """
    from suture.report_table import report_table
    from suture.responses import read_report

    made, of = None, ""
    if Path(source).is_file():
        party_report = read_report(Path(source).read_bytes(), where=source)
    elif Path(source).suffix in (".json", ".html"):
        raise SutureError(
            "file.missing", "there is no such file", where=source, hint="name a report.json, a model or a job"
        )
    else:
        with Hub() as hub:
            if source.startswith("job_"):
                job = hub.job(source)
                party_report, result = job.report(), job.status.result
                made, of = (result.created_at, f"{result.repo} {result.revision[:10]}") if result else (None, "")
            else:
                resolved = hub.revision(source, revision)
                party_report = hub.report(source, resolved.id if revision is not None else None)
                made, of = resolved.created_at, f"{source} {resolved.id[:10]}"
    if html is not None:
        from suture_contract.report.html import to_html

        write_text(html, to_html(party_report, made, of))
        notes.print(f"wrote {html}")
    if format is Format.json:
        print_json(party_report)
    elif html is None:
        print_wide(report_table(party_report))


def _byte_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal)
