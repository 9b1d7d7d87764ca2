"""The site's account of evaluations: how many each party has had with each dataset this month.

    {"time": "...", "task": "...", "digest": "<of who asked for what>", "party": "south", "dataset": "frames"}

An entry is durable before the work begins, and a task has one entry however often it is attempted. A task that comes
again with other content is another evaluation, whatever id the hub gives it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from suture_stitching.errors import SutureError
from suture_stitching.portable.metadata import Name, Sha256
from suture_worker.journal import Journal, whole_lines
from suture_worker.lease import Identifier, Task


class Entry(BaseModel):
    """One evaluation that was begun."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: AwareDatetime
    task: Identifier
    digest: Sha256
    party: Name
    dataset: Annotated[str, StringConstraints(max_length=200)]


class Ledger:
    """The account in `path`. Reading it needs no open file: the command line may look while the agent writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def used(self, party: str, dataset: str, *, now: datetime | None = None, apart_from: str | None = None) -> int:
        """Return how many evaluations the party has had with the dataset in this calendar month (UTC).

        That of the task with the digest `apart_from` is not counted. Raises `SutureError` `ledger.damaged`.
        """
        month = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m")
        return sum(
            entry.party == party
            and entry.dataset == dataset
            and entry.time.astimezone(UTC).strftime("%Y-%m") == month
            and entry.digest != apart_from
            for entry in self.entries()
        )

    def charge(self, task: Task, dataset: str) -> None:
        """Enter the task, once; durable on return."""
        if any(entry.digest == task.digest for entry in self.entries()):
            return
        entry = Entry(
            time=datetime.now(UTC), task=task.id, digest=task.digest, party=task.job.requester, dataset=dataset
        )
        journal = Journal(self.path)
        try:
            journal.append(entry.model_dump_json().encode())
        finally:
            journal.close()

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first."""
        found = []
        for number, line in enumerate(whole_lines(self.path), start=1):
            try:
                found.append(Entry.model_validate_json(line))
            except ValidationError:
                raise SutureError(
                    "ledger.damaged",
                    f"line {number} cannot be read, so nobody knows what was spent",
                    where=str(self.path),
                    hint="restore the file from a backup; until then nothing with a budget is evaluated",
                ) from None
        return found
