"""All SQL about what a party or a site has while it changes or goes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from suture_service.states import ACTIVE_JOBS, ACTIVE_TASKS, TaskState
from suture_service.tables import (
    AccessRequest,
    Job,
    JobMember,
    Model,
    ModelShare,
    Party,
    PartyKey,
    Person,
    Revision,
    Site,
    Task,
    Token,
)
from suture_service.tokens import is_live

_WAITING = (*sorted(ACTIVE_TASKS), TaskState.LATE)


def counts(session: Session, party_id: int, now: datetime, site_id: int | None) -> dict[str, int]:
    """Return how many models, jobs, tasks, sites, tokens, people and keys a party has; of a site, its own."""
    live = is_live(now)
    if site_id is not None:
        wanted: dict[str, ColumnElement[bool]] = {
            "tasks": and_(Task.site_id == site_id, Task.state == TaskState.LEASED),
            "tokens": and_(Token.site_id == site_id, live),
            "sites": Site.id == site_id,
        }
    else:
        wanted = {
            "models": and_(Model.party_id == party_id, Model.deleted_at.is_(None)),
            "jobs": and_(Job.requester_id == party_id, Job.state.in_(ACTIVE_JOBS)),
            "tasks": and_(Task.party_id == party_id, Task.state.in_(_WAITING)),
            "sites": and_(Site.party_id == party_id, Site.removed_at.is_(None)),
            "tokens": and_(Token.party_id == party_id, live),
            "people": Person.party_id == party_id,
            "keys": and_(PartyKey.party_id == party_id, PartyKey.revoked_at.is_(None)),
        }
    amounts = dict.fromkeys(("models", "jobs", "tasks", "sites", "tokens", "people", "keys"), 0)
    for name, condition in wanted.items():
        amounts[name] = session.scalar(select(func.count()).where(condition)) or 0
    return amounts


def jobs_in_the_way(session: Session, party_id: int) -> Sequence[str]:
    """Return the jobs that have not ended and name a party: as requester, by a task, or by a model; at most ten."""
    asked = exists().where(Task.job_id == Job.id, Task.party_id == party_id)
    named = Job.id.in_(_jobs_with_models_of(party_id))
    statement = select(Job.id).where(
        Job.state.in_(ACTIVE_JOBS), or_(Job.requester_id == party_id, asked, named, _named_in_job(session, party_id))
    )
    return session.scalars(statement.order_by(Job.id).limit(10)).all()


def _named_in_job(session: Session, party_id: int) -> ColumnElement[bool]:
    """Jobs that will ask the party, and have no task for it yet: what was asked for is a list in JSON."""
    name = session.scalars(select(Party.name).where(Party.id == party_id)).one()
    rows = session.execute(select(Job.id, Job.evaluate_at, Job.contribute_from).where(Job.state.in_(ACTIVE_JOBS)))
    ids = [row.id for row in rows if any(entry["party"] == name for entry in (*row.evaluate_at, *row.contribute_from))]
    return Job.id.in_(ids)


def _jobs_with_models_of(party_id: int) -> Select[str]:
    return (
        select(JobMember.job_id)
        .join(Revision, Revision.id == JobMember.revision_id)
        .join(Model, Model.id == Revision.model_id)
        .where(Model.party_id == party_id)
    )


def jobs_waiting_for(session: Session, party_id: int) -> Sequence[str]:
    """Return the jobs that a party asked for and that have not ended, and those with a task that waits for it."""
    waiting = exists().where(Task.job_id == Job.id, Task.party_id == party_id, Task.state.in_(_WAITING))
    own = and_(Job.requester_id == party_id, Job.state.in_(ACTIVE_JOBS))
    return session.scalars(select(Job.id).where(or_(own, waiting)).order_by(Job.id)).all()


def late_jobs_naming(session: Session, party_id: int) -> Sequence[str]:
    """Return the jobs that wait for late answers and name a party: as requester, by a task, or by a model."""
    late = exists().where(Task.job_id == Job.id, Task.state == TaskState.LATE)
    asked = exists().where(Task.job_id == Job.id, Task.party_id == party_id)
    named = Job.id.in_(_jobs_with_models_of(party_id))
    return session.scalars(select(Job.id).where(late, or_(Job.requester_id == party_id, asked, named))).all()


def end_leases(session: Session, now: datetime, *, party_id: int | None = None, site_id: int | None = None) -> None:
    """Let the leases of a party's sites, or of one site, lapse: the hub opens their tasks again."""
    whose = Task.site_id == site_id if site_id is not None else Task.party_id == party_id
    session.execute(update(Task).where(Task.state == TaskState.LEASED, whose).values(lease_expires_at=now))


def live_tokens(session: Session, now: datetime, *, party_id: int, site_id: int | None = None) -> Sequence[Token]:
    """Return the tokens of a party, or of one of its sites, that still open something."""
    statement = select(Token).where(Token.party_id == party_id, is_live(now))
    if site_id is not None:
        statement = statement.where(Token.site_id == site_id)
    return session.scalars(statement).all()


def people_of(session: Session, party_id: int) -> Sequence[Person]:
    """Return all people who may sign in for a party."""
    return session.scalars(select(Person).where(Person.party_id == party_id)).all()


def models_of(session: Session, party_id: int) -> Sequence[Model]:
    """Return a party's models."""
    return session.scalars(select(Model).where(Model.party_id == party_id, Model.deleted_at.is_(None))).all()


def sites_of(session: Session, party_id: int) -> Sequence[Site]:
    """Return a party's sites."""
    return session.scalars(select(Site).where(Site.party_id == party_id, Site.removed_at.is_(None))).all()


def forget_shares(session: Session, party_id: int) -> None:
    """Forget what others have let a party read and use."""
    session.execute(delete(ModelShare).where(ModelShare.party_id == party_id))
    session.execute(delete(AccessRequest).where(AccessRequest.party_id == party_id))
