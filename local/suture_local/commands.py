"""Commands for one machine: demo and up."""

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
    root: Annotated[Path, typer.Option(help="folder of the database, the models and the site")] = Path(".suture/up"),
    data: Annotated[
        Path | None, typer.Option(help="a dataset of yours: a folder of images by class, .npz, .csv or .parquet")
    ] = None,
) -> None:
    """Keep a hub and a site running on this machine.

    Prints the commands to type next, and runs until Ctrl-C.

    Without --data the dataset is scikit-learn's digits, and two example models lie ready to be published. Started
    again on the same folder it goes on with what is there.

    \b
    Examples:
      suture up
      suture up --root hospital --data scans/
    """
    from suture_local.up import run

    run(root, data, Console(highlight=False))
