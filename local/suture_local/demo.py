"""A whole story with real processes on this machine: `suture demo`.

A hub and a site for each party, each with its own agent, Celery worker, Redis and data; parties that trained networks
of different kind on their own samples; a stitch of them; the stitched ensemble and its party report. The file that was
pulled is judged by its own predictions, see `shipped`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from suture.bundle import Bundle
from suture.hub import Hub
from suture.report_table import report_table
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.rounding import fixed
from suture_local import digits, heart, shipped
from suture_local.folder_lock import lock
from suture_local.installation import Installation
from suture_local.story import Judged, PartyData, Story

if TYPE_CHECKING:
    from torch.nn import Module

STORIES = {story.name: story for story in (digits.STORY, heart.STORY)}
_JOB_SECONDS = 300.0


def run(root: Path, console: Console, *, story: Story = digits.STORY, seed: int = 0) -> bool:
    """Play the story in `root`, whose previous content is removed; return whether all targets were met.

    Leaves `report.json`, `report.html` and `ensemble/model.safetensors` there, and no process running.
    """
    import torch

    from suture_stitching.portable.runtime import load

    torch.set_num_threads(1)  # the networks are tiny, and the sites start meanwhile
    started = time.monotonic()
    _clean(root)
    with Installation(root) as here:
        with _step(console, story.opening):
            data = story.divide(seed)
            datasets = {
                party: story.write(party, data[party], seed, here.root / party / "data") for party in story.parties
            }
        with _step(console, "a hub, and at each party a site with its own agent, Celery worker and Redis"):
            _start(here, story, datasets)
        modules = {party: _train(story, party, data[party], seed, console) for party in story.parties}
        here.wait_until_ready()
        hubs = {party: Hub(here.url, here.token(party)) for party in story.parties}
        for party in story.parties:
            proved = f"the file is verified and signed, and no {story.sample} is in it"
            with _step(console, f"{party} publishes {party}/{story.name}: {proved}"):
                _publish(hubs[party], story, party, modules[party], data[party], here.signing_key(party), console)
        with _step(console, f"{'both' if len(story.parties) == 2 else 'all'} sites ask the hub for work"):
            here.wait_until_online(*story.parties)
        repos = [f"{party}/{story.name}" for party in story.parties]
        asked = f", {story.asked[0]} evaluates" if len(story.asked) == 1 else f"; {_listed(story.asked)} evaluate"
        console.print(f"[bold]{story.asking} asks for a stitch of {_listed(repos)}{asked}, too[/]", soft_wrap=True)
        repo, report = _stitch(hubs[story.asking], story, repos, root, seed, console)
        ensemble = load(root / "ensemble" / "model.safetensors")
        _predict(ensemble, repo, story, data[story.asking], console)
        models = {party: hubs[party].load(f"{party}/{story.name}") for party in story.parties}
        metadata = ModelMetadata.read(root / "ensemble" / "suture.json")
        learnt = {party: own.of("train")[1] for party, own in data.items()}
        judged = shipped.judge(models, shipped.as_used(ensemble, metadata, learnt), data)
        for party in story.parties:
            hubs[party].connection.close()
    console.print()
    console.print(report_table(report))
    _say_trust(story, console)
    met = _meets_targets(story, judged, report, console)
    console.print(
        f"{time.monotonic() - started:.0f} s; everything is stopped. Look at {root / 'report.html'}", soft_wrap=True
    )
    return met


def _stitch(
    hub: Hub, story: Story, repos: Sequence[str], root: Path, seed: int, console: Console
) -> tuple[str, Report]:
    """Ask for a stitch, wait for it, and pull it; return the repository that it is in, and its report."""
    job = hub.stitch(
        repos,
        story.name,
        story.asked,
        publish_as=f"{story.name}-stitched",
        evaluate_within=int(_JOB_SECONDS),
        seed=seed,
    )
    status = job.wait(_JOB_SECONDS, console=console)
    if status.result is None:
        raise SutureError("job.no_result", f"the job ended as {status.state} without a result", where=job.id)
    with _step(console, f"{story.asking} pulls {status.result.repo}; digests and lineage are verified"):
        hub.pull(status.result.repo, root / "ensemble", status.result.revision)
        report = hub.report(status.result.repo, status.result.revision)
        _write_reports(root, report, status.result.repo)
    return status.result.repo, report


def _say_trust(story: Story, console: Console) -> None:
    both = len(story.parties) == 2
    trusted = "the other party's models by its key" if both else "the other parties' models by their keys"
    console.print(
        f"{'Both' if both else 'All'} sites trust {trusted}, and so all numbers are exact. A site that does not "
        "trust whoever built the models says epsilon and delta in its rule instead.",
        soft_wrap=True,
    )


def _clean(root: Path) -> None:
    """Remove what an earlier demo left in `root`, and nothing else; refuse a folder that no demo has made."""
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / "lock").is_file():
        raise SutureError(
            "demo.root", "this folder holds something that is not a demo's", where=str(root), hint="name an empty one"
        )
    parties = sorted({party for story in STORIES.values() for party in story.parties})
    with lock(root):  # not under the feet of a demo that runs
        for name in ("hub", *parties, "ensemble"):
            shutil.rmtree(root / name, ignore_errors=True)
        for name in ("report.json", "report.html", "hub.log", *(f"{party}.log" for party in parties)):
            (root / name).unlink(missing_ok=True)


def _start(here: Installation, story: Story, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    here.start_hub()
    for party in story.parties:
        here.add_party(party)
    for party in story.parties:
        allow = {story.asking: ["fit", "evaluate"] if party == story.asking else ["evaluate"]}
        here.add_site(party, {story.name: datasets[party]}, allow=allow, limits={"threads": 1})
        here.start_site(party)


def _train(story: Story, party: str, data: PartyData, seed: int, console: Console) -> Module:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, console=console) as bar:
        design, n = type(story.network(party, data, seed)).__name__, len(data.of("train")[1])
        task = bar.add_task(f"[bold]{party} trains[/] a {design} on {n} {story.sample}s")
        return shipped.trained(story, party, data, seed, lambda at: bar.update(task, total=at.total, completed=at.done))


def _publish(hub: Hub, story: Story, party: str, module: Module, data: PartyData, key: Path, console: Console) -> None:
    import torch

    def show(bundle: Bundle) -> None:
        for what, how_much in bundle.lines():
            console.print(f"    {what:<18} {how_much}", style="dim", markup=False)

    example = torch.from_numpy(data.inputs[:2])
    hub.publish(
        module, example, f"{party}/{story.name}", key=key, show=show, visibility="all", **story.describe(party, data)
    )


def _write_reports(root: Path, report: Report, of: str) -> None:
    from suture_contract.files import write_text
    from suture_contract.report.html import to_html

    write_text(root / "report.html", to_html(report, datetime.now(UTC), of))
    shutil.copyfile(root / "ensemble" / "report.json", root / "report.json")


def _predict(model: Module, repo: str, story: Story, data: PartyData, console: Console) -> None:
    import torch

    inputs, truth = data.of("test")
    with torch.no_grad():
        probabilities = model(torch.from_numpy(inputs[:1]))[0]
    best = int(probabilities.argmax())
    prediction = story.prediction.format(
        label=story.labels[best], probability=float(probabilities[best]), truth=story.labels[truth[0]]
    )
    console.print(f"[bold]a prediction[/] by {repo}, a torch.nn.Module: {prediction}", soft_wrap=True)


def _meets_targets(story: Story, judged: Mapping[str, Judged], report: Report, console: Console) -> bool:
    """Say what the shipped file does and which targets it meets; return whether it meets them all."""
    for party, judgement in judged.items():
        shares = (judgement.shipped, judgement.own, judgement.plain)
        shipped, own, plain = (fixed(share, 1, percent=True) for share in shares)
        console.print(
            f"[bold]the shipped file on {party}'s {judgement.n} test {story.sample}s[/]: {shipped}% right, {party}'s "
            f"own model {own}%, the plain ensemble {plain}%",
            soft_wrap=True,
        )
    reached = story.targets(judged, report)
    for target in reached:
        word, style = ("met", "green") if target.met else ("MISSED", "red")
        if target.wanted == "shown":
            word, style = "shown", "dim"
        console.print(f"[{style}]{word:<7}[/]{escape(str(target))}", soft_wrap=True)
    if story.remark:
        console.print(story.remark)
    return all(target.met for target in reached)


def _listed(names: Sequence[str]) -> str:
    """Return names as people list them."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


@contextmanager
def _step(console: Console, text: str) -> Iterator[None]:
    console.print(f"[bold]{text}[/]", soft_wrap=True)
    began = time.monotonic()
    yield
    console.print(f"    done in {time.monotonic() - began:.1f} s", style="dim")
