"""A hub and sites for real use on one machine: `suture up`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from suture_contract.errors import SutureError
from suture_contract.files import write_text
from suture_local.guide import GUIDE, MODEL, FirstRun
from suture_local.installation import CONSOLE_PORT, PORT, Installation
from suture_local.ports import free_port
from suture_worker import load_site
from suture_worker.console.app import served

#: Of a dataset of one's own, and of the example: the first asks, what it asks of the others waits for a person.
PARTY, PARTIES = "local", ("north", "south")
GUIDE_PORT = 8400
_FORMATS = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


def run(root: Path, data: Path | None, console: Console) -> None:
    """Start hub and sites in `root`, print where to go on, and keep all running until told to stop."""
    parties = PARTIES if data is None else (PARTY,)
    with Installation(root, port=PORT) as here:
        name, datasets = (MODEL, _example_datasets(root)) if data is None else _own_datasets(here, data)
        here.start_hub()
        for party in parties:
            here.add_party(party)
        asking = {party: ["evaluate"] for party in parties[:1]}
        for party in parties:
            allow = {**asking, party: ["fit", "evaluate"]}
            here.add_site(party, {name: datasets[party]}, allow=allow, ask=True)
            here.start_site(party)
        folders = _example_models(root, console) if data is None else {}
        here.wait_until_ready()
        here.wait_until_online(*parties)
        consoles = {party: here.start_console(party, CONSOLE_PORT + at) for at, party in enumerate(parties)}
        place = FirstRun(
            url=here.url,
            parties=parties,
            tokens={party: here.token(party) for party in parties},
            folders=folders,
            keys={party: partial(here.signing_key, party) for party in parties},
            consoles=consoles,
        )
        with served(GUIDE, lambda: place, here.root, free_port(GUIDE_PORT)) as (link, serve):
            threading.Thread(target=serve, daemon=True).start()
            _tell(here, place, name, link, console)
            while True:
                here.processes.check()
                time.sleep(1)


def _own_datasets(here: Installation, data: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    name, dataset = _own_dataset(data)
    site = here.site_file(PARTY)
    if site.exists() and name not in load_site(site).datasets:
        raise SutureError(
            "up.dataset",
            f"this installation has no dataset {name} yet",
            where=str(site),
            hint=f"add [datasets.{name}] and a rule for it there, or choose another --root",
        )
    return name, {PARTY: dataset}


def _own_dataset(path: Path) -> tuple[str, dict[str, Any]]:
    """Describe a classification dataset by what is in it; others are written into site.toml by hand."""
    from suture_contract.model.metadata import check_name

    path = path.absolute()
    if path.is_dir():
        form, labels = "image_folder", sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    elif path.is_file() and path.suffix.lower() in _FORMATS:
        form = _FORMATS[path.suffix.lower()]
        labels = _labels_in(path, form)
    else:
        raise SutureError(
            "up.data", "give a folder of images by class, or a .npz, .csv or .parquet file", where=str(path)
        )
    try:
        return check_name(path.stem), {"path": path, "format": form, "labels": labels}
    except ValueError as error:
        raise SutureError(
            "up.data", str(error), where=str(path), hint="rename it: its name names the dataset"
        ) from None


def _labels_in(path: Path, form: str) -> list[str]:
    try:
        if form == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                column = arrays["labels"]
        else:
            from pyarrow import csv, parquet

            table = csv.read_csv(path) if form == "csv" else parquet.read_table(path, columns=["label"])
            column = table["label"].to_numpy(zero_copy_only=False)
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise SutureError(
            "up.data",
            f"its labels cannot be read: {error}",
            where=str(path),
            hint="a table needs a column label, an .npz file arrays images and labels",
        ) from None
    return [str(value) for value in np.unique(column)]


def _example_datasets(root: Path) -> dict[str, dict[str, Any]]:
    from suture_local import digits

    described = {}
    for party, images in digits.parties(0).items():
        path = root.absolute() / "example" / party / "digits.npz"
        if not path.exists():
            digits.save(path.with_name(".digits.npz"), images)
            path.with_name(".digits.npz").replace(path)
        described[party] = digits.described(path)
    return described


def _example_models(root: Path, console: Console) -> dict[str, Path]:
    """Train and export a network of each party, as something to publish; return the folders."""
    folders = {party: root.absolute() / "example" / party / "model" for party in PARTIES}
    if all((folder / "suture.json").exists() for folder in folders.values()):
        return folders
    import torch

    from suture.bundle import export_model
    from suture_local import digits, training

    console.print("training two small example networks, once")
    torch.set_num_threads(1)
    for party, images in digits.parties(0).items():
        folder = folders[party]
        module = training.train(digits.network(party), *images.of("train"))
        folder.mkdir(parents=True, exist_ok=True)
        example = torch.from_numpy(images.inputs[:2])
        metadata = export_model(module, example, folder / "model.safetensors", **digits.STORY.describe(party, images))
        write_text(folder / "suture.json", metadata.to_json())
    return folders


def _tell(here: Installation, place: FirstRun, dataset: str, link: str, console: Console) -> None:
    def line(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    party, suture = place.asking, _command()
    line()
    line("Open in a browser on this machine:")
    line()
    line(f"  {link}")
    line()
    line("The address opens once. It leads through the first steps, and to the hub and to the sites' consoles.")
    line(f"logs   {_short(here.root)}/*.log; a site's datasets and rules: {_short(here.site_file(party))}")
    line()
    line("Or in another terminal:")
    line()
    line(f"  {suture} login --hub {here.url} --token-file {_short(here.token_file(party))}")
    models = [f"{party}/{name}" for name in ("first", "second")]
    if place.folders:
        folders = [_short(folder) for folder in place.folders.values()]
        published = [f"{suture} publish {at} {repo} --yes" for at, repo in zip(folders, models, strict=True)]
        line(f"  {' && '.join(published)}")
    else:
        line(f"  {suture} publish FOLDER {models[0]}     (a FOLDER is what `{suture} export` writes; publish two)")
    line(f"  {suture} stitch {' '.join(models)} --dataset {dataset} --publish-as stitched")
    line()
    line("Ctrl-C stops hub and sites; `suture up` goes on with what is there.")


def _command() -> str:
    if shutil.which("suture"):
        return "suture"
    return shlex.quote(_short(Path(sys.executable).parent / "suture"))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
