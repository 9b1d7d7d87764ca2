"""The rules of tasks: who may lease what, and what a lease allows. Every write carries the fence of its lease."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from suture_service.auth import Caller
from suture_service.errors import Conflict, HubError, NotFound
from suture_service.hub import HubContext
from suture_service.jobs import repository as jobs
from suture_service.jobs.lifecycle import Lifecycle, missing
from suture_service.jobs.service import member
from suture_service.kinds import KINDS
from suture_service.kinds.kind import Accepted, TaskContext, TaskResult
from suture_service.kinds.schemas import SpecMember
from suture_service.models.service import MODEL, publish
from suture_service.models.trees import StoredFile
from suture_service.sites.repository import mark_asked, mark_seen, seen_since
from suture_service.states import JobState, TaskState, wanted
from suture_service.storage import BlobStore
from suture_service.storage.blobs import KeptFile
from suture_service.tables import Job, Revision, Task, TaskFile
from suture_service.tasks import repository
from suture_service.tasks.schemas import JobRef, TaskLease

_SEEN_STEP = timedelta(seconds=10)
#: As a site calls itself; one from before that said so is `suture/1`.
_VERSION = re.compile(r"suture/([0-9]+\.[0-9A-Za-z.+-]{1,50})(?: |$)")


def note_presence(hub: HubContext, site: Caller, agent: str) -> None:
    """Write down that the site asks for work, which makes it online; so does a task's heartbeat.

    `agent` is how it calls itself, which says of what version it is.
    """
    assert site.site_id is not None
    now, version_said = hub.now(), _VERSION.match(agent)
    version = version_said[1] if version_said is not None else None
    with hub.database.reading() as session:
        if seen_since(session, site.site_id, now - _SEEN_STEP, version):
            return
    with hub.database.writing() as session:
        mark_asked(session, site.site_id, now, version)


def lease(hub: HubContext, site: Caller) -> TaskLease | None:
    """Lease the oldest open task of the site's party, if there is one. Of any number of hubs, one gives it out."""
    with hub.database.reading() as session:
        candidates = [(task.id, task.job_id) for task in repository.open_tasks(session, site.party_id)]
    for task_id, job_id in candidates:
        with hub.database.writing() as session:
            job = jobs.lock_job(session, job_id, skip_locked=True)
            task = next((task for task in job.tasks if task.id == task_id), None) if job is not None else None
            if job is None or task is None or not _to_lease(job, task):
                continue
            assert site.site_id is not None
            Lifecycle(hub, session, job, site).lease(task, site.site_id)
            return _show(hub, session, job, task)
    return None


def _to_lease(job: Job, task: Task) -> bool:
    return task.state == TaskState.OPEN or (task.state == TaskState.LATE and job.state == JobState.PARTIAL)


def _show(hub: HubContext, session: Session, job: Job, task: Task) -> TaskLease:
    assert task.lease_expires_at is not None
    kind = KINDS[task.kind]
    return TaskLease(
        id=task.id,
        kind=task.kind,
        attempt=task.attempt,
        fence=task.fence,
        lease_seconds=hub.settings.lease_seconds,
        lease_expires_at=task.lease_expires_at,
        job=JobRef(id=job.id, requester=job.requester.name),
        spec=kind.spec(_work(job, task), kind.start(session, job.id)),
    )


def _work(job: Job, task: Task) -> TaskContext:
    return TaskContext(job, task, [_spec_member(entry.revision) for entry in job.members], missing(job))


def _spec_member(revision: Revision) -> SpecMember:
    size = next(file.size for file in revision.files if file.name == MODEL)
    ref, party = member(revision), revision.model.party.name
    return SpecMember(**ref.model_dump(), size=size, party=party, metadata=revision.content)


def heartbeat(hub: HubContext, session: Session, site: Caller, task_id: str, fence: int) -> tuple[datetime, bool]:
    """Renew the lease; return until when, and whether the job wants the work to stop."""
    until = hub.now() + timedelta(seconds=hub.settings.lease_seconds)
    task = _own_task(session, site, task_id)
    if not repository.renew(session, task_id, fence, until):
        raise fenced(task_id)
    _is_there(hub, session, site)
    return until, not _is_wanted(task)


