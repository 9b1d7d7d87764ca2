"""The rules of jobs: what may be asked for, and by whom. All that can be known beforehand is checked beforehand."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy.orm import Session

from suture_contract.compatibility import incompatibilities
from suture_contract.measures import check_fits
from suture_contract.model.metadata import ModelMetadata
from suture_contract.naming import did_you_mean
from suture_service.access.repository import unusable_by
from suture_service.auth import Caller
from suture_service.errors import Conflict, HubError, NotFound
from suture_service.hub import HubContext
from suture_service.jobs import repository
from suture_service.jobs.lifecycle import MEMBER_PURGED, NO_ANSWER, Lifecycle, missing
from suture_service.jobs.schemas import (
    JobError,
    JobIn,
    JobOut,
    ProgressOut,
    ResultOut,
    TaskOut,
    WaitOut,
)
from suture_service.keys.flags import flags_of
from suture_service.kinds import KINDS
from suture_service.kinds.fit import fitted_files
from suture_service.kinds.schemas import MemberOut, MissingOut
from suture_service.models.repository import find_revision, unreadable_by
from suture_service.models.service import MODEL, REPORT, no_readable_model
from suture_service.models.trees import StoredFile
from suture_service.parties.repository import find_party, lock_party
from suture_service.parties.service import no_party
from suture_service.sites.repository import datasets_told, has_site, last_seen
from suture_service.states import ACTIVE_JOBS, KEPT, UNDISCLOSED, JobState, TaskState
from suture_service.tables import Job, JobMember, Json, Party, Revision, Task

#: What the sites say of a task that waits for a person, and how it is told.
_PERSON: dict[str, Literal["approval", "release"]] = {
    "waiting for approval": "approval",
    "waiting for release": "release",
}
#: A site has at most so many tasks that wait.
_MOST_WAITING = 200


def create(hub: HubContext, session: Session, caller: Caller, asked: JobIn) -> Job:
    """Check what is asked for and add the job with its first task."""
    lock_party(session, caller.party_id)
    requester, revisions = check(hub, session, caller, asked)
    entries = [_entry(text) for text in asked.evaluate_at]
    contributors = [_entry(text) for text in asked.contribute_from]
    job_id = f"job_{secrets.token_hex(8)}"
    job = Job(
        id=job_id,
        requester=requester,
        created_by=caller.name,
        state=JobState.QUEUED,
        dataset=asked.dataset,
        publish_as=asked.publish_as or f"stitched-{job_id[4:12]}",
        evaluate_at=[{"party": name, "dataset": dataset} for name, dataset in entries],
        contribute_from=[{"party": name, "dataset": dataset} for name, dataset in contributors],
        evaluate_within=asked.evaluate_within,
        options=asked.options.stated(),
        created_at=hub.now(),
        last_seq=0,
        members=[JobMember(position=position, revision=revision) for position, revision in enumerate(revisions)],
        tasks=[],
    )
    session.add(job)
    session.flush()
    Lifecycle(hub, session, job, caller).begin()
    session.flush()
    return job


def check(hub: HubContext, session: Session, caller: Caller, asked: JobIn) -> tuple[Party, list[Revision]]:
    """Return who asks and the models' revisions, once all is checked that can be known beforehand; adds nothing."""
    caller.require("requester")
    revisions = _members(session, caller, asked)
    requester = find_party(session, caller.party)
    assert requester is not None
    parties = _parties(session, requester, [_entry(text)[0] for text in asked.evaluate_at], "evaluate_at")
    parties += _contributors(session, requester, [_entry(text)[0] for text in asked.contribute_from], parties)
    _check_dataset(session, requester, asked.dataset)
    _check_readable(session, revisions, parties, hub.now())
    _check_quota(hub, session, caller)
    _check_compatible(revisions)
    check_fits(asked.options.metrics, ModelMetadata.model_validate(revisions[0].content).task)
    return requester, revisions


def _members(session: Session, caller: Caller, asked: JobIn) -> list[Revision]:
    revisions: list[Revision] = []
    for position, model in enumerate(asked.models):
        where = f"models.{position}"
        revision = find_revision(session, caller.party_id, model.repo, model.revision or "latest")
        if revision is None:
            raise no_readable_model(session, caller, model.repo, where)
        if revision in revisions:
            raise HubError("job.duplicate_model", f"{model.repo} is named twice", where=where)
        revisions.append(revision)
    flags = flags_of(session, [revision.id for revision in revisions], caller.party_id)
    for position, revision in enumerate(revisions):
        if revision.id in flags:
            raise Conflict(
                "job.flagged_model",
                f"{revision.model.repo} should not be used: {flags[revision.id][0].words}",
                where=f"models.{position}",
                hint="leave it out, or ask its owner for a new revision",
            )
    return revisions


