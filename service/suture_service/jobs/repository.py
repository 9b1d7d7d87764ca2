"""All SQL about jobs, their tasks, files and events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, exists, func, not_, or_, select, tuple_, union
from sqlalchemy.orm import Session, joinedload, selectinload

from suture_service.auth import Caller
from suture_service.conditions import may_go_on
from suture_service.hub import utc_now
from suture_service.kinds import KINDS
from suture_service.kinds.evaluate import KIND as EVALUATE
from suture_service.states import ACTIVE_JOBS, KEPT, Overdue, TaskState
from suture_service.tables import Event, Job, JobMember, Model, Revision, Task, TaskFile

_MEMBERS = selectinload(Job.members).joinedload(JobMember.revision)
_WHOLE = (
    joinedload(Job.requester),
    selectinload(Job.tasks).options(joinedload(Task.party), joinedload(Task.site)),
    _MEMBERS.selectinload(Revision.files),
    _MEMBERS.joinedload(Revision.model).joinedload(Model.party),
)


def readable(caller: Caller) -> Select[Job]:
    """Jobs this caller may read: its party's, and those with a task for its party."""
    asked = exists().where(Task.job_id == Job.id, Task.party_id == caller.party_id)
    return select(Job).where(or_(Job.requester_id == caller.party_id, asked)).options(*_WHOLE)


def kept_long_enough() -> ColumnElement[bool]:
    """The condition under which a task's file is forgotten: the job ended long ago for good."""
    ended = select(Task.id).join(Job).where(Job.finished_at < utc_now() - KEPT, not_(may_go_on()))
    return TaskFile.task_id.in_(ended)


def find_job(session: Session, caller: Caller, job_id: str) -> Job | None:
    """Return a job the caller may read."""
    return session.scalars(readable(caller).where(Job.id == job_id)).one_or_none()


def list_jobs(
    session: Session, caller: Caller, *, state: str | None, before: tuple[datetime, str] | None, limit: int
) -> Sequence[Job]:
    """Return readable jobs, newest first; one more than `limit`.

    The newest of the party's own and the newest of those with a task for it are looked up each by an index: asked for
    both at once, a database reads all jobs there are.
    """
    newest = Job.created_at.desc(), Job.id.desc()
    tasked = select(Task.job_id).where(Task.party_id == caller.party_id)

    def among(condition: ColumnElement[bool]) -> Select[str]:
        statement = select(Job.id).where(condition)
        if state is not None:
            statement = statement.where(Job.state == state)
        if before is not None:
            statement = statement.where(tuple_(Job.created_at, Job.id) < tuple_(*before))
        return select(statement.order_by(*newest).limit(limit + 1).subquery().c.id)

    ids = union(among(Job.requester_id == caller.party_id), among(Job.id.in_(tasked)))
    whole = select(Job).where(Job.id.in_(ids)).order_by(*newest).limit(limit + 1).options(*_WHOLE)
    return session.scalars(whole).all()


def count_active(session: Session, party_id: int) -> int:
    """Return how many of a party's jobs have not ended."""
    statement = select(func.count()).where(Job.requester_id == party_id, Job.state.in_(ACTIVE_JOBS))
    return session.scalar(statement) or 0


def lock_job(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """Return a job, and let nobody else change it or its tasks until this transaction ends.

    With `skip_locked`, None where another hub has it. (On SQLite a writing transaction has the whole database.)
    """
    locked = select(Job.id).where(Job.id == job_id).with_for_update(skip_locked=skip_locked)
    if session.scalars(locked).one_or_none() is None:
        return None
    whole = select(Job).where(Job.id == job_id).options(*_WHOLE).execution_options(populate_existing=True)
    return session.scalars(whole).one()


def result_of(session: Session, job_id: str) -> Revision | None:
    """Return the newest revision that the hub published for a job."""
    statement = (
        select(Revision)
        .where(Revision.job_id == job_id)
        .order_by(Revision.id.desc())
        .limit(1)
        .options(joinedload(Revision.model).joinedload(Model.party), selectinload(Revision.files))
    )
    return session.scalars(statement).one_or_none()


def results_of(session: Session, job_ids: Sequence[str]) -> dict[str, list[Revision]]:
    """Return the published revisions of several jobs, by job; the newest last."""
    statement = (
        select(Revision)
        .where(Revision.job_id.in_(job_ids))
        .order_by(Revision.id)
        .options(joinedload(Revision.model).joinedload(Model.party))
    )
    by_job: dict[str, list[Revision]] = {}
    for revision in session.scalars(statement):
        assert revision.job_id is not None
        by_job.setdefault(revision.job_id, []).append(revision)
    return by_job


def leased_kinds(session: Session, party_id: int, job_id: str) -> Sequence[str]:
    """Return of which kinds the job's tasks are whose lease a site of the party holds."""
    statement = select(Task.kind).where(
        Task.job_id == job_id, Task.party_id == party_id, Task.state == TaskState.LEASED
    )
    return session.scalars(statement).all()


def evaluated_by(session: Session, party_id: int, job_id: str) -> bool:
    """Whether a party has evaluated the candidates of a job."""
    statement = select(Task.id).where(
        Task.job_id == job_id, Task.party_id == party_id, Task.kind == EVALUATE.rules.kind, Task.state == TaskState.DONE
    )
    return session.scalars(statement.limit(1)).first() is not None


def at_work(session: Session, party_ids: Collection[int]) -> set[int]:
    """Return those of the parties whose sites hold the lease of some task."""
    statement = select(Task.party_id).where(Task.party_id.in_(party_ids), Task.state == TaskState.LEASED).distinct()
    return set(session.scalars(statement))


def due_jobs(session: Session, now: datetime, late: timedelta, limit: int = 100) -> Sequence[str]:
    """Return jobs with a lapsed lease or a passed deadline; answers may be `late`."""
    lapsed = select(Task.job_id).where(Task.state == TaskState.LEASED, Task.lease_expires_at < now)
    asking = {kind.rules.during for kind in KINDS.values() if kind.rules.overdue is not Overdue.WAITED_FOR}
    waiting = select(Job.id).where(Job.state.in_(sorted(asking)), Job.answer_by < now)
    too_late = select(Task.job_id).join(Task.job).where(Task.state == TaskState.LATE, Job.answer_by < now - late)
    return session.scalars(union(lapsed, waiting, too_late).limit(limit)).all()


def list_events(session: Session, job_id: str, after: int, limit: int = 500) -> Sequence[Event]:
    """Return what happened after event `after`, in order."""
    statement = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    return session.scalars(statement).all()


def last_event(session: Session, job_id: str) -> datetime:
    """Return when the newest event of a job was."""
    return session.scalars(select(Event.at).where(Event.job_id == job_id).order_by(Event.seq.desc()).limit(1)).one()


def drop_progress(session: Session, job_id: str, task_id: str) -> None:
    """Forget the task's earlier progress: only the latest is worth keeping."""
    session.execute(delete(Event).where(Event.job_id == job_id, Event.task_id == task_id, Event.kind == "progress"))


def leased_by(session: Session, party_id: int, limit: int) -> Sequence[Task]:
    """Return the tasks whose lease a site of the party holds, with their jobs, the oldest first."""
    statement = select(Task).where(Task.party_id == party_id, Task.state == TaskState.LEASED)
    return session.scalars(
        statement.order_by(Task.created_at, Task.id)
        .limit(limit)
        .options(joinedload(Task.job).joinedload(Job.requester))
    ).all()
