"""What a site does just now: agent, queue, workers on all machines, tasks, disk. Read from the state and the queue."""

from __future__ import annotations

import fcntl
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import redis
from pydantic import AwareDatetime, BaseModel, ConfigDict

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.capacity import WorkerOffer
from suture_worker.config import SiteConfig
from suture_worker.egress.held import Held
from suture_worker.folder import TaskFolder
from suture_worker.room import SPARE
from suture_worker.rules.in_force import rules_in_force
from suture_worker.rules.inbox import Inbox
from suture_worker.shared import SharedState, shared_by

#: Touched by the agent whenever the hub answers.
CONTACT = "contact"
AGENT_LOCK = "agent.lock"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class AgentStatus(_Part):
    """`running` on whichever machine; `last_contact`: when the hub last answered; `problem`: why nothing is leased."""

    running: bool
    last_contact: AwareDatetime | None
    problem: str | None


class QueueStatus(_Part):
    """Whether the queue server answers, and how many messages nobody has taken yet."""

    answers: bool
    version: str | None = None
    waiting: int | None = None
    problem: str | None = None


class SiteTask(_Part):
    """A task of this site: whether a worker is at it, how far it is, and how long this step still takes."""

    id: str
    kind: str
    job: str
    requester: str
    dataset: str | None
    state: Literal["waiting", "running", "ended"]
    step: str | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None


class SiteStatus(_Part):
    """A site at one moment; `approvals` and `releases` wait for a person."""

    at: AwareDatetime
    agent: AgentStatus
    queue: QueueStatus
    workers: list[WorkerOffer]
    tasks: list[SiteTask]
    approvals: int
    releases: int
    free_bytes: int
    total_bytes: int

    @property
    def working(self) -> bool:
        """Whether it can do what it is asked: the agent runs and leases, the queue answers, a worker waits."""
        ready = self.agent.running and self.agent.problem is None and self.queue.answers
        return ready and bool(self.workers) and self.free_bytes >= SPARE


def site_status(config: SiteConfig) -> SiteStatus:
    """Return what the site does; changes nothing. Raises `SutureError` `site.not_started` where it never ran."""
    state = config.state
    if not (state / "tasks").is_dir():
        raise SutureError(
            "site.not_started",
            "this site has not run yet",
            where=str(state),
            hint="suture site run; or the state folder is not mounted here",
        )
    shared = shared_by(config)
    rules, usage = rules_in_force(state), shutil.disk_usage(state)
    inbox, held = Inbox(state / "inbox"), Held(state / "outbox" / "held")
    return SiteStatus(
        at=datetime.now(UTC),
        agent=AgentStatus(
            running=_is_locked(state / AGENT_LOCK),
            last_contact=_touched(state / CONTACT),
            problem=rules.problem if rules is not None else None,
        ),
        queue=_queue(config),
        workers=shared.workers(),
        tasks=_tasks(state / "tasks", shared),
        approvals=sum(inbox.decided(request) is None for request in inbox.requests()),
        releases=sum(held.verdict(manifest.task) is None for manifest in held.manifests()),
        free_bytes=usage.free,
        total_bytes=usage.total,
    )


def _queue(config: SiteConfig) -> QueueStatus:
    try:
        return QueueStatus(answers=True, version=broker.check_answers(config), waiting=broker.waiting(config))
    except SutureError as error:
        return QueueStatus(answers=False, problem=error.message)
    except (redis.RedisError, OSError) as error:
        return QueueStatus(answers=False, problem=type(error).__name__)


def _tasks(folder: Path, shared: SharedState) -> list[SiteTask]:
    """Return the tasks that are there; one that goes meanwhile is left out."""
    tasks = []
    for path in sorted(folder.iterdir()):
        try:
            tasks.append(_task(shared.task(path.name)))
        except (SutureError, OSError):
            continue
    return tasks


def _task(folder: TaskFolder) -> SiteTask:
    assignment, progress = folder.assignment, folder.progress
    task = assignment.task
    running = folder.busy
    state: Literal["waiting", "running", "ended"] = "running" if running else "waiting"
    return SiteTask(
        id=folder.id,
        kind=task.kind,
        job=task.job.id,
        requester=task.job.requester,
        dataset=assignment.dataset,
        state="ended" if folder.outcome is not None else state,
        step=progress.step if progress else None,
        done=progress.done if progress else None,
        total=progress.total if progress else None,
        seconds_left=progress.seconds_left if progress and running else None,
    )


def _touched(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False
