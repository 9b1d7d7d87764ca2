"""What parties asked for, and what sites do for it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from suture_service.database import Base
from suture_service.tables.columns import BLOB, ID, NAME, STATE, Json
from suture_service.tables.models import Revision
from suture_service.tables.parties import Party, Site


class Job(Base):
    """What a party asked for. Its row is the lock of everything below it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_requester_id_created_at", "requester_id", "created_at"),
        Index("ix_jobs_state_answer_by", "state", "answer_by"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    requester_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    created_by: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(STATE)
    dataset: Mapped[str] = mapped_column(NAME)
    publish_as: Mapped[str] = mapped_column(NAME)
    #: [{"party": name, "dataset": name or null}], as asked; the requester's own evaluation comes on top.
    evaluate_at: Mapped[list[Json]] = mapped_column(JSON)
    #: The same, of parties that are asked to contribute moments to the fit.
    contribute_from: Mapped[list[Json]] = mapped_column(JSON)
    evaluate_within: Mapped[int]
    options: Mapped[Json] = mapped_column(JSON)
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    #: When parties that have not answered become missing; set whenever they are asked.
    answer_by: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(96))
    error_correlation_id: Mapped[str | None] = mapped_column(String(64))
    last_seq: Mapped[int] = mapped_column(default=0)

    requester: Mapped[Party] = relationship()
    members: Mapped[list[JobMember]] = relationship(order_by="JobMember.position")
    tasks: Mapped[list[Task]] = relationship(back_populates="job", order_by="Task.position")


class JobMember(Base):
    """A model the job stitches, at an exact revision."""

    __tablename__ = "job_members"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision_id: Mapped[int] = mapped_column(ForeignKey("revisions.id"))

    revision: Mapped[Revision] = relationship()


class Task(Base):
    """Work that one site leases. Every write by a site must carry the present `fence`."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("job_id", "position"),
        Index("ix_tasks_party_id_state_created_at", "party_id", "state", "created_at"),
        Index("ix_tasks_state_lease_expires_at", "state", "lease_expires_at"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    position: Mapped[int]
    kind: Mapped[str] = mapped_column(STATE)
    party_id: Mapped[int] = mapped_column(ForeignKey("parties.id"))
    dataset: Mapped[str | None] = mapped_column(NAME)
    state: Mapped[str] = mapped_column(STATE)
    attempt: Mapped[int]
    fence: Mapped[int]
    site_id: Mapped[int | None] = mapped_column(ForeignKey("sites.id"))
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    progress: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))
    reason: Mapped[str | None] = mapped_column(String(96))
    correlation_id: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[Json | None] = mapped_column(JSON(none_as_null=True))

    job: Mapped[Job] = relationship(back_populates="tasks")
    party: Mapped[Party] = relationship()
    site: Mapped[Site | None] = relationship()
    files: Mapped[list[TaskFile]] = relationship(order_by="TaskFile.name")


class TaskFile(Base):
    """A file the leasing site has put; `fence` tells which lease put it."""

    __tablename__ = "task_files"

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    fence: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(BLOB)


class Event(Base):
    """What happened in a job, in order; written in the transaction in which it happened."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    task_id: Mapped[str | None] = mapped_column(ForeignKey("tasks.id"))
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[Json] = mapped_column(JSON)
