"""The rules of tasks: who may lease what, and what a lease allows. Every write carries the fence of its lease."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from suture_contract.contributions import MOMENTS
from suture_contract.documents import Evaluation, Revised
from suture_contract.model.metadata import MAX_BYTES, Member, ModelMetadata
from suture_service.auth import Caller
from suture_service.errors import Conflict, HubError, NotFound
from suture_service.hub import Hub
from suture_service.jobs import repository as jobs
from suture_service.jobs.lifecycle import Lifecycle, matched, missing
from suture_service.jobs.schemas import MissingOut
from suture_service.jobs.service import member
from suture_service.models.service import CARD, METADATA, MODEL, Checked, StoredFile, publish
from suture_service.sites.repository import mark_seen, seen_since
from suture_service.states import JobState, TaskState, wanted
from suture_service.storage import BlobStore
from suture_service.tables import Job, Json, Revision, Task, TaskFile
from suture_service.tasks import documents, repository
from suture_service.tasks.documents import CANDIDATES, FILES, OPTIONAL, STITCHES, FileContent, JobFacts
from suture_service.tasks.schemas import (
    ComposeSpec,
    ContributeSpec,
    Contribution,
    EvaluateSpec,
    FitSpec,
    JobRef,
    LeasedTask,
    MatchSpec,
    SpecFile,
    SpecMember,
)

_SEEN_STEP = timedelta(seconds=10)


def note_presence(hub: Hub, site: Caller) -> None:
    """Write down that the site asks for work, which makes it online; so does a sign of life of a task."""
    assert site.site_id is not None
    now = hub.now()
    with hub.database.reading() as session:
        if seen_since(session, site.site_id, now - _SEEN_STEP):
            return
    with hub.database.writing() as session:
        mark_seen(session, site.site_id, now, _SEEN_STEP)


def lease(hub: Hub, site: Caller) -> LeasedTask | None:
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


def _show(hub: Hub, session: Session, job: Job, task: Task) -> LeasedTask:
    assert task.lease_expires_at is not None
    return LeasedTask(
        id=task.id,
        kind=task.kind,
        attempt=task.attempt,
        fence=task.fence,
        lease_seconds=hub.settings.lease_seconds,
        lease_expires_at=task.lease_expires_at,
        job=JobRef(id=job.id, requester=job.requester.name),
        spec=_spec(session, job, task),
    )


def _spec(session: Session, job: Job, task: Task) -> MatchSpec | ContributeSpec | FitSpec | EvaluateSpec | ComposeSpec:
    members = [_spec_member(entry.revision) for entry in job.members]
    if task.kind == "match":
        return MatchSpec(members=members, dataset=job.dataset, options=job.options)
    if task.kind == "contribute":
        where = matched(job)
        return ContributeSpec(
            members=members, dataset=task.dataset, placements=list(where.placements), norms=list(where.norms)
        )
    if task.kind == "fit":
        said = _contributions(job)
        files = jobs.contributed_files(session, job.id) if said else {}
        given = {name: Contribution(sha256=file.sha256, size=file.size, **said[name]) for name, file in files.items()}
        return FitSpec(members=members, dataset=job.dataset, options=job.options, contributions=given)
    fitted = jobs.fitted_files(session, job.id)
    candidates = {name: SpecFile(sha256=fitted[name].sha256, size=fitted[name].size) for name in (CANDIDATES, STITCHES)}
    if task.kind == "evaluate":
        return EvaluateSpec(members=members, dataset=task.dataset, own=_own(job, task), candidates=candidates)
    return ComposeSpec(
        members=members,
        candidates=candidates,
        evaluations={name: Evaluation.model_validate(document) for name, document in _evaluations(job).items()},
        missing=[MissingOut(party=entry.party, reason=entry.reason) for entry in missing(job)],
        version=_version(job),
        revised=_revised(job),
        publish_as=f"{job.requester.name}/{job.publish_as}",
        job=job.id,
    )


def _spec_member(revision: Revision) -> SpecMember:
    size = next(file.size for file in revision.files if file.name == MODEL)
    ref, party = member(revision), revision.model.party.name
    return SpecMember(**ref.model_dump(), size=size, party=party, metadata=revision.content)


def _own(job: Job, task: Task) -> int | None:
    owners = [entry.revision.model.party_id for entry in job.members]
    return owners.index(task.party_id) if task.party_id in owners else None


def _evaluations(job: Job) -> dict[str, dict[str, Any]]:
    return {
        task.party.name: task.result
        for task in job.tasks
        if task.kind == "evaluate" and task.state == TaskState.DONE and task.result is not None
    }


def _contributions(job: Job) -> dict[str, Json]:
    return {
        task.party.name: task.result
        for task in job.tasks
        if task.kind == "contribute" and task.state == TaskState.DONE and task.result is not None
    }


def _composed(job: Job) -> list[Task]:
    return [task for task in job.tasks if task.kind == "compose" and task.state == TaskState.DONE]


def _version(job: Job) -> int:
    return len(_composed(job)) + 1


def _revised(job: Job) -> Revised | None:
    """Return what the report to be made says of the one that is published."""
    if not (composed := _composed(job)):
        return None
    last = composed[-1]
    assert last.result is not None
    assert last.finished_at is not None
    added = [
        task.party.name
        for task in job.tasks
        if task.kind == "evaluate"
        and task.state == TaskState.DONE
        and task.finished_at is not None
        and task.finished_at > last.finished_at
    ]
    return Revised(before=last.result["chosen"], added=tuple(sorted(added)))


def heartbeat(hub: Hub, session: Session, site: Caller, task_id: str, fence: int) -> tuple[datetime, bool]:
    """Renew the lease; return until when, and whether the job wants the work to stop."""
    until = hub.now() + timedelta(seconds=hub.settings.lease_seconds)
    task = _own_task(session, site, task_id)
    if not repository.renew(session, task_id, fence, until):
        raise fenced(task_id)
    _is_there(hub, session, site)
    return until, not _is_wanted(task)


def progress(
    hub: Hub, session: Session, site: Caller, task_id: str, fence: int, progress: dict[str, Any]
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


def wait(hub: Hub, session: Session, site: Caller, task_id: str, fence: int, waits_for: str) -> tuple[datetime, bool]:
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


def _is_there(hub: Hub, session: Session, site: Caller) -> None:
    """Write down that the site is online: one that works on a long task asks for no other meanwhile."""
    assert site.site_id is not None
    mark_seen(session, site.site_id, hub.now(), _SEEN_STEP)


def file_limit(hub: Hub, session: Session, site: Caller, task_id: str, fence: int, name: str) -> int:
    """Return how many bytes a file may have; raises unless the lease allows the site to put it."""
    task = _own_task(session, site, task_id)
    _require_lease(task, fence)
    if name not in FILES[task.kind]:
        allowed = ", ".join(FILES[task.kind]) or "none"
        raise HubError(
            "task.file", f"{name!r} is no file of a {task.kind} task", where=name, hint=f"allowed: {allowed}"
        )
    settings = hub.settings
    limits = {
        MODEL: settings.max_model_bytes,
        METADATA: MAX_BYTES,
        CARD: settings.max_card_bytes,
        STITCHES: settings.max_stitches_bytes,
        MOMENTS: settings.max_stitches_bytes,
    }
    return limits.get(name, settings.max_document_bytes)


def put_file(session: Session, site: Caller, task_id: str, fence: int, name: str, file: StoredFile) -> None:
    """Write down a file that is stored, if the lease still holds."""
    _, task = _locked(session, site, task_id)
    _require_lease(task, fence)
    repository.put_file(session, task, name, fence=fence, size=file.size, sha256=file.sha256)


def finish(hub: Hub, site: Caller, task_id: str, fence: int, document: dict[str, Any]) -> TaskState:
    """Check a result, outside any transaction, then take it; repeating the same result is harmless."""
    with hub.database.reading() as session:
        task = _own_task(session, site, task_id)
        if task.state == TaskState.DONE and task.fence == fence:
            return _repeated(task, document)
        _require_lease(task, fence)
        job = jobs.find_job(session, site, task.job_id)
        assert job is not None, "a site may read the jobs it has tasks of"
        files = {file.name: file for file in task.files if file.fence == fence}
        fitted = jobs.fitted_files(session, job.id)
    result, checked = _check(hub.store, job, task, document, files, fitted)
    with hub.database.writing() as session:
        job, task = _locked(session, site, task_id)
        if task.state == TaskState.DONE and task.fence == fence:
            return _repeated(task, document)
        _require_lease(task, fence)
        present = {file.name: file.sha256 for file in task.files if file.fence == fence}
        if present != {name: file.sha256 for name, file in files.items()}:
            raise Conflict("task.files_changed", "a file was put while the result was checked", where=task_id)
        if checked is not None:
            stored = {name: StoredFile(file.sha256, file.size) for name, file in files.items()}
            _, new = publish(
                session,
                party_id=job.requester_id,
                name=job.publish_as,
                files=stored,
                checked=checked,
                created_by=site.name,
                now=hub.now(),
                job_id=job.id,
            )
            hub.metrics.published.inc(int(new))
        Lifecycle(hub, session, job, site).complete(task, result)
        return TaskState(task.state)


def _repeated(task: Task, document: dict[str, Any]) -> TaskState:
    # Compared as the hub would have kept it: an Evaluation is kept with its defaults filled in.
    kept = document
    if task.kind == "evaluate":
        kept = documents.evaluation_as_kept(document)
    elif task.kind == "contribute":
        kept = {name: value for name, value in document.items() if value is not None}
    if kept != task.result:
        raise fenced(task.id)
    return TaskState.DONE


def _check(
    store: BlobStore,
    job: Job,
    task: Task,
    document: dict[str, Any],
    files: dict[str, TaskFile],
    fitted: dict[str, TaskFile],
) -> tuple[dict[str, Any], Checked | None]:
    absent = [name for name in FILES[task.kind] if name not in {*files, *OPTIONAL}]
    if absent:
        raise HubError(
            "task.file_missing",
            f"{', '.join(absent)} must be put before the result",
            where=absent[0],
            hint=f"PUT /v1/tasks/{task.id}/files/{absent[0]}?fence={task.fence}",
        )
    facts = _facts(job)
    contents = {name: _content(store, file) for name, file in files.items()}
    if task.kind == "match":
        return documents.check_match(facts, document), None
    if task.kind == "contribute":
        return documents.check_contribution(facts, document, contents[MOMENTS], matched(job)), None
    if task.kind == "fit":
        return documents.check_fit(facts, document, contents, _contributions(job)), None
    candidates = _content(store, fitted[CANDIDATES])
    if task.kind == "evaluate":
        return documents.check_evaluation(document, _own(job, task), candidates), None
    return documents.check_composed(
        facts,
        document,
        contents,
        candidates=candidates,
        evaluated=list(_evaluations(job)),
        missing=missing(job),
        version=_version(job),
        revised=_revised(job),
    )


def _content(store: BlobStore, file: TaskFile) -> FileContent:
    return FileContent(file.size, file.sha256, partial(store.read, file.sha256, size=file.size))


def _facts(job: Job) -> JobFacts:
    members = tuple(Member.model_validate(member(entry.revision).model_dump()) for entry in job.members)
    task = ModelMetadata.model_validate(job.members[0].revision.content).task
    return JobFacts(job=job.id, requester=job.requester.name, task=task, members=members)


def fail(
    hub: Hub,
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


def decline(hub: Hub, session: Session, site: Caller, task_id: str, fence: int, code: str) -> TaskState:
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
    return wanted(JobState(task.job.state), task.kind)


def fenced(task_id: str) -> Conflict:
    """Return the answer to a write whose lease is over."""
    return Conflict(
        "task.fenced",
        "this lease is over: the task was leased again, or it or its job has ended",
        where=task_id,
        hint="stop working on it and lease again",
    )
