"""What the platform adds: a job by hub and site beside the same fit, evaluation and composition as plain calls.

    python benchmarks/platform_overhead.py [--repeats 20] [--steps 300]

Everything is on this machine: hub, agent, Celery worker, Redis and one site with north's digits, many times over with
noise. Both sides use one thread and must give the same bytes. Prints seconds per part and where they go (until the site
leases it, until its child starts, in the child, until the hub has its result), and one line of JSON; the overhead
wanted is at most 5 seconds and 5 percent.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from suture.bundle import export_model
from suture.hub import Hub
from suture_contract.model.metadata import MemberRef as Ref
from suture_contract.model.metadata import ModelMetadata
from suture_local import digits
from suture_local.installation import Installation
from suture_local.story import PartyData
from suture_local.training import train
from suture_stitching.data import open_dataset
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.fitted import FitResult
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.evaluation.select import choose
from suture_stitching.fitting.fit import FitOptions, Member, fit
from suture_stitching.portable.runtime import load, save

MODELS = ("north/plain", "north/residual")
#: What agent and worker say between a task's beginning and end at the hub, and what each part of it is called.
LOGGED = ("leased", "task starts", "task ended")
STAGES = ("lease", "prepare", "child", "deliver")
T = TypeVar("T")


def main() -> None:
    """Measure both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="how often north's 900 digits are in the data")
    parser.add_argument("--steps", type=int, default=300, help="steps of refinement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {"refine_steps": arguments.steps}
    with tempfile.TemporaryDirectory(prefix="suture-overhead-") as name:
        root = Path(name)
        data = root / "data" / "digits.npz"
        write_images(data, arguments.repeats)
        folders = make_models(root)
        job, tasks, model = through_hub(root / "here", data, folders, options)
        parts, plain_model = plain(root, data, folders, options)
    plain_seconds = sum(parts.values())
    for kind, stages in tasks.items():
        print(
            f"{kind:>9}: {sum(stages.values()):7.2f} s from open to done, {parts[kind]:7.2f} s as a plain call", end=""
        )
        print(" (" + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items()) + ")")
    print(f"  between: {job - sum(sum(stages.values()) for stages in tasks.values()):7.2f} s")
    overhead = job - plain_seconds
    print(
        json.dumps(
            {
                "job_seconds": round(job, 2),
                "plain_seconds": round(plain_seconds, 2),
                "overhead_seconds": round(overhead, 2),
                "overhead_percent": round(100 * overhead / plain_seconds, 2),
                "same_bytes": model == plain_model,
            }
        )
    )


def write_images(path: Path, repeats: int) -> None:
    """Write north's digits, `repeats` times with noise."""
    images = digits.parties(0)["north"]
    rng = np.random.default_rng(0)
    many = np.tile(images.inputs, (repeats, 1, 1, 1))
    noisy = np.clip(many + rng.normal(0, 0.05, many.shape), 0, 1).astype(np.float32)
    digits.save(path, PartyData(noisy, np.tile(images.labels, repeats), np.tile(images.split, repeats)))


def make_models(root: Path) -> dict[str, Path]:
    """Train and export the two models."""
    folders = {}
    for repo, (party, images) in zip(MODELS, digits.parties(0).items(), strict=True):
        module = train(digits.network(party), *images.of("train"), epochs=5)
        folders[repo] = root / party
        folders[repo].mkdir()
        target = folders[repo] / "model.safetensors"
        example = torch.from_numpy(images.inputs[:2])
        metadata = export_model(
            module, example, target, labels=digits.LABELS, license="CC0-1.0", value_range=(0.0, 1.0)
        )
        (folders[repo] / "suture.json").write_text(metadata.to_json(), encoding="utf-8")
    return folders


def through_hub(
    root: Path, data: Path, folders: dict[str, Path], options: dict[str, Any]
) -> tuple[float, dict[str, dict[str, float]], str]:
    """Return the seconds of a job, those of its tasks by stage, and the digest of the model it published."""
    dataset = digits.described(data)
    with Installation(root) as here:
        here.start_hub()
        here.add_party("north")
        site = here.add_site("north", {"digits": dataset}, allow={"north": ["fit", "evaluate"]}, limits={"threads": 1})
        here.start_site("north")
        here.wait_until_ready()
        hub = Hub(here.url, here.token("north"))
        for repo, folder in folders.items():
            hub.publish_file(folder, repo, visibility="all", show=lambda _bundle: None)
        here.wait_until_online("north")
        # The first one also waits for the worker, which may still be starting.
        hub.stitch(list(MODELS), "digits", publish_as="first", refine=False).wait(3600, progress=False)
        started = time.monotonic()
        job = hub.stitch(list(MODELS), "digits", publish_as="both", **options)
        status = job.wait(36000, progress=False)
        seconds = time.monotonic() - started
        assert status.result is not None
        revision = hub.revision("north/both", status.result.revision)
        happened = [event for event in job.events() if event.kind == "task"]
        hub.connection.close()
        logged = site_log(site.parent / "state" / "logs")
    moments = {(event.task or "", event.data["state"]): event.at.timestamp() for event in happened}
    tasks = {}
    for task, kind in {event.task or "": event.data["kind"] for event in happened}.items():
        at = [moments[task, "open"], *(logged[task, said] for said in LOGGED), moments[task, "done"]]
        tasks[kind] = dict(zip(STAGES, (end - start for start, end in itertools.pairwise(at)), strict=True))
    return seconds, tasks, revision.model_file.sha256


def site_log(folder: Path) -> dict[tuple[str, str], float]:
    """Return when agent and worker said what of which task."""
    moments = {}
    for name in ("agent.log", "worker.log"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if "task" in entry:
                at = datetime.fromisoformat(entry["timestamp"])
                moments[entry["task"], entry["event"]] = at.timestamp()
    return moments


def plain(root: Path, data: Path, folders: dict[str, Path], options: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Return the seconds of each part as a plain call, and the digest of the composed model."""
    spec = DatasetSpec.model_validate(digits.described(data))
    seconds: dict[str, float] = {}

    def timed(kind: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = work()
        seconds[kind] = time.monotonic() - started
        return result

    def members() -> list[Member]:
        made = []
        for repo, folder in folders.items():
            file = folder / "model.safetensors"
            metadata = ModelMetadata.model_validate_json((folder / "suture.json").read_bytes())
            ref = Ref(repo=repo, revision="0" * 40, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
            made.append(Member(load(file), metadata, ref))
        return made

    def work_fit() -> FitResult:
        fitted = fit(
            members(), open_dataset(spec), own=0, options=FitOptions(**options), checkpoint=root / "checkpoint"
        )
        fitted.save(root)
        return fitted

    fitted = timed("fit", work_fit)
    found = timed(
        "evaluate",
        lambda: evaluate(members(), fitted, open_dataset(spec), own=0, checkpoint=root / "checkpoint"),
    )

    def work_compose() -> None:
        choice = choose(fitted.candidates, {"north": found}, requester="north")
        composed = compose(members(), fitted, choice.chosen)
        save(composed.graph, composed.tensors, root / "both.safetensors")

    timed("compose", work_compose)
    return seconds, hashlib.sha256((root / "both.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
