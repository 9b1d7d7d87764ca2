"""The worker's part of a task: start the child, watch it, and write down how it ended, whatever it did."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import structlog
from celery.exceptions import SoftTimeLimitExceeded

from suture_contract.errors import SutureError
from suture_contract.files import is_full
from suture_worker import faults
from suture_worker.capacity import places
from suture_worker.compute import shards
from suture_worker.compute.forkserver import NO_ROOM, ForkedChild, ForkServer
from suture_worker.compute.shards import ShareFolder
from suture_worker.config import SiteConfig, refreshed
from suture_worker.device import memory_bytes, processors, resolve_device
from suture_worker.folder import TASK_STORE, Outcome, Run, TaskFolder
from suture_worker.room import DISK_FULL
from suture_worker.shared import shared_by

MAX_RUNS = 3
GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_LOCK_SECONDS = 2.0
_NATIVE = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
#: What native code and Python say last when memory has run out.
_NO_MEMORY = ("std::bad_alloc", "MemoryError", "cannot allocate memory")

#: Sends a message for each of these shares, and rings for their task when all have ended.
ShareOut: TypeAlias = Callable[[Sequence[ShareFolder]], None]

log = structlog.get_logger(__name__)
server = ForkServer()


def work(config: SiteConfig, task_id: str, share_out: ShareOut | None = None) -> str:
    """Do the task of this id, once: return how it ended, or why there was nothing to do.

    A message may come twice, or after its task was dropped; the folder's lock and outcome tell. With `share_out`, a
    large task is divided if other workers are free.
    """
    with shared_by(config).opened(task_id) as folder:
        return _locked(folder, lambda: _work_alone(config, folder, share_out))


def work_share(config: SiteConfig, task_id: str, step: str, index: int) -> str:
    """Do a share of a task, once: return how it ended, or why there was nothing to do."""
    with shared_by(config).opened(task_id) as task:
        share = shards.find(task, step, index) if task.exists else None
        if share is None:
            return "there is no such share"
        return _locked(share, lambda: _share_alone(config, share))


def _locked(folder: TaskFolder, work: Callable[[], str]) -> str:
    deadline = time.monotonic() + _LOCK_SECONDS
    while folder.exists:
        with folder.locked() as mine:
            if mine:
                return work()
        if time.monotonic() > deadline:
            return "another worker is at it"
        time.sleep(_POLL_SECONDS)
    return "there is no such task"


def _work_alone(config: SiteConfig, folder: TaskFolder, share_out: ShareOut | None) -> str:
    if folder.outcome is not None:
        return "it is done already"
    if share_out is not None and not folder.cancelled:
        if folder.sharing:
            return "its shares are under way"
        if left := shards.left(folder):
            share_out(left)
            return "shared out"
    outcome = _tried(config, folder, may_divide=share_out is not None and shards.count(folder) == 0)
    if outcome.state == "divided" and share_out is not None:
        shards.divide(folder, _free_places(config, folder))
        folder.publish()  # before others hear of it
        log.info("task divided", task=folder.id, shares=shards.count(folder))
        share_out(shards.left(folder))
        return "divided"
    shutil.rmtree(folder.scratch, ignore_errors=True)  # on a full disk, how it ended has no other room
    try:
        folder.finish(outcome)
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("no room to write how the task ended; it goes on when there is", task=folder.id, code=DISK_FULL)
        return "no room"
    log.info("task ended", task=folder.id, state=outcome.state, code=outcome.code)
    return outcome.state


def _share_alone(config: SiteConfig, share: ShareFolder) -> str:
    if share.outcome is not None or share.cancelled:
        return "it is done already"
    outcome = _tried(config, share, may_divide=False)
    if outcome.state != "done":
        share.task.finish(outcome)
    share.finish(outcome)
    log.info("share ended", task=share.id, step=share.step, share=share.index, state=outcome.state, code=outcome.code)
    return outcome.state


def _free_places(config: SiteConfig, folder: TaskFolder) -> int:
    """Return how many workers there are for this task, beside the others that are under way."""
    # Noise is drawn once, where all sums meet.
    if folder.private or not shards.steps(folder.assignment.task):
        return 1
    shared = shared_by(config)
    return max(1, places(shared.workers()) // max(1, shared.at_work()))


def _tried(config: SiteConfig, folder: TaskFolder, *, may_divide: bool) -> Outcome:
    try:
        return _attempt(config, folder, may_divide=may_divide)
    except (SutureError, OSError) as error:
        if is_full(error):
            return _failed(config, folder, DISK_FULL, str(error), retryable=True)
        if isinstance(error, OSError):
            return _failed(config, folder, "site.io", str(error), retryable=True)
        return _failed(config, folder, error.code, str(error), retryable=error.code == TASK_STORE)


def _attempt(config: SiteConfig, folder: TaskFolder, *, may_divide: bool) -> Outcome:
    try:
        config = refreshed(config)
    except SutureError as error:  # the agent waits until it is mended
        return _failed(config, folder, error.code, str(error), retryable=True)
    assignment = folder.assignment
    name = assignment.dataset
    if name is not None and name not in config.datasets:
        raise SutureError("dataset.unknown", "this worker's site.toml has no such dataset", where=folder.id)
    run = Run(
        device=resolve_device(config.site.device),
        threads=config.limits.threads,
        memory_bytes=memory_bytes(config.limits.memory_gib),
        cpu_seconds=config.limits.seconds * processors(),
        min_samples=config.policy.min_samples,
        min_per_class=config.policy.min_per_class,
        dataset=config.datasets[name] if name is not None else None,
        divide_from=config.limits.divide_seconds if may_divide and _free_places(config, folder) > 1 else None,
    )
    if folder.begin_run(run) > MAX_RUNS:
        return _failed(config, folder, "work.interrupted", f"started {MAX_RUNS} times, never ended", retryable=True)
    log.info("task starts", task=folder.id, kind=assignment.task.kind, device=run.device)
    killed_before = _out_of_memory_kills()
    child = server.fork(folder)
    try:
        stopped = _watch(child, folder, time.monotonic() + config.limits.seconds)
    except SoftTimeLimitExceeded:
        stopped = "work.time_limit"
    except SystemExit:  # an orderly stop of this worker is no failure of the task
        folder.hand_back()
        raise
    finally:
        # Also when this worker is told to go: the child, and whatever it started, never outlives it.
        status = child.end()
    return _outcome(config, folder, status, stopped, starved=_out_of_memory_kills() > killed_before)


def _watch(child: ForkedChild, folder: TaskFolder, deadline: float) -> str | None:
    """Wait for the child; return the code of the reason if it had to be stopped."""
    asked_at: float | None = None
    while True:
        if child.wait(_POLL_SECONDS) is not None:
            return "work.cancelled" if asked_at is not None else None
        now = time.monotonic()
        if now > deadline:
            return "work.time_limit"
        if asked_at is None and folder.cancelled:
            asked_at = now  # it looks at the same file between two batches
        if asked_at is not None and now > asked_at + GRACE_SECONDS:
            return "work.cancelled"


def _outcome(config: SiteConfig, folder: TaskFolder, status: int, stopped: str | None, *, starved: bool) -> Outcome:
    if stopped == "work.cancelled" or folder.cancelled:
        return Outcome(state="cancelled", code="work.cancelled", correlation_id=faults.new_correlation_id())
    printed = _tail(folder.log)
    if stopped is not None:
        return _failed(config, folder, stopped, f"stopped after {config.limits.seconds} s\n{printed}")
    outcome = folder.child_outcome
    if status == 0 and outcome is not None and (outcome.state != "divided" or folder.run.divide_from is not None):
        if outcome.state in ("failed", "declined"):
            correlation_id = outcome.correlation_id or faults.new_correlation_id()
            code = outcome.code or "work.failed"
            faults.note(config.state, task=folder.id, code=code, correlation_id=correlation_id, text=printed)
            return outcome.model_copy(update={"code": code, "correlation_id": correlation_id})
        return outcome
    code = crash_code(status, printed, starved=starved)
    text = f"ended with {_named(status)}\n{printed}"
    return _failed(config, folder, code, text, retryable=code in ("work.interrupted", DISK_FULL))


def crash_code(status: int, printed: str, *, starved: bool) -> str:
    """Return the code for a child that ended with `status` (negative: by that signal) without saying how.

    `starved`: meanwhile the kernel ended a process because memory had run out.
    """
    if any(words in printed for words in _NO_MEMORY) or (status == -signal.SIGKILL and starved):
        return "work.out_of_memory"
    if status == NO_ROOM:
        return DISK_FULL
    if status == -signal.SIGXCPU:
        return "work.time_limit"
    if -status in _NATIVE:
        return "model.crashed"
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return "work.interrupted"
    return "work.failed"


def _out_of_memory_kills() -> int:
    """Return how many processes this machine's kernel has ended for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _failed(config: SiteConfig, folder: TaskFolder, code: str, text: str, *, retryable: bool = False) -> Outcome:
    correlation_id = faults.new_correlation_id()
    faults.note(config.state, task=folder.id, code=code, correlation_id=correlation_id, text=text)
    return Outcome(state="failed", code=code, correlation_id=correlation_id, retryable=retryable)


def _named(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"status {status}"
    except ValueError:
        return f"signal {-status}"


def _tail(path: Path, size: int = 16 * 1024) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
