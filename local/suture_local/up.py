"""A hub and one site for real use on one machine: `suture up`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from suture_contract.errors import SutureError
from suture_contract.files import write_text
from suture_local.installation import PORT, Installation
from suture_worker import load_site

PARTY = "local"
EXAMPLES = ("first", "second")
_FORMATS = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


def run(root: Path, data: Path | None, console: Console) -> None:
    """Start hub and site in `root`, print what to type next, and keep both running until told to stop."""
    with Installation(root, port=PORT) as here:
        name, dataset = _own_dataset(data) if data is not None else ("digits", _example_dataset(root))
        if here.site_file(PARTY).exists() and name not in load_site(here.site_file(PARTY)).datasets:
            raise SutureError(
                "up.dataset",
                f"this installation has no dataset {name} yet",
                where=str(here.site_file(PARTY)),
                hint=f"add [datasets.{name}] and a rule for it there, or choose another --root",
            )
        here.start_hub()
        created = here.add_party(PARTY)
        here.add_site(PARTY, {name: dataset}, allow={PARTY: ["fit", "evaluate"]})
        here.start_site(PARTY)
        if data is None:
            _example_models(root, console)
        here.wait_until_ready()
        here.wait_until_online(PARTY)
        _tell(here, name, data is None, created, here.start_console(PARTY), console)
        while True:
            here.processes.check()
            time.sleep(1)


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


def _example_dataset(root: Path) -> dict[str, Any]:
    from suture_local import digits

    path = root.absolute() / "example" / "digits.npz"
    if not path.exists():
        partial = path.with_name(".digits.npz")
        digits.save(partial, digits.parties(0)["north"])
        partial.replace(path)
    return digits.described(path)


def _example_models(root: Path, console: Console) -> None:
    """Train and export a network for each of two parties, as something to publish."""
    folders = [root / "example" / name for name in EXAMPLES]
    if all((folder / "suture.json").exists() for folder in folders):
        return
    import torch

    from suture.bundle import export_model
    from suture_local import digits, training

    console.print("training two small example networks, once")
    torch.set_num_threads(1)
    for folder, (party, data) in zip(folders, digits.parties(0).items(), strict=True):
        module = training.train(digits.network(party), *data.of("train"))
        folder.mkdir(parents=True, exist_ok=True)
        metadata = export_model(
            module,
            torch.from_numpy(data.inputs[:2]),
            folder / "model.safetensors",
            labels=digits.LABELS,
            license="CC-BY-4.0",
            value_range=(0.0, 1.0),
            description="An example: handwritten digits.",
        )
        write_text(folder / "suture.json", metadata.to_json())


def _tell(here: Installation, dataset: str, example: bool, created: bool, link: str, console: Console) -> None:
    def line(text: str = "") -> None:
        console.print(text, markup=False, soft_wrap=True)

    token_file = _short(here.token_file(PARTY))
    suture = _command()
    line()
    line(f"hub    {here.url}   (in a browser, with the token below; API: {here.url}/docs)")
    if created:
        line(f"token  {here.token(PARTY)}")
        line(f"       of party {PARTY}, shown this once; kept in {token_file}, readable by you alone")
    else:
        line(f"token  of party {PARTY}, made before, in {token_file}")
    line(f"site   {_short(here.site_file(PARTY))}: datasets, and who may do what with them")
    line(f"       console: {link}   (opens once, in a browser on this machine)")
    line(f"logs   {_short(here.root / 'hub.log')}, {_short(here.root / (PARTY + '.log'))}")
    line()
    line("In another terminal:")
    line()
    line(f"  {suture} login --hub {here.url} --token-file {token_file}")
    models = [f"{PARTY}/{name}" for name in EXAMPLES]
    if example:
        published = [
            f"{suture} publish {_short(here.root / 'example' / name)} {PARTY}/{name} --yes" for name in EXAMPLES
        ]
        line(f"  {' && '.join(published)}")
    else:
        line(f"  {suture} publish FOLDER {models[0]}     (a FOLDER is what `{suture} export` writes; publish two)")
    line(f"  {suture} stitch {' '.join(models)} --dataset {dataset} --publish-as stitched")
    line()
    line("Ctrl-C stops hub and site; `suture up` goes on with what is there.")


def _command() -> str:
    if shutil.which("suture"):
        return "suture"
    return shlex.quote(_short(Path(sys.executable).parent / "suture"))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)
