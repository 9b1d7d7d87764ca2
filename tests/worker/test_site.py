"""Whole sites, each with agent, Celery worker and Redis in processes of their own, on a live hub."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from tests.until import until

from suture.processes import Processes
from suture_worker.agent.agent import Agent
from suture_worker.agent.hub import HubClient
from suture_worker.compute.celery_app import make_app
from suture_worker.compute.forkserver import NAME
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.log import verify
from suture_worker.egress.outbox import Outbox
from suture_worker.stop import Stop

pytestmark = pytest.mark.flow
MARKER = "PATIENT-0042"
IMAGES = """\
[datasets.scans]
path = "{path}"
format = "image_folder"
labels = ["dark", "bright"]
channels = 1
"""
BROKEN = f"""\
[datasets.broken]
path = "{MARKER}-nowhere.npz"
format = "npz"
labels = ["dark", "bright"]
"""


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has just ended


def write_scans(folder: Path, make, n=120, seed=1) -> np.ndarray:
    """Write pictures whose names are patients'; return their bytes as a model would read them."""
    images, labels = make.patches(n, seed)
    pixels = (images * 255).astype(np.uint8)
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / ("dark", "bright")[label] / f"{MARKER}-{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return pixels.astype(np.float32) / 255


class Site:
    def __init__(self, folder, hub, make, parties, party):
        self.folder = folder
        self.party = party
        self.config_path = make.write_site(
            folder,
            url=hub.url,
            token=hub.site_token(party),
            rules=[([parties[0]], ["fit", "evaluate"], ["scans", "broken"])],
            trusting=parties,
        )
        text = self.config_path.read_text()
        scans = folder / f"{MARKER}-scans"
        self.images = write_scans(scans, make, seed=len(party) + ord(party[-1]))
        text = text.replace("[datasets.patches]", f"{IMAGES.format(path=scans)}\n{BROKEN}\n[datasets.patches]")
        self.config_path.write_text(text)
        self.config = load_site(self.config_path)
        self.process = None

    def start(self, processes):
        command = [sys.executable, "-m", "suture", "site", "run", str(self.config_path)]
        self.process = processes.start(self.party, command, log=self.folder / "run.log").process

    def processes(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def logs(self):
        return "\n".join(path.read_text() for path in (self.config.state / "logs").iterdir())


@contextmanager
def declining(hub, make, party, folder):
    """A site that allows nothing."""
    config = load_site(make.write_site(folder, url=hub.url, token=hub.site_token(party), rules=[]))
    prepare_state(config)
    stop = Stop()
    client = HubClient(config.hub.url, config.hub.token_file.read_text().strip(), sleep=stop.wait)
    outbox = Outbox(config.state / "outbox", min_samples=11)
    thread = threading.Thread(target=Agent(config, client, outbox, make_app(config), stop).run)
    thread.start()
    yield
    stop.set()
    thread.join(120)
    outbox.close()
    client.close()


@pytest.fixture(scope="module")
def sites(live_hub, make, portable, tmp_path_factory):
    """Two parties with a model and a running site each; the first one may ask both."""
    parties = [live_hub.add_party() for _ in range(2)]
    running = []
    with Processes() as processes:
        for party, path in zip(parties, portable, strict=True):
            live_hub.publish(party, path)
            site = Site(tmp_path_factory.mktemp(party), live_hub, make, parties, party)
            running.append(site)
            site.start(processes)
        yield running


def everything_that_left(live_hub, sites):
    """All bytes the hub has, and all a site's log says it sent."""
    held = [path for path in live_hub.folder.rglob("*") if path.is_file()]
    held += [path for site in sites for path in (site.config.state / "outbox").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in held}


def fail_on_broken_data(live_hub, sites):
    """A failure whose text names a patient: a code leaves."""
    requester, _ = sites
    job = live_hub.client(requester.party).stitch([f"{site.party}/net" for site in sites], "broken")
    until(lambda: job.refresh().state == "failed")
    assert job.status.error.code == "dataset.missing_path"
    logged = (requester.config.state / "logs" / "failures.log").read_text()
    assert job.status.error.correlation_id in logged
    assert MARKER in logged


def check_nothing_of_a_patient_left(live_hub, sites):
    """No name and no image of the sites is in any byte that the hub or an outbox has."""
    left = everything_that_left(live_hub, sites)
    assert sum(len(content) for content in left.values()) > 100_000
    assert any(path.name == "egress.jsonl" for path in left)
    assert any(path.name == "hub.db" for path in left)
    # Eight pixels of an image, as floats or as they were stored; a run of one value would be found anywhere.
    windows = [image.ravel()[8:16] for site in sites for image in site.images]
    needles = [window.tobytes() for window in windows if len(set(window)) > 4]
    needles += [(window * 255).round().astype(np.uint8).tobytes() for window in windows if len(set(window)) > 4]
    needles += [MARKER.encode(), *(os.fsencode(site.folder) for site in sites)]
    assert len(needles) > 300
    for path, content in left.items():
        found = [needle for needle in needles if needle in content]
        assert not found, path


def test_a_whole_job_and_nothing_of_a_patient_leaves(live_hub, make, sites, quick, tmp_path):
    requester, other = sites
    fail_on_broken_data(live_hub, sites)
    third = live_hub.add_party()
    client = live_hub.client(requester.party)
    models = [f"{site.party}/net" for site in sites]
    with declining(live_hub, make, third, tmp_path / "third"):
        asked = [f"{other.party}/scans", third]
        job = client.stitch(models, "scans", asked, publish_as="both", **quick)
        until(lambda: job.refresh().state in ("complete", "partial", "failed"))
    assert job.status.state == "partial", (job.status, requester.logs(), other.logs())
    assert [(missing.party, missing.reason) for missing in job.status.missing] == [(third, "declined")]

    result = job.status.result
    assert result.repo == f"{requester.party}/both"
    revision = client.revision(result.repo, result.revision)
    lineage = revision.metadata.lineage
    assert [member.repo for member in lineage.members] == models
    assert (lineage.job, lineage.requester) == (job.id, requester.party)
    report = client.report(result.repo, result.revision)
    assert report.parties.keys() == {requester.party, other.party}
    assert report.chosen == lineage.candidate
    output = client.load(result.repo, result.revision)(torch.from_numpy(requester.images[:16]))
    torch.testing.assert_close(output.sum(1), torch.ones(16))

    for site in sites:
        until(lambda site=site: f"suture report {job.id}, when the job has ended" in site.logs())
    for site, kinds in ((requester, {"fail", "file", "result"}), (other, {"result"})):
        entries = verify(site.config.state / "outbox" / "egress.jsonl")
        assert {entry.kind for entry in entries} - {"progress"} == kinds
        names = {entry.name for entry in entries if entry.kind == "file"}
        expected = {"candidates.json", "stitches.safetensors"}
        expected |= {"model.safetensors", "suture.json", "report.json", "README.md"}
        assert names == (expected if site is requester else set())
        documents = site.config.state / "outbox" / "documents"
        kept = [entry for entry in entries if entry.kind == "result"]
        assert all((documents / entry.sha256).stat().st_size == entry.size for entry in kept)
        assert list((site.config.state / "tasks").iterdir()) == []
    check_nothing_of_a_patient_left(live_hub, sites)


def test_cancelling_in_the_middle_of_a_fit(live_hub, sites, long):
    requester, _ = sites
    job = live_hub.client(requester.party).stitch([f"{site.party}/net" for site in sites], "scans", **long)
    until(lambda: job.refresh().tasks[0].progress and job.status.tasks[0].progress.step == "refine")
    (child,) = [process for process in requester.processes() if process.name() == NAME]
    job.cancel()
    until(lambda: not child.is_running())
    until(lambda: list((requester.config.state / "tasks").iterdir()) == [])
    assert job.refresh().state == "cancelled"


def test_a_killed_agent_and_worker_are_started_again_and_the_job_goes_on(live_hub, sites, long):
    requester, _ = sites
    job = live_hub.client(requester.party).stitch([f"{site.party}/net" for site in sites], "scans", **long)
    until(lambda: job.refresh().tasks[0].progress and job.status.tasks[0].progress.step == "refine")

    def part(name):
        words = ["suture_worker", name]
        return [process for process in requester.processes() if words_of(process)[2:4] == words]

    for name in ("agent", "worker"):
        for process in part(name):
            process.kill()
    begun = job.status.tasks[0].attempt
    counter = requester.config.state / "tasks" / job.status.tasks[0].id / "runs"

    def goes_on():
        """Whether it was begun again: under the same lease, or where that lapsed meanwhile under another."""
        try:
            runs = int(counter.read_text())
        except FileNotFoundError:
            return False
        return runs >= 2 or (runs == 1 and job.refresh().tasks[0].attempt > begun)

    until(goes_on)
    until(lambda: job.refresh().tasks[0].state == "leased")
    job.cancel()
    until(lambda: list((requester.config.state / "tasks").iterdir()) == [])