def progress(
    hub: HubContext, session: Session, site: Caller, task_id: str, fence: int, progress: dict[str, Any]
) -> tuple[datetime, bool]:
    """Record how far a task is, and renew the lease."""
    job, task = _locked(session, site, task_id)
    if task.state != TaskState.LEASED or task.fence != fence:
        raise fenced(task_id)
    _is_there(hub, session, site)
    lifecycle = Lifecycle(hub, session, job, site)
    task.lease_expires_at = lifecycle.lease_end()
    if lifecycle.wants(task):
        lifecycle.progress(task, progress)
    return task.lease_expires_at, not lifecycle.wants(task)


def wait(
    hub: HubContext, session: Session, site: Caller, task_id: str, fence: int, waits_for: str
) -> tuple[datetime, bool]:
    """Record that a leased task waits for a person at the site, and renew its lease for as long as that may take."""
    step = f"waiting for {waits_for}"
    task = _own_task(session, site, task_id)
    if task.progress is None or task.progress["step"] != step:
        progress(hub, session, site, task_id, fence, {"step": step, "done": 0, "total": 0, "seconds_left": None})
    until = hub.now() + timedelta(seconds=hub.settings.waiting_lease_seconds)
    if not repository.renew(session, task_id, fence, until):
        raise fenced(task_id)
    _is_there(hub, session, site)
    return until, not _is_wanted(task)


def _is_there(hub: HubContext, session: Session, site: Caller) -> None:
    """Write down that the site is online: one that works on a long task asks for no other meanwhile."""
    assert site.site_id is not None
    mark_seen(session, site.site_id, hub.now(), _SEEN_STEP)


def file_limit(hub: HubContext, session: Session, site: Caller, task_id: str, fence: int, name: str) -> int:
    """Return how many bytes a file may have; raises unless the lease allows the site to put it."""
    task = _own_task(session, site, task_id)
    _require_lease(task, fence)
    kind = KINDS[task.kind]
    if name not in kind.files:
        allowed = ", ".join(kind.files) or "none"
        raise HubError(
            "task.file", f"{name!r} is no file of a {task.kind} task", where=name, hint=f"allowed: {allowed}"
        )
    return kind.limit(name, hub.settings)


def put_file(session: Session, site: Caller, task_id: str, fence: int, name: str, file: StoredFile) -> None:
    """Write down a file that is stored, if the lease still holds."""
    _, task = _locked(session, site, task_id)
    _require_lease(task, fence)
    repository.put_file(session, task, name, fence=fence, size=file.size, sha256=file.sha256)


def finish(hub: HubContext, site: Caller, task_id: str, fence: int, document: dict[str, Any]) -> TaskState:
    """Check a result, outside any transaction, then take it; repeating the same result is harmless."""
    with hub.database.reading() as session:
        task = _own_task(session, site, task_id)
        if task.state == TaskState.DONE and task.fence == fence:
            return _repeated(task, document)
        _require_lease(task, fence)
        job = jobs.find_job(session, site, task.job_id)
        assert job is not None, "a site may read the jobs it has tasks of"
        files = {file.name: file for file in task.files if file.fence == fence}
        start = KINDS[task.kind].start(session, job.id)
    accepted = _check(hub.store, job, task, document, files, start)
    with hub.database.writing() as session:
        job, task = _locked(session, site, task_id)
        if task.state == TaskState.DONE and task.fence == fence:
            return _repeated(task, document)
        _require_lease(task, fence)
        present = {file.name: file.sha256 for file in task.files if file.fence == fence}
        if present != {name: file.sha256 for name, file in files.items()}:
            raise Conflict("task.files_changed", "a file was put while the result was checked", where=task_id)
        if accepted.publish is not None:
            stored = {name: StoredFile(file.sha256, file.size) for name, file in files.items()}
            _, new = publish(
                session,
                party_id=job.requester_id,
                name=job.publish_as,
                files=stored,
                checked=accepted.publish,
                created_by=site.name,
                now=hub.now(),
                job_id=job.id,
            )
            hub.metrics.published.inc(int(new))
        Lifecycle(hub, session, job, site).complete(task, accepted.document)
        return TaskState(task.state)


