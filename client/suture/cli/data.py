"""Commands about data on this machine: how a dataset is described, and how a site divides it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from suture.cli.documents import Division
from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.errors import SutureError
from suture_contract.files import replacing, write_text
from suture_contract.model.metadata import ModelMetadata, Task
from suture_stitching.data.formats import format_of
from suture_stitching.data.list_files import is_datalist
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.spec_file import SUFFIXES, defaults_for, read_spec, spec_of

if TYPE_CHECKING:
    from suture_stitching.data import Dataset


@prints(Division)
def split(
    data: Annotated[Path, typer.Argument(help="a dataset, a .toml or .json file that describes one, or a site.toml")],
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="which one of the site.toml")] = None,
    out: Annotated[Path | None, typer.Option(help="write which sample is in which split to this CSV file")] = None,
    data_format: Annotated[
        str | None, typer.Option(help="such as csv or nifti; by default what the path looks like")
    ] = None,
    task: Annotated[Task, typer.Option(help="what is learnt from it")] = "classification",
    labels: Annotated[str | None, typer.Option(help="the classes in the order of their index: a,b")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="a table's column of labels")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show how a site divides a dataset into train, validation and test, so that a model is trained on train only.

    The site's own code divides it. The file of --out has a line per sample: its row, counted from 0, or its file, and
    its split. The digest goes with the model, `suture export --trained-on train --split-digest DIGEST`: the site that
    evaluates compares it with its own, and the report says whether they agree. Nothing is sent anywhere.

    \b
    Examples:
      suture data split site.toml --dataset digits --out splits.csv
      suture data split scans/ --labels normal,polyp --out splits.csv
      suture data split patients.csv --label outcome --labels no,yes --format json
    """
    from suture_stitching.data import open_dataset

    fields = fields_of(data_format, labels, label)
    opened = open_dataset(described(data, fields, {"task": task}, dataset=dataset))
    if out is not None:
        _write(out, opened)
    digest = opened.split_digest()
    shares = {name: round(share, 4) for name, share in opened.label_shares().items()}
    if format is Format.json:
        splits = dict(zip(opened.samples, opened.split_of(), strict=True))
        print_json(Division(digest, {str(name): opened.n(name) for name in SPLITS}, splits, shares or None))
        return
    print_table(("split", "samples"), [(name, f"{opened.n(name):,}") for name in SPLITS], empty="")
    if shares:
        listed = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
        console.print(f"shares of labels in train: {listed}")
    console.print(f"digest {digest}")
    if out is not None:
        notes.print(f"wrote {out}")
    prior = f" --label-prior {','.join(f'{share:g}' for share in shares.values())}" if shares else ""
    notes.print(
        f"next:  train on the train split, then suture export … --trained-on train --split-digest {digest}{prior}"
    )


