"""The faults: what happens to a job, and what must come of it."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.fault.place import LEASE_SECONDS, Ended, Place, until
from tests.fault.stages import DIVIDED, STAGES, Stage, prepare, reach, reach_divided

from suture.errors import Conflict
from suture.job import Job

KILLED = ("agent", "worker", "child", "redis", "hub", "postgresql")
#: Where a child is at work.
_COMPUTING: tuple[Stage, ...] = ("capturing", "solving", "refining", "evaluating")


#: The database of the hub; a small disk is that of a site, with a hub on SQLite.
Where = Literal["sqlite", "postgresql", "small disk", "two workers"]


@dataclass(frozen=True)
class Cell:
    """One fault at one stage; `play` brings it about and returns how the job ended."""

    fault: str
    stage: str
    play: Callable[[Place, str], Ended]
    #: What may come of it; `complete` is always with the undisturbed result.
    expected: tuple[str, ...] = ("complete",)
    where: Where = "sqlite"

    @property
    def name(self) -> str:
        """What a job of this cell is called."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.fault} {self.stage}".lower())[:90].strip("-")


def undisturbed(place: Place, name: str = "undisturbed") -> Ended:
    """A job to which nothing happens."""
    job = place.ask(name)
    place.wait(job)
    return place.outcome(job, name)


def at(stage: Stage, fault: Callable[[Place, Job], None], *, at_hub: bool = False) -> Callable[[Place, str], Ended]:
    """Have something happen at a stage, and let the job go on."""

    def play(place: Place, name: str) -> Ended:
        gate = prepare(place, stage, at_hub=at_hub)
        job = place.ask(name)
        release = reach(place, job, stage, gate)
        try:
            fault(place, job)
        finally:
            release()
        place.wait(job)
        return place.outcome(job, name)

    return play


def killed(process: str, stage: Stage) -> Cell:
    """A process is killed at a stage."""
    at_hub = process in ("hub", "postgresql")
    play = at(stage, lambda place, _: place.kill(process), at_hub=at_hub)
    return Cell(f"SIGKILL of {process}", stage, play, where="postgresql" if process == "postgresql" else "sqlite")


def kills() -> list[Cell]:
    """Every process at every stage, processes in turn: one that is killed often is started again later and later."""
    return [
        killed(process, stage) for stage in STAGES for process in KILLED if process != "child" or stage in _COMPUTING
    ]


def _flush(place: Place, job: Job) -> None:
    place.flush_redis()


def _away(seconds: float) -> Callable[[Place, Job], None]:
    def fault(place: Place, job: Job) -> None:
        place.relay.cut()
        time.sleep(seconds)
        place.relay.mend()

    return fault


def _hub_clock(seconds: float) -> Callable[[Place, Job], None]:
    def fault(place: Place, job: Job) -> None:
        place.stop("hub")
        place.start_hub(wrong_by=seconds)

    return fault


def _clock_back(play: Callable[[Place, str], Ended]) -> Callable[[Place, str], Ended]:
    def whole(place: Place, name: str) -> Ended:
        try:
            return play(place, name)
        finally:
            place.stop("hub")
            place.start_hub()

    return whole


def _worker_told(place: Place, job: Job) -> None:
    for process in place.find("worker"):
        process.send_signal(signal.SIGTERM)


def _site_told(place: Place, job: Job) -> None:
    place.stop("site")
    assert not list((place.state / "tasks").glob("*/scratch/*.part"))
    place.start_site()


def _delivered_again(place: Place, job: Job) -> None:
    folder = until(lambda: place.folder(job, "fit"), "the fit's folder")
    for _ in range(5):
        place.ring(folder.id)


def _delivered_late(place: Place, name: str) -> Ended:
    job = place.ask(name)
    folder = until(lambda: place.folder(job, "fit"), "the fit's folder")
    place.wait(job)
    for _ in range(3):
        place.ring(folder.id)
    time.sleep(3)
    assert not folder.exists
    return place.outcome(job, name)


def _late_copy(place: Place, name: str) -> Ended:
    """The site is frozen beyond its lease with its result half sent; another lease is given out; it wakes up."""
    gate = prepare(place, "uploading the result")
    job = place.ask(name)
    release = reach(place, job, "uploading the result", gate)
    fence = place.folder(job, "fit").assignment.task.fence
    (agent,) = place.find("agent")
    agent.suspend()
    try:
        until(lambda: job.refresh().tasks[0].attempt == 2, "the lease lapses", LEASE_SECONDS + 20, 0.1)
    finally:
        agent.resume()
        release()
    place.wait(job)
    ended = place.outcome(job, name)
    assert fence == 1
    return ended


def _cancelled(stage: Stage) -> Callable[[Place, str], Ended]:
    return at(stage, lambda place, job: _cancel(job))


def _cancel(job: Job) -> None:
    with contextlib.suppress(Conflict):  # it has ended already
        job.cancel()