def _entry(text: str) -> tuple[str, str | None]:
    party, _, dataset = text.partition("/")
    return party, dataset or None


def _contributors(session: Session, requester: Party, names: Sequence[str], known: Sequence[Party]) -> list[Party]:
    """Return those asked to contribute that are not `known` already."""
    if requester.name in names:
        raise HubError(
            "job.own_contribution",
            "the fit has your own moments anyway",
            where=f"contribute_from.{names.index(requester.name)}",
            hint="name other parties only",
        )
    return [party for party in _parties(session, requester, names, "contribute_from") if party not in known]


def _parties(session: Session, requester: Party, names: Sequence[str], field: str) -> list[Party]:
    """Return the requester and those named in `field`; all must exist and have a site."""
    parties = [requester]
    for position, name in enumerate(names):
        where = f"{field}.{position}"
        if name in names[:position]:
            raise HubError("job.duplicate_party", f"{name} is named twice", where=where)
        party = find_party(session, name)
        if party is None:
            raise no_party(session, name, where)
        if party.suspended_at is not None:
            raise Conflict(
                "job.party_suspended",
                f"{name} is suspended for now",
                where=where,
                hint=f"ask again later, or leave {name} out",
            )
        if party is not requester:
            parties.append(party)
    for party in parties:
        if not has_site(session, party.id):
            raise Conflict(
                "job.no_site",
                f"{party.name} has no site, so nobody there could do the work",
                where=party.name,
                hint="an admin of that party adds one: `suture hub site add`",
            )
    return parties


def _check_dataset(session: Session, requester: Party, name: str) -> None:
    """Refuse a dataset that none of the requester's sites has, where all of them say which ones they have."""
    offered = datasets_told(session, requester.id)
    if offered is not None and name not in offered:
        hint = did_you_mean(name, offered, page="[datasets] and [[policy.allow]] in your site's site.toml")
        raise HubError("dataset.unknown", f"no site of yours offers you a dataset {name!r}", where="dataset", hint=hint)


def _check_readable(session: Session, revisions: Sequence[Revision], parties: Sequence[Party], now: datetime) -> None:
    repos = {revision.model_id: revision.model.repo for revision in revisions}
    for party in parties:
        for model_id in sorted(unreadable_by(session, list(repos), party.id)):
            raise Conflict(
                "job.not_shared",
                f"{party.name} is asked to work with {repos[model_id]} but may not read it",
                where=repos[model_id],
                hint=f"its owner shares it: suture share {repos[model_id]} {party.name}; or leave {party.name} out",
            )
        for model_id in sorted(unusable_by(session, list(repos), party.id, now)):
            raise Conflict(
                "job.access_required",
                f"{party.name} has not been given the files of {repos[model_id]}",
                where=repos[model_id],
                hint=f"someone of {party.name} asks for them: suture access request {repos[model_id]} --reason …",
            )


def _check_quota(hub: HubContext, session: Session, caller: Caller) -> None:
    active = repository.count_active(session, caller.party_id)
    most = session.get_one(Party, caller.party_id).max_jobs
    if active >= (most if most is not None else hub.settings.max_party_jobs):
        raise Conflict(
            "quota.jobs",
            f"{caller.party} has {active} jobs that have not ended, as many as it may have",
            hint="wait until one has ended, or cancel one",
        )


def _check_compatible(revisions: Sequence[Revision]) -> None:
    models = [(revision.model.repo, ModelMetadata.model_validate(revision.content)) for revision in revisions]
    problems = incompatibilities(models)
    if problems:
        raise Conflict(
            "job.incompatible", "; ".join(problems), where="models", hint="choose models of the same task and input"
        )


def get(session: Session, caller: Caller, job_id: str) -> Job:
    """Return a job, if the caller may read it."""
    job = repository.find_job(session, caller, job_id)
    if job is None:
        raise _no_job()
    return job


