"""What the hub must know of a kind of task; each module beside this one says it of one kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel
from sqlalchemy.orm import Session

from suture_contract.documents import Missing
from suture_contract.kinds import FILES
from suture_contract.model.metadata import MemberRef
from suture_service.kinds.schemas import SpecMember
from suture_service.models.service import Checked
from suture_service.settings import Settings
from suture_service.states import Rules, TaskState
from suture_service.storage.blobs import KeptFile
from suture_service.tables import Job, Json, Task, TaskFile


@dataclass(frozen=True)
class TaskContext:
    """A task with what its spec and its result must agree with; `missing` are the parties without an evaluation."""

    job: Job
    task: Task
    members: Sequence[SpecMember]
    missing: Sequence[Missing]

    @property
    def refs(self) -> tuple[MemberRef, ...]:
        """The job's members as documents name them."""
        return tuple(
            MemberRef(repo=member.repo, revision=member.revision, sha256=member.sha256) for member in self.members
        )


@dataclass(frozen=True)
class TaskResult:
    """What a site says is the result: a document, the files it has put, and those of the job that it started from."""

    document: dict[str, Any]
    files: Mapping[str, KeptFile]
    start: Mapping[str, KeptFile]


@dataclass(frozen=True)
class Accepted:
    """A result that is in order: the document as the hub keeps it, and a model to publish, if it brings one."""

    document: dict[str, Any]
    publish: Checked | None = None


class TaskKind(ABC):
    """One kind of task. `rules` are for the state machine, `spec_model` is what a site is told to do."""

    rules: ClassVar[Rules]
    spec_model: ClassVar[type[BaseModel]]
    #: Files that a site may leave out.
    optional: ClassVar[frozenset[str]] = frozenset()

    @property
    def files(self) -> tuple[str, ...]:
        """The files that belong to a result."""
        return FILES[self.rules.kind]

    def limit(self, name: str, settings: Settings) -> int:
        """Return how many bytes a file of the result may have."""
        return settings.max_document_bytes

    @abstractmethod
    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """Yield the parties that get such a task once the job is so far, each with the dataset that was named."""

    def start(self, session: Session, job_id: str) -> Mapping[str, TaskFile]:
        """Return the job's files that such a task starts from, by the names under which a site fetches them."""
        return {}

    @abstractmethod
    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> BaseModel:
        """Return what the site shall do."""

    @abstractmethod
    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """Check a result, outside of any transaction; raises `HubError`."""

    def as_kept(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document that was checked in the form in which the hub keeps it."""
        return document


def results_of(job: Job, kind: str) -> dict[str, Json]:
    """Return what the done tasks of a kind have brought, by party."""
    return {
        task.party.name: task.result
        for task in job.tasks
        if task.kind == kind and task.state == TaskState.DONE and task.result is not None
    }
