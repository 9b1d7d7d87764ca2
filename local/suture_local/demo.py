"""The whole story with real processes on this machine: `suture demo`.

A hub and two sites, each with its own agent, Celery worker, Redis and data; two parties that trained networks of
different kind on their own images; a stitch of the two; the stitched ensemble and its party report. The file that was
pulled is judged by its own predictions, see `shipped`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from suture.bundle import Bundle
from suture.hub import Hub
from suture.report_table import report_table
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_local import digits, shipped
from suture_local.installation import Installation, lock
from suture_local.shipped import ASKED, ASKING

if TYPE_CHECKING:
    from torch.nn import Module

REPO = "digits"
RESULT = "digits-stitched"
_JOB_SECONDS = 300.0


def run(root: Path, console: Console, *, seed: int = 0) -> bool:
    """Play the story in `root`, whose previous content is removed; return whether all targets were met.

    Leaves `report.json`, `report.html` and `ensemble/model.safetensors` there, and no process running.
    """
    import torch

    from suture_stitching.portable.runtime import load

    torch.set_num_threads(1)  # the networks are tiny, and two sites start meanwhile
    started = time.monotonic()
    _clean(root)
    with Installation(root) as here:
        with _step(console, "two parties with digits of their own; north saw mostly 0-4, south 5-9 on another scanner"):
            data = digits.parties(seed)
            for party in digits.PARTIES:
                write_data(root / party / "data" / "digits.npz", data[party])
        with _step(console, "a hub, and at each party a site with its own agent, Celery worker and Redis"):
            _start(here)
        modules = {party: _train(party, data[party], seed, console) for party in digits.PARTIES}
        here.wait_until_ready()
        hubs = {party: Hub(here.url, here.token(party)) for party in digits.PARTIES}
        for party in digits.PARTIES:
            with _step(
                console, f"{party} publishes {party}/{REPO}: the file is verified and signed, and no image is in it"
            ):
                _publish(hubs[party], party, modules[party], data[party], here.signing_key(party), console)
        with _step(console, "both sites ask the hub for work"):
            here.wait_until_online(*digits.PARTIES)
        repos = [f"{party}/{REPO}" for party in digits.PARTIES]
        console.print(f"[bold]{ASKING} asks for a stitch of {' and '.join(repos)}, {ASKED} evaluates, too[/]")
        hub = hubs[ASKING]
        job = hub.stitch(repos, REPO, [ASKED], publish_as=RESULT, evaluate_within=int(_JOB_SECONDS), seed=seed)
        status = job.wait(_JOB_SECONDS, console=console)
        if status.result is None:
            raise SutureError("job.no_result", f"the job ended as {status.state} without a result", where=job.id)
        with _step(console, f"{ASKING} pulls {status.result.repo}; digests and lineage are verified"):
            hub.pull(status.result.repo, root / "ensemble", status.result.revision)
            report = hub.report(status.result.repo, status.result.revision)
            _write_reports(root, report)
        ensemble = load(root / "ensemble" / "model.safetensors")
        _predict(ensemble, status.result.repo, data[ASKING], console)
        models = {party: hubs[party].load(f"{party}/{REPO}") for party in digits.PARTIES}
        judged = shipped.judge(models, ensemble, data)
        for party in digits.PARTIES:
            hubs[party].connection.close()
    console.print()
    console.print(report_table(report))
    console.print(
        "Both sites trust the other party's models by its key, and so all numbers are exact. A site that does not "
        "trust whoever built the models says epsilon and delta in its rule instead.",
        soft_wrap=True,
    )
    met = _told(judged, report, console)
    console.print(
        f"{time.monotonic() - started:.0f} s; everything is stopped. Look at {root / 'report.html'}", soft_wrap=True
    )
    return met


def _clean(root: Path) -> None:
    """Remove what an earlier demo left in `root`, and nothing else; refuse a folder that no demo has made."""
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / "lock").is_file():
        raise SutureError(
            "demo.root", "this folder holds something that is not a demo's", where=str(root), hint="name an empty one"
        )
    with lock(root):  # not under the feet of a demo that runs
        for name in ("hub", *digits.PARTIES, "ensemble"):
            shutil.rmtree(root / name, ignore_errors=True)
        for name in ("report.json", "report.html", "hub.log", *(f"{party}.log" for party in digits.PARTIES)):
            (root / name).unlink(missing_ok=True)


def write_data(path: Path, data: digits.PartyData) -> None:
    """Write a party's images, labels and splits as a site reads them."""
    path.parent.mkdir(parents=True, mode=0o700)
    np.savez(path, images=data.images, labels=data.labels, split=data.split)


