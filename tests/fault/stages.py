"""The stages of a job, seen from outside: in its files at the site, and in what passes between site and hub."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Literal, get_args

import psutil
from tests.fault.place import Place, until
from tests.fault.relay import At, Gate

from suture.job import Job
from suture_worker.compute.shards import left
from suture_worker.folder import TaskFolder

Stage = Literal[
    "leased", "pulling", "capturing", "solving", "refining", "evaluating", "uploading the result", "publishing"
]
STAGES: tuple[Stage, ...] = get_args(Stage)
#: Stages of a task that several workers do, and the step whose shares are then at work.
DIVIDED = {"capturing, divided": "capture", "refining, divided": "refine", "evaluating, divided": "evaluate"}
#: Seconds until a stage is reached, on a busy machine.
LONGEST = 180
Release = Callable[[], None]

_MEMBER = r"GET /v1/models/.*/files/model\.safetensors"
#: Stages in which a message is on its way, held until something has happened: what must have passed before, and where.
_HELD: dict[Stage, tuple[list[str], At]] = {
    "leased": ([_MEMBER], "request"),
    "pulling": ([_MEMBER], "half answer"),
    "uploading the result": ([r"PUT /v1/tasks/.*/files/stitches\.safetensors"], "half request"),
    # The hub has published; the site does not know.
    "publishing": ([r"PUT /v1/tasks/.*/files/report\.json", r"POST /v1/tasks/.*/result"], "answer"),
}
#: For what is killed at the hub, publishing is when it hears that it shall.
_HELD_AT_HUB: dict[Stage, tuple[list[str], At]] = {"publishing": (_HELD["publishing"][0], "half request")}


def prepare(place: Place, stage: Stage, *, at_hub: bool = False) -> Gate | None:
    """Call before the job is asked for."""
    held = (_HELD_AT_HUB if at_hub else {}).get(stage) or _HELD.get(stage)
    return place.relay.hold(*held) if held is not None else None


def reach(place: Place, job: Job, stage: Stage, gate: Gate | None) -> Release:
    """Wait until the job is in this stage; the returned function lets go of a message that is held."""
    if gate is not None:
        until(gate.reached.is_set, stage, LONGEST)
        return gate.release.set
    kind = "evaluate" if stage == "evaluating" else "fit"
    folder = until(lambda: place.folder(job, kind), f"the folder of the {kind}", LONGEST)
    # Its log is its own first act, and sooner looked for than a process.
    (child,) = until(lambda: folder.log.exists() and place.find("child"), "a child", LONGEST, 0.002)
    # In steps: it stands still while its files are looked at, and when the stage is reached.
    child.suspend()
    until(lambda: _in(folder, stage) or _step(child), stage, LONGEST, 0)
    assert folder.outcome is None, "the task was over too soon"

    def release() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.resume()

    return release


def _step(child: psutil.Process) -> None:
    child.resume()
    time.sleep(0.003)
    child.suspend()


def reach_divided(place: Place, job: Job, stage: str) -> Release:
    """Wait until shares of this step are at work; the returned function lets those go on that are still there."""
    step = DIVIDED[stage]
    kind = "evaluate" if step == "evaluate" else "fit"
    folder = until(lambda: place.folder(job, kind), f"the folder of the {kind}", LONGEST)
    until(lambda: _shared(folder, step), stage, LONGEST, 0.002)
    children = until(lambda: place.find("child"), "a child", LONGEST, 0.002)
    for child in children:
        child.suspend()
    assert _shared(folder, step), "the step was over too soon"

    def release() -> None:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()

    return release


def _shared(folder: TaskFolder, step: str) -> bool:
    return any(share.step == step and share.busy for share in left(folder))


def _in(folder: TaskFolder, stage: Stage) -> bool:
    has = {
        name for name in ("matches", "reading", "refined-00") if (folder.checkpoint / f"{name}.safetensors").exists()
    }
    if stage == "capturing":
        return "matches" in has
    if stage == "solving":
        return "reading" in has
    if stage == "refining":
        return "refined-00" in has
    return folder.progress is not None  # the rest is over before more is told