def _cancel_races(delay: float) -> Callable[[Place, str], Ended]:
    """The job is cancelled while its last result is on its way: both are sent at the same time, or nearly so."""

    def play(place: Place, name: str) -> Ended:
        gate = prepare(place, "publishing", at_hub=True)
        job = place.ask(name)
        release = reach(place, job, "publishing", gate)
        other = threading.Thread(target=lambda: (time.sleep(max(0.0, delay)), _cancel(job)))
        other.start()
        time.sleep(max(0.0, -delay))
        release()
        other.join()
        place.wait(job)
        return place.outcome(job, name)

    return play


def specials() -> list[Cell]:
    """Everything that is not a killed process."""
    lease = LEASE_SECONDS
    return [
        Cell("Redis flushed", "leased", at("leased", _flush)),
        Cell("Redis flushed", "capturing", at("capturing", _flush)),
        Cell("hub unreachable, shorter than a lease", "capturing", at("capturing", _away(lease / 3))),
        Cell("hub unreachable, longer than a lease", "capturing", at("capturing", _away(lease + 8))),
        Cell(
            "hub unreachable, longer than a lease", "uploading the result", at("uploading the result", _away(lease + 8))
        ),
        Cell("hub unreachable, shorter than a lease", "publishing", at("publishing", _away(lease / 3))),
        Cell("hub's clock two hours ahead", "refining", _clock_back(at("refining", _hub_clock(7200)))),
        Cell("hub's clock two hours behind", "refining", _clock_back(at("refining", _hub_clock(-7200)))),
        Cell("message delivered five times more", "capturing", at("capturing", _delivered_again)),
        Cell("message delivered again", "after the end", _delivered_late),
        Cell("site frozen for longer than a lease", "uploading the result", _late_copy),
        Cell("worker told to stop (SIGTERM)", "refining", at("refining", _worker_told)),
        Cell("site told to stop (SIGTERM), started again", "refining", at("refining", _site_told)),
        Cell("cancelled", "capturing", _cancelled("capturing"), ("cancelled",)),
        Cell("cancelled", "uploading the result", _cancelled("uploading the result"), ("cancelled",)),
        Cell("cancelled, nothing is told any more", "publishing", _cancelled("publishing"), ("complete",)),
        *(
            Cell(
                f"cancelled {1000 * abs(delay):.0f} ms {'before' if delay < 0 else 'after'} the result",
                "publishing",
                _cancel_races(delay),
                ("complete", "cancelled"),
            )
            for delay in (-0.02, -0.005, 0.0, 0.005, 0.02, 0.05)
        ),
    ]


def _disk(stage: Stage) -> Cell:
    play = at(stage, lambda place, _: place.fill_disk(10.0))
    return Cell("site's disk full for 10 s", stage, play, ("complete", "failed"), "small disk")


def disks() -> list[Cell]:
    """A site's disk is full; only the superuser can give it a small one."""
    return [_disk(stage) for stage in ("leased", "pulling", "capturing", "refining", "uploading the result")]


def _one_killed(name: str) -> Callable[[Place, Job], None]:
    def fault(place: Place, job: Job) -> None:
        place.find(name)[0].kill()

    return fault


def _second_killed(place: Place, job: Job) -> None:
    place.stop("second", signal.SIGKILL)


def _killed(name: str) -> Callable[[Place, Job], None]:
    return lambda place, _: place.kill(name)


def divided() -> list[Cell]:
    """What happens to a task that two workers share."""
    faults: list[tuple[str, Callable[[Place, Job], None], tuple[str, ...]]] = [
        ("SIGKILL of a share's child", _one_killed("child"), ("complete",)),
        ("SIGKILL of one of two workers", _second_killed, ("complete",)),
        ("SIGKILL of both workers", _killed("worker"), ("complete",)),
        ("SIGKILL of agent", _killed("agent"), ("complete",)),
        ("SIGKILL of redis", _killed("redis"), ("complete",)),
        ("Redis flushed", _flush, ("complete",)),
        ("cancelled", lambda _, job: _cancel(job), ("cancelled",)),
    ]
    return [
        Cell(fault, stage, _at_shares(stage, play), expected, "two workers")
        for stage in DIVIDED
        for fault, play, expected in faults
    ]


def _at_shares(stage: str, fault: Callable[[Place, Job], None]) -> Callable[[Place, str], Ended]:
    def play(place: Place, name: str) -> Ended:
        place.start_second()
        job = place.ask(name)
        release = reach_divided(place, job, stage)
        try:
            fault(place, job)
        finally:
            release()
        place.wait(job)
        return place.outcome(job, name)

    return play


def judge(cell: Cell, ended: Ended, reference: Ended) -> str:
    """Return what came of it; raises `AssertionError` for anything but what must."""
    assert ended.state in cell.expected, f"{ended.state} ({ended.code}), expected {' or '.join(cell.expected)}"
    if ended.state == "complete":
        assert ended.model == reference.model, "another model than the undisturbed one"
        assert ended.report == reference.report, "another report than the undisturbed one"
        return "one result, equal to the undisturbed one"
    assert (ended.model, ended.report) == (None, None)
    return f"{ended.state}{f' ({ended.code})' if ended.code else ''}, nothing published"
