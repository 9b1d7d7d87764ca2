"""SQL conditions that several nouns ask for: who may read a model, and which jobs may go on."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, or_, select

from suture_service.hub import utc_now
from suture_service.states import ACTIVE_JOBS, ACTIVE_TASKS, KEPT, JobState, TaskState
from suture_service.tables import Job, Model, ModelShare, Task


def may_read(party_id: int) -> ColumnElement[bool]:
    """The condition under which a party may read a model: it owns it, all may, or it is shared with it."""
    shared = exists().where(ModelShare.model_id == Model.id, ModelShare.party_id == party_id)
    visible = or_(Model.party_id == party_id, Model.visibility == "all", shared)
    return and_(Model.deleted_at.is_(None), visible)


def deleted_as(name: str) -> ColumnElement[bool]:
    """The condition under which a model was deleted while it had this name."""
    return and_(Model.deleted_at.is_not(None), Model.name.startswith(f"{name}~", autoescape=True))


def may_go_on() -> ColumnElement[bool]:
    """The condition under which a job may still need its models and what its tasks left.

    It is active, a late answer is waited for, or it failed and may be tried again.
    """
    awaited = Job.id.in_(select(Task.job_id).where(Task.state.in_({*ACTIVE_TASKS, TaskState.LATE})))
    again = and_(Job.state == JobState.FAILED, Job.finished_at > utc_now() - KEPT)
    return or_(Job.state.in_(ACTIVE_JOBS), awaited, again)
