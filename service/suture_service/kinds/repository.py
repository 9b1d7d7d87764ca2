"""All SQL about what tasks of one kind have left for others."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from suture_service.states import TaskState
from suture_service.tables import Party, Task, TaskFile


def files_of(session: Session, job_id: str, kind: str) -> Sequence[tuple[str, TaskFile]]:
    """Return the files that a job's done tasks of a kind have left, each with its task's party, by the party's name."""
    statement = (
        select(Party.name, TaskFile)
        .join(Task, Task.id == TaskFile.task_id)
        .join(Party, Party.id == Task.party_id)
        .where(
            Task.job_id == job_id,
            Task.kind == kind,
            Task.state == TaskState.DONE,
            TaskFile.fence == Task.fence,
        )
        .order_by(Party.name)
    )
    return [(party, file) for party, file in session.execute(statement)]