def _start(here: Installation) -> None:
    here.start_hub()
    for party in digits.PARTIES:
        here.add_party(party)
    for party in digits.PARTIES:
        datasets = {
            REPO: {
                "path": here.root / party / "data" / "digits.npz",
                "format": "npz",
                "labels": digits.LABELS,
                "value_range": [0.0, 1.0],
            }
        }
        allow = {ASKING: ["fit", "evaluate"] if party == ASKING else ["evaluate"]}
        here.add_site(party, datasets, allow=allow, limits={"threads": 1})
        here.start_site(party)


def _train(party: str, data: digits.PartyData, seed: int, console: Console) -> Module:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, console=console) as bar:
        design, n = digits.DESIGNS[party].__name__, (data.split == "train").sum()
        task = bar.add_task(f"[bold]{party} trains[/] a {design} on {n} images")
        return shipped.trained(party, data, seed, lambda at: bar.update(task, total=at.total, completed=at.done))


def _publish(hub: Hub, party: str, module: Module, data: digits.PartyData, key: Path, console: Console) -> None:
    import torch

    def show(bundle: Bundle) -> None:
        for what, how_much in bundle.lines():
            console.print(f"    {what:<18} {how_much}", style="dim", markup=False)

    hub.publish(
        module,
        torch.from_numpy(data.images[:2]),
        f"{party}/{REPO}",
        labels=digits.LABELS,
        license="CC-BY-4.0",
        value_range=(0.0, 1.0),
        description=f"Handwritten digits as {party} sees them.",
        training_data="part of the optical recognition of handwritten digits data set (UCI)",
        n=int((data.split == "train").sum()),
        key=key,
        show=show,
    )


def _write_reports(root: Path, report: Report) -> None:
    from suture_contract.files import write_text
    from suture_contract.report import to_html

    write_text(root / "report.html", to_html(report))
    shutil.copyfile(root / "ensemble" / "report.json", root / "report.json")


def _predict(model: Module, repo: str, data: digits.PartyData, console: Console) -> None:
    import torch

    image, truth = data.images[data.split == "test"][:1], data.labels[data.split == "test"][0]
    with torch.no_grad():
        probabilities = model(torch.from_numpy(image))[0]
    best = int(probabilities.argmax())
    console.print(
        f"[bold]a prediction[/] by {repo}, a torch.nn.Module: this image shows a {digits.LABELS[best]} "
        f"(probability {probabilities[best]:.3f}; it is a {truth})",
        soft_wrap=True,
    )


def _told(judged: Mapping[str, shipped.Judged], report: Report, console: Console) -> bool:
    """Say what the shipped file does and which targets it meets; return whether it meets them all."""
    for party, found in judged.items():
        console.print(
            f"[bold]the shipped file on {party}'s {found.n} test images[/]: {found.shipped:.1%} right, "
            f"{party}'s own model {found.own:.1%}, the plain ensemble {found.plain:.1%}",
            soft_wrap=True,
        )
    reached = shipped.targets(judged, report)
    for target in reached:
        word, style = ("met", "green") if target.met else ("MISSED", "red")
        console.print(f"[{style}]{word:<7}[/]{escape(str(target))}", soft_wrap=True)
    return all(target.met for target in reached)


@contextmanager
def _step(console: Console, text: str) -> Iterator[None]:
    console.print(f"[bold]{text}[/]", soft_wrap=True)
    began = time.monotonic()
    yield
    console.print(f"    done in {time.monotonic() - began:.1f} s", style="dim")
