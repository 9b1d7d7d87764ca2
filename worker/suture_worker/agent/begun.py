"""Which revisions the jobs that began here work with: such a job goes on with them when newer ones have come."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from suture_contract.model.metadata import Repo, Revision
from suture_worker import files
from suture_worker.leased_task import Identifier, LeasedMember

#: Longer than a hub keeps a late task by default.
KEPT = timedelta(days=120)


class _Job(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    at: AwareDatetime
    revisions: dict[Repo, Revision]


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    jobs: dict[Identifier, _Job] = {}


class Begun:
    """The file at `path`, of the one agent of a site. Without it, or when it is damaged, no job has begun."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()

    def with_(self, job: str, member: LeasedMember) -> bool:
        """Whether a job has begun here with this revision of a model."""
        begun = self._read().jobs.get(job)
        return begun is not None and begun.revisions.get(member.repo) == member.revision

    def note(self, job: str, members: tuple[LeasedMember, ...]) -> None:
        """Remember that a job has begun with these; the first time counts."""
        with self._turn:
            now = datetime.now(UTC)
            kept = {name: begun for name, begun in self._read().jobs.items() if now - begun.at < KEPT}
            if job not in kept:
                kept[job] = _Job(at=now, revisions={member.repo: member.revision for member in members})
                files.write(self._path, _Content(jobs=kept).model_dump_json(indent=1))

    def _read(self) -> _Content:
        try:
            return _Content.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return _Content()
