"""All SQL about tasks, as sites use them. A site sees its party's tasks only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session, joinedload, selectinload

from suture_service.states import UNDISCLOSED, JobState, TaskState
from suture_service.tables import Job, Task, TaskFile


def open_tasks(session: Session, party_id: int, limit: int = 8) -> Sequence[Task]:
    """Return a party's open tasks, oldest first, also those that are late but still wanted."""
    statement = (
        select(Task)
        .join(Task.job)
        .where(
            Task.party_id == party_id,
            or_(
                Task.state == TaskState.OPEN,
                and_(Task.state == TaskState.LATE, Job.state == JobState.PARTIAL),
            ),
            or_(Task.reason.is_(None), Task.reason != UNDISCLOSED),
        )
        .order_by(Task.created_at, Task.id)
        .limit(limit)
    )
    return session.scalars(statement).all()


def find_task(session: Session, party_id: int, task_id: str) -> Task | None:
    """Return a party's task with its files and its job's state."""
    statement = (
        select(Task)
        .where(Task.id == task_id, Task.party_id == party_id)
        .options(joinedload(Task.job).joinedload(Job.requester), joinedload(Task.party), selectinload(Task.files))
    )
    return session.scalars(statement).one_or_none()


def renew(session: Session, task_id: str, fence: int, until: datetime) -> bool:
    """Renew a lease if `fence` is still the present one; return whether it was."""
    statement = (
        update(Task)
        .where(Task.id == task_id, Task.fence == fence, Task.state == TaskState.LEASED)
        .values(lease_expires_at=until)
        .returning(Task.id)
    )
    return session.scalars(statement).one_or_none() is not None


def put_file(session: Session, task: Task, name: str, *, fence: int, size: int, sha256: str) -> None:
    """Write down a file of a task, in place of one of the same name."""
    session.merge(TaskFile(task_id=task.id, name=name, fence=fence, size=size, sha256=sha256))


def waiting(session: Session, now: datetime) -> dict[str, tuple[int, float]]:
    """Return by kind how many tasks no site has leased yet, and for how many seconds the oldest of them has waited."""
    statement = select(Task.kind, func.count(), func.min(Task.created_at)).where(Task.state == TaskState.OPEN)
    rows = session.execute(statement.group_by(Task.kind))
    return {kind: (count, max(0.0, (now - oldest).total_seconds())) for kind, count, oldest in rows}
