"""Commands for one machine: demo, up and simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from suture_contract.exit_codes import ExitCode


def demo(
    root: Annotated[Path, typer.Option(help="folder to play in; what an earlier demo left there is removed")] = Path(
        ".suture/demo"
    ),
    story: Annotated[
        Literal["digits", "heart"], typer.Option(help="two parties with digits, or four hospitals with heart disease")
    ] = "digits",
    seed: Annotated[int, typer.Option(help="of the division of the data, the training and the fit")] = 0,
) -> None:
    """Play the whole story on this machine.

    With real processes: publish, stitch, evaluate, pull, report. Two parties with real images of digits, or four
    hospitals with real tables of patients; a hub, and a site for each. Leaves report.json, report.html and
    ensemble/model.safetensors in the folder, and no process running. Ends with 8 if a target is missed.

    \b
    Examples:
      suture demo
      suture demo --story heart
    """
    from suture_local.demo import STORIES, run

    if not run(root, Console(highlight=False), story=STORIES[story], seed=seed):
        raise typer.Exit(ExitCode.TARGET)


def up(
    root: Annotated[Path, typer.Option(help="folder of the database, the models and the sites")] = Path(".suture/up"),
    data: Annotated[
        Path | None, typer.Option(help="a dataset of yours: a folder of images by class, .npz, .csv or .parquet")
    ] = None,
) -> None:
    """Keep a hub and sites running on this machine.

    Prints an address to open in a browser, which leads on, and runs until Ctrl-C.

    Without --data there are two parties, north and south, with scikit-learn's digits, and a model of each lies ready to
    be published; with it there is one party, local. Started again on the same folder it goes on with what is there.

    \b
    Examples:
      suture up
      suture up --root hospital --data scans/
    """
    from suture_local.up import run

    run(root, data, Console(highlight=False))


def simulate(
    parties: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="a party's data, twice or more: a folder of images by class or with masks, a list of files, a table "
            "or a .npz",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the page, the reports and what is done so far")] = Path(
        "simulation"
    ),
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="the tables' column of labels")] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="numbers there stand for categories; repeatable. Text does anyway"),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="a column that is left out; repeatable")
    ] = None,
    zero_is_missing: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="0 stands for an empty cell there; repeatable")
    ] = None,
    task: Annotated[
        Literal["classification", "segmentation"], typer.Option(help="what the networks learn")
    ] = "classification",
    size: Annotated[
        int, typer.Option(min=32, max=2048, help="images whose longer side has more pixels are made smaller")
    ] = 256,
    network: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="your function (party, input_shape, labels) that makes a network"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="divisions of the data, each with trainings and fits")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="where they begin")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="of each training, by default those that such data mostly need")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="steps of refinement per candidate")] = None,
    refine: Annotated[bool, typer.Option(help="train the stitches of the best candidates on the task")] = True,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="of three or more, leave each party out in turn, and measure there, too")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1")] = "cpu",
) -> None:
    """Play several parties on this machine: what would stitching bring?

    Each party gets a network of a design of its own, trained on its own part of the data. Then each asks in turn, and
    everything is measured beside the alternatives: own models, the plain ensemble, distillation, federated averaging,
    training on all data together. Nothing is sent anywhere.

    The --out folder gets simulation.html for people, simulation.json for programs, and for each party the report that
    it would read. Stopped, the same command goes on where it was.

    A table is CSV, Parquet, Excel or a statistics program's file. A folder holds a folder of images for each class, or
    images/ and masks/; a list is a table with the columns image and mask. A .npz file has images, and labels or masks.
    A column or array called group or patient_id keeps a patient's samples together.

    \b
    Examples:
      suture simulate north.csv south.csv --label outcome
      suture simulate north=scans/north south=scans/south --seeds 1 --epochs 5 --no-refine
      suture simulate north=polyps/ south=frames.csv --task segmentation --size 128
    """
    from suture_contract.fit_options import FitOptions
    from suture_local.simulate import named, simulate, with_networks
    from suture_local.study.reading import parties_study
    from suture_local.study.run import Setup
    from suture_local.study.tables import TableColumns
    from suture_stitching.running.device import usable

    paths = named(parties)
    columns = None
    if label is not None:
        columns = TableColumns(label, tuple(category or ()), tuple(ignore or ()), tuple(zero_is_missing or ()))
    study = parties_study("simulation", paths, task, columns, largest=size)
    if network is not None:
        from suture.cli.export import imported

        study = with_networks(study, imported(network, *network.partition(":")[::2]))
    options = FitOptions.read({"refine": refine, **({"refine_steps": steps} if steps else {})})
    setup = Setup(usable(device), epochs, options, leave_out)
    simulate(study, setup, range(first_seed, first_seed + seeds), out, Console(highlight=False))
