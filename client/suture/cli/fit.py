"""The command fit: stitching on local files, without a hub."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from suture.cli.data import described, fields_of
from suture_contract.console.terminal import Format, FormatOption, notes, print_json, print_wide, prints
from suture_contract.documents import Report
from suture_contract.fit_options import FitOptions
from suture_contract.model.metadata import ModelMetadata
from suture_contract.report.words import UNSTITCHED
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.spec_file import defaults_for

if TYPE_CHECKING:
    from suture_stitching.running.progress import Progress as EngineProgress


@prints(Report)
def fit(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="portable models, yours first: files, or folders of `suture export`"),
    ],
    data: Annotated[Path, typer.Option(help="what to fit on: a dataset, or a .toml or .json file that describes one")],
    out: Annotated[Path, typer.Option(help="a new folder for the ensemble and its report")],
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DATA", help="a further party's data to be evaluated and to count; repeatable"),
    ] = None,
    metadata: Annotated[
        list[Path] | None, typer.Option(help="a model's suture.json, if not beside it; one per model, in order")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option(help="such as csv or nifti; by default what the path looks like")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="the data's classes in the order of their index: a,b; by default your model's")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="a table's column of labels")] = None,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same result on the same machine")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="steps of refinement per candidate")] = None,
    refine: Annotated[bool, typer.Option(help="train the stitches of the best candidates on the task")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1")] = "cpu",
    memory: Annotated[
        float | None,
        typer.Option(min=0.125, metavar="GIB", help="what a pass of one model may take; by default as its size says"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on where an earlier run with the same --out was stopped")] = True,
    format: FormatOption = Format.text,
) -> None:
    """Stitch models on this machine, without a hub.

    Fits stitched ensembles of the models on your data, evaluates them there and on each --also, chooses, and writes
    to the --out folder the ensemble (model.safetensors, suture.json), the report (report.json, report.html) and all
    candidates (candidates.json, stitches.safetensors). Nothing is sent anywhere.

    \b
    Examples:
      suture fit north.safetensors south.safetensors --data scans/ --out joint
      suture fit mine/ theirs/ --data mine.toml --also theirs=theirs.toml --out joint
      suture fit a.safetensors b.safetensors --data patients.csv --label outcome --out joint --device cuda
    """
    named = [text.partition("=") for text in also or ()]
    if not all(name and path for name, _, path in named) or len({name for name, _, _ in named}) < len(named):
        raise typer.BadParameter("write it as NAME=DATA, each name once", param_hint="--also")

    from suture.report_table import report_table
    from suture_stitching.local import read_metadata, stitch

    own = read_metadata(models, metadata or ())[0][1]
    fields = fields_of(data_format, labels, label)
    others = {name: dataset_spec(Path(path), own, fields) for name, _, path in named}
    options = FitOptions.read({"seed": seed, "refine": refine, **({"refine_steps": steps} if steps else {})})
    with _Bars() as bars:
        result = stitch(
            models,
            dataset_spec(data, own, fields),
            out,
            others=others,
            metadata=metadata or (),
            options=options,
            device=device,
            resume=resume,
            memory_gib=memory,
            progress=bars,
        )
    if format is Format.json:
        print_json(result.report)
        return
    print_wide(report_table(result.report))
    chosen = next(candidate for candidate in result.report.candidates if candidate.id == result.report.chosen)
    if (why := result.fitted.candidates.unstitched) is not None:
        notes.print(f"nothing was stitched: {UNSTITCHED[why]}")
    notes.print(f"candidate {chosen.id}: {chosen.label}")
    notes.print(f"wrote {out}/model.safetensors, suture.json, report.html, report.json and all candidates")


def dataset_spec(path: Path, own: ModelMetadata, fields: Mapping[str, Any]) -> DatasetSpec:
    """Return what describes the dataset at `path`, for models that read what `own` does; see `described`."""
    return described(path, fields, defaults_for(own))


class _Bars:
    """A progress bar per step of the work, on standard error."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[left]}"),
            console=notes,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, at: EngineProgress) -> None:
        if at.step not in self._bars:
            self._finish_others()
            self._bars[at.step] = self._progress.add_task(at.step, total=at.total, left="")
        left = "" if at.seconds_left is None else f"{timedelta(seconds=round(at.seconds_left))} left"
        self._progress.update(self._bars[at.step], completed=at.done, total=at.total, left=left)

    def _finish_others(self) -> None:
        for task in self._progress.tasks:
            self._progress.update(task.id, completed=task.total, left="")