@prints("suture_stitching.data.look:Look")
def check(
    data: Annotated[Path, typer.Argument(help="a dataset, a .toml or .json file that describes one, or a site.toml")],
    model: Annotated[
        Path | None, typer.Option(help="the model that will read it: its file, folder or suture.json")
    ] = None,
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="which one of the site.toml")] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="draw samples with their labels or masks; keep it here")
    ] = None,
    data_format: Annotated[str | None, typer.Option(help="by default what the path looks like")] = None,
    task: Annotated[Task | None, typer.Option(help="what is learnt from it; by default the model's")] = None,
    labels: Annotated[str | None, typer.Option(help="the classes in the order of their index: a,b")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="a table's column of labels")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show what Suture reads from a dataset, in numbers a person can judge.

    The range of values after reading, how much is black, samples, patients and labels per split, and content that is
    there twice, in two splits above all. --sheet shows patients: it is for this machine alone. Nothing is sent.

    \b
    Examples:
      suture data check scans/ --model mine/ --sheet sheet.png
      suture data check site.toml --dataset frames
      suture data check patients.csv --label outcome --labels no,yes --format json
    """
    from suture_stitching.data import open_dataset
    from suture_stitching.data.look import contact_sheet, look

    fields = fields_of(data_format, labels, label)
    defaults = defaults_for(_metadata(model)) if model is not None else {}
    opened = open_dataset(described(data, fields, {**defaults, **({"task": task} if task else {})}, dataset=dataset))
    summary = look(opened)
    if sheet is not None:
        with replacing(sheet, private=True) as temporary:
            contact_sheet(opened).save(temporary, "PNG")
    if format is Format.json:
        print_json(summary)
        return
    rows = [
        (
            name,
            f"{part.n:,}",
            "" if part.patients is None else f"{part.patients:,}",
            ", ".join(f"{text} {count:,}" for text, count in part.labels.items()),
        )
        for name, part in summary.splits.items()
    ]
    print_table(("split", "samples", "patients", "labels"), rows, empty="", prose=("labels",))
    console.print(f"size {' x '.join(map(str, summary.shape))}; {summary.words()}")
    for text in summary.notes:
        notes.print(text)
    if opened.skipped:
        notes.print(f"left out: {opened.skipped[0]} and the like, {len(opened.skipped)}")
    for text in summary.doubts:
        notes.print(f"look at this: {text}")
    if sheet is not None:
        notes.print(f"wrote {sheet}, which shows patients")


def suggest(
    data: Annotated[Path, typer.Argument(help="a folder or file with data")],
    model: Annotated[
        Path | None, typer.Option(help="the model that will read it: its file, folder or suture.json")
    ] = None,
    name: Annotated[str, typer.Option(help="what the dataset is to be called")] = "mine",
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="a table's column of labels")] = None,
    out: Annotated[Path | None, typer.Option(help="write it to this file instead of showing it")] = None,
) -> None:
    """Look at data and write the section that describes them: of a site.toml, with a comment per line.

    What is not plain from the data is marked CHECK; what cannot be answered is said at the end. Nothing is sent.

    \b
    Examples:
      suture data suggest scans/
      suture data suggest patients.csv --label outcome --name heart
      suture data suggest volumes/ --model mine/ --out section.toml
    """
    from suture_stitching.data.suggest import suggest as look_at

    text = look_at(data, None if model is None else _metadata(model), label).toml(name)
    if out is None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
        return
    write_text(out, text)
    notes.print(f"wrote {out}; then: suture data check {out} --dataset {name}")


def _metadata(path: Path) -> ModelMetadata:
    """Return what is said of a model: its suture.json, or the one beside its file or in its folder."""
    from suture_stitching.local import read_metadata

    return ModelMetadata.read(path) if path.suffix == ".json" else read_metadata([path])[0][1]


def fields_of(data_format: str | None, labels: str | None, label: str | None) -> dict[str, Any]:
    """Return what the options say of a dataset: its format, its labels, and the column of the label."""
    return {
        "format": data_format,
        "labels": [name.strip() for name in labels.split(",")] if labels else None,
        "label": label,
    }


def described(
    path: Path, fields: Mapping[str, Any], defaults: Mapping[str, Any], *, dataset: str | None = None
) -> DatasetSpec:
    """Return what describes the dataset at `path`; `defaults` stand for what is not said.

    A `.toml` or `.json` file describes one (`read_spec`), and `dataset` names that of a `site.toml`; of anything else,
    `fields` are those of `fields_of`. Raises `SutureError` (`dataset.*`).
    """
    if path.suffix.lower() in SUFFIXES and not is_datalist(path):
        return read_spec(path, dataset=dataset, defaults=defaults)
    if dataset is not None:
        raise SutureError("dataset.invalid", "only a site.toml names datasets", where=str(path), hint="leave it out")
    document = {"path": path, "format": fields["format"] or format_of(path), "columns": {"label": fields["label"]}}
    if fields["labels"]:
        document["labels"] = fields["labels"]
    return spec_of(document, where=str(path), defaults=defaults)


def _write(out: Path, dataset: Dataset) -> None:
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("sample", "split"))
        rows.writerows(zip(dataset.samples, dataset.split_of(), strict=True))
