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
from suture_contract.files import replacing
from suture_contract.model.metadata import Task
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.spec_file import SUFFIXES, read_spec, spec_of

if TYPE_CHECKING:
    from suture_stitching.data import Dataset

_FORMATS = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


@prints(Division)
def split(
    data: Annotated[Path, typer.Argument(help="a dataset, a .toml or .json file that describes one, or a site.toml")],
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="which one of the site.toml")] = None,
    out: Annotated[Path | None, typer.Option(help="write which sample is in which split to this CSV file")] = None,
    data_format: Annotated[
        str | None, typer.Option(help="image_folder, npz, csv, parquet or nifti; by default what the path looks like")
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

    given = {"format": data_format, "labels": labels.split(",") if labels else None, "label": label}
    found = open_dataset(dataset_spec(data, given, {"task": task}, dataset=dataset))
    if out is not None:
        _write(out, found)
    digest = found.split_digest()
    if format is Format.json:
        splits = dict(zip(found.samples, found.split_of(), strict=True))
        print_json(Division(digest, {str(name): found.n(name) for name in SPLITS}, splits))
        return
    print_table(("split", "samples"), [(name, f"{found.n(name):,}") for name in SPLITS], empty="")
    console.print(f"digest {digest}")
    if out is not None:
        notes.print(f"wrote {out}")
    notes.print(f"next:  train on the train split, then suture export … --trained-on train --split-digest {digest}")


def dataset_spec(
    path: Path, given: Mapping[str, Any], defaults: Mapping[str, Any], *, dataset: str | None = None
) -> DatasetSpec:
    """Return what describes the dataset at `path`; `defaults` stand for what is not said.

    A `.toml` or `.json` file describes one (`read_spec`), and `dataset` names that of a `site.toml`; of anything else,
    `given` says format, labels and the column of the label. Raises `SutureError` (`dataset.*`).
    """
    if path.suffix.lower() in SUFFIXES:
        return read_spec(path, dataset=dataset, defaults=defaults)
    if dataset is not None:
        raise SutureError("dataset.invalid", "only a site.toml names datasets", where=str(path), hint="leave it out")
    fields = {"path": path, "format": given["format"] or _format_of(path), "columns": {"label": given["label"]}}
    if given["labels"]:
        fields["labels"] = given["labels"]
    return spec_of(fields, where=str(path), defaults=defaults)


def _format_of(path: Path) -> str:
    found = "image_folder" if path.is_dir() else _FORMATS.get(path.suffix.lower())
    if found is None and not path.exists():
        raise SutureError("dataset.missing_path", "there is nothing at this path", where=str(path))
    if found is None:
        raise SutureError(
            "dataset.unknown_format",
            "neither a folder nor a .npz, .csv or .parquet file",
            where=str(path),
            hint="name it with --data-format",
        )
    return found


def _write(out: Path, found: Dataset) -> None:
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("sample", "split"))
        rows.writerows(zip(found.samples, found.split_of(), strict=True))