def cancel(hub: HubContext, session: Session, caller: Caller, job_id: str) -> Job:
    """End an own job (role `requester`); a job that is cancelled already stays as it is."""
    _require_own(session, caller, job_id)
    caller.require("requester")
    job = repository.lock_job(session, job_id)
    assert job is not None
    if job.state == JobState.CANCELLED:
        return job
    if job.state not in ACTIVE_JOBS:
        raise Conflict("job.ended", f"the job has ended already: {job.state}", where=job_id)
    Lifecycle(hub, session, job, caller).cancel()
    return job


def retry(hub: HubContext, session: Session, caller: Caller, job_id: str) -> Job:
    """Open an own failed job again (role `requester`); one that is under way stays as it is.

    Of a job that parties are missing from, those that failed or did not answer are asked again.
    """
    _require_own(session, caller, job_id)
    caller.require("requester")
    job = repository.lock_job(session, job_id)
    assert job is not None
    if job.state in ACTIVE_JOBS:
        return job
    partly = job.state == JobState.PARTIAL
    if job.state != JobState.FAILED and not partly:
        raise Conflict(
            "job.not_failed",
            f"only a job that failed, or that a party is missing from, can be tried again; this one is {job.state}",
            where=job_id,
            hint="ask for a new one with `suture stitch`",
        )
    if job.finished_at is not None and job.finished_at < hub.now() - KEPT:
        raise Conflict(
            "job.too_old",
            f"a job can be tried again for {KEPT.days} days",
            where=job_id,
            hint="ask for a new one with `suture stitch`",
        )
    for entry in job.members:
        if entry.revision.purge_id is not None:
            raise Conflict(
                MEMBER_PURGED,
                f"{entry.revision.model.repo} at {entry.revision.revision} was purged, so nobody can work with it",
                where=job_id,
                hint="ask for a new job with other models: suture stitch",
            )
    lifecycle = Lifecycle(hub, session, job, caller)
    if partly:
        lifecycle.ask_again()
    else:
        lock_party(session, caller.party_id)
        _check_quota(hub, session, caller)
        lifecycle.retry()
    return job


def get_report(session: Session, caller: Caller, job_id: str) -> StoredFile:
    """Return the party report of an own job, or of one that the caller's party has evaluated."""
    return report_of(session, caller, get(session, caller, job_id))


def report_of(session: Session, caller: Caller, job: Job) -> StoredFile:
    """Return the newest party report of a job that the caller may read, as `get_report` does."""
    if job.requester_id != caller.party_id and not repository.evaluated_by(session, caller.party_id, job.id):
        raise _no_job()
    revision = repository.result_of(session, job.id)
    for file in revision.files if revision is not None else ():
        if file.name == REPORT:
            return StoredFile(file.sha256, file.size)
    raise NotFound("the job has no report", where=job.id)


def get_file(session: Session, caller: Caller, job_id: str, name: str) -> StoredFile:
    """Return a file of the fit, for the requester and for sites that hold a lease of one of the job's tasks.

    Another file that a task starts from is for the site alone that holds its lease.
    """
    job = get(session, caller, job_id)
    kinds = repository.leased_kinds(session, caller.party_id, job_id) if caller.kind == "site" else ()
    if job.requester_id != caller.party_id and not kinds:
        raise _no_job()
    file = fitted_files(session, job_id).get(name)
    for kind in kinds if file is None else ():
        file = file or KINDS[kind].start(session, job_id).get(name)
    if file is None:
        raise NotFound("the job has no such file", where=name)
    return StoredFile(file.sha256, file.size)


def _require_own(session: Session, caller: Caller, job_id: str) -> None:
    if get(session, caller, job_id).requester_id != caller.party_id:
        raise _no_job()


def _no_job() -> NotFound:
    return NotFound("no such job")


def member(revision: Revision) -> MemberOut:
    """Return a model as jobs, reports and lineage name it."""
    sha256 = next(file.sha256 for file in revision.files if file.name == MODEL)
    return MemberOut(repo=revision.model.repo, revision=revision.revision, sha256=sha256)


def waits(hub: HubContext, session: Session, job: Job) -> dict[str, WaitOut]:
    """Say why open tasks of a job wait, by task: their site is away, at work on something else, or waits for a person.

    A task that its site gives no reason for stays without one: it may be asked about in the next moment.
    """
    late = job.state == JobState.PARTIAL
    pending = [task for task in job.tasks if task.state == TaskState.OPEN or (late and task.state == TaskState.LATE)]
    parties = {task.party_id for task in pending}
    seen, busy = last_seen(session, parties), repository.at_work(session, parties)
    away = hub.now() - timedelta(seconds=hub.settings.lease_seconds)
    reasons = {}
    for task in pending:
        at = seen.get(task.party_id)
        if task.party_id in busy:
            reasons[task.id] = WaitOut(why="queued")
        elif at is None or at < away:
            reasons[task.id] = WaitOut(why="site_offline", since=at)
    for task in job.tasks:
        step = (task.progress or {}).get("step")
        if task.state == TaskState.LEASED and step in _PERSON:
            reasons[task.id] = WaitOut(why=_PERSON[step])
    return reasons