def _repeated(task: Task, document: dict[str, Any]) -> TaskState:
    if KINDS[task.kind].as_kept(document) != task.result:
        raise fenced(task.id)
    return TaskState.DONE


def _check(
    store: BlobStore,
    job: Job,
    task: Task,
    document: dict[str, Any],
    files: Mapping[str, TaskFile],
    start: Mapping[str, TaskFile],
) -> Accepted:
    kind = KINDS[task.kind]
    absent = [name for name in kind.files if name not in {*files, *kind.optional}]
    if absent:
        raise HubError(
            "task.file_missing",
            f"{', '.join(absent)} must be put before the result",
            where=absent[0],
            hint=f"PUT /v1/tasks/{task.id}/files/{absent[0]}?fence={task.fence}",
        )
    result = TaskResult(document, _contents(store, files), _contents(store, start))
    return kind.check(_work(job, task), result)


def _contents(store: BlobStore, files: Mapping[str, TaskFile]) -> dict[str, KeptFile]:
    return {name: _content(store, file) for name, file in files.items()}


def _content(store: BlobStore, file: TaskFile) -> KeptFile:
    return KeptFile(store, file.sha256, file.size)


def fail(
    hub: HubContext,
    session: Session,
    site: Caller,
    task_id: str,
    fence: int,
    code: str,
    correlation_id: str | None,
    *,
    retryable: bool,
) -> TaskState:
    """End a leased task without a result, or open it again."""
    job, task = _locked(session, site, task_id)
    if _said_before(task, fence, TaskState.FAILED, code):
        return TaskState(task.state)
    _require_fence(task, fence)
    Lifecycle(hub, session, job, site).fail(task, code, correlation_id, retryable=retryable)
    return TaskState(task.state)


def decline(hub: HubContext, session: Session, site: Caller, task_id: str, fence: int, code: str) -> TaskState:
    """End a leased task that the site's policy does not allow."""
    job, task = _locked(session, site, task_id)
    if _said_before(task, fence, TaskState.DECLINED, code):
        return TaskState(task.state)
    _require_fence(task, fence)
    Lifecycle(hub, session, job, site).decline(task, code)
    return TaskState(task.state)


def _said_before(task: Task, fence: int, state: TaskState, code: str) -> bool:
    ended = (state, TaskState.CANCELLED)
    return task.fence == fence and task.state in ended and task.reason == code


def _locked(session: Session, site: Caller, task_id: str) -> tuple[Job, Task]:
    job = jobs.lock_job(session, _own_task(session, site, task_id).job_id)
    assert job is not None
    return job, next(task for task in job.tasks if task.id == task_id)


def _own_task(session: Session, site: Caller, task_id: str) -> Task:
    task = repository.find_task(session, site.party_id, task_id)
    if task is None:
        raise NotFound("no such task")
    return task


def _require_fence(task: Task, fence: int) -> None:
    if task.state != TaskState.LEASED or task.fence != fence:
        raise fenced(task.id)


def _require_lease(task: Task, fence: int) -> None:
    """Raise unless the lease holds and the job still wants the work."""
    _require_fence(task, fence)
    if not _is_wanted(task):
        raise fenced(task.id)


def _is_wanted(task: Task) -> bool:
    return wanted(JobState(task.job.state), KINDS[task.kind].rules)


def fenced(task_id: str) -> Conflict:
    """Return the answer to a write whose lease is over."""
    return Conflict(
        "task.fenced",
        "this lease is over: the task was leased again, or it or its job has ended",
        where=task_id,
        hint="stop working on it and lease again",
    )