def show(job: Job, published: Sequence[Revision], waits: Mapping[str, WaitOut] | None = None) -> JobOut:
    """Return a job, with the revisions it published and what its tasks wait for, as the API shows it."""
    results = [
        ResultOut(repo=result.model.repo, revision=result.revision, version=number, created_at=result.created_at)
        for number, result in enumerate(published, 1)
    ]
    return JobOut(
        id=job.id,
        requester=job.requester.name,
        state=JobState(job.state),
        models=[member(entry.revision) for entry in job.members],
        dataset=job.dataset,
        publish_as=f"{job.requester.name}/{job.publish_as}",
        report_for=sorted({job.requester.name, *(entry["party"] for entry in job.evaluate_at)}),
        evaluate_at=_asked(job.evaluate_at),
        contribute_from=_asked(job.contribute_from),
        created_at=job.created_at,
        finished_at=job.finished_at,
        tasks=[
            TaskOut(
                id=task.id,
                kind=task.kind,
                party=task.party.name,
                state=task.state,
                attempt=task.attempt,
                progress=_progress(task),
                reason=_disclosed_reason(task),
                waits=(waits or {}).get(task.id),
            )
            for task in job.tasks
        ],
        result=results[-1] if results else None,
        results=results,
        missing=[MissingOut(party=entry.party, reason=entry.reason) for entry in missing(job)],
        error=_error(job),
    )


def _progress(task: Task) -> ProgressOut | None:
    """Return how far a task is while somebody works on it: of one that has ended, the last word is no news."""
    if task.progress is None or task.state != TaskState.LEASED:
        return None
    return ProgressOut.model_validate(task.progress)


def _error(job: Job) -> JobError | None:
    if not job.error_code:
        return None
    # The id is the task's, where its site gave one; else the newest task that ended with this code.
    ended = [task for task in job.tasks if task.reason == job.error_code]
    named = [task for task in ended if task.correlation_id and task.correlation_id == job.error_correlation_id]
    task = next(reversed(named or ended), None)
    return JobError(
        code=job.error_code,
        correlation_id=job.error_correlation_id,
        party=task.party.name if task is not None else None,
        site=task.site.name if task is not None and task.site is not None else None,
        task=task.kind if task is not None else None,
    )


def _asked(entries: Sequence[Json]) -> list[str]:
    return [f"{entry['party']}/{entry['dataset']}" if entry["dataset"] else entry["party"] for entry in entries]


def _disclosed_reason(task: Task) -> str | None:
    """Return why a task was not done, as its party lets others know it."""
    if task.reason != UNDISCLOSED:
        return task.reason
    return NO_ANSWER if task.state == TaskState.LATE else None


def last_event(session: Session, job_id: str) -> datetime:
    """Return when something last happened in a job."""
    return repository.last_event(session, job_id)


def ended_at(job: Job) -> dict[str, datetime]:
    """Return by task when each one that was done ended."""
    return {task.id: task.finished_at for task in job.tasks if task.state == TaskState.DONE and task.finished_at}


def trainings(session: Session, caller: Caller, job: Job) -> list[Json]:
    """Return what each member declares of its training, in their order; nothing of one that the caller may not read."""
    revisions = [entry.revision for entry in job.members]
    hidden = unreadable_by(session, [revision.model_id for revision in revisions], caller.party_id)
    contents = [(revision.content or {}) if revision.model_id not in hidden else {} for revision in revisions]
    return [content.get("training_data") or {} for content in contents]


def waits_for_person(session: Session, caller: Caller) -> list[tuple[str, Literal["approval", "release"], Job]]:
    """Return what waits for a person at a site of the caller's party: the kind of task, for what it waits, the job."""
    leased = repository.leased_by(session, caller.party_id, _MOST_WAITING)
    steps = [(task, (task.progress or {}).get("step")) for task in leased]
    return [(task.kind, _PERSON[step], task.job) for task, step in steps if step in _PERSON]
