"""The site's account: how many evaluations and contributions each party has had with each dataset this month.

    {"time": "...", "task": "...", "digest": "...", "party": "south", "dataset": "frames", "action": "evaluate"}

An entry is durable before the work begins, and an evaluation has one entry however often it is attempted: its digest is
that of who asked for what. One that comes again with other content is another evaluation, whatever id the hub gives it.
A contribution has an entry for each lease: its noise is drawn anew, and what is told twice is protected less.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Name, Sha256
from suture_worker.folder import Terms
from suture_worker.journal import Journal, whole_lines
from suture_worker.leased_task import Action, Identifier, Task


class Entry(BaseModel):
    """One evaluation or contribution that was begun."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: AwareDatetime
    task: Identifier
    digest: Sha256
    party: Name
    dataset: Annotated[str, StringConstraints(max_length=200)]
    action: Literal["evaluate", "contribute"] = "evaluate"
    #: Of a contribution with noise: what this one has spent.
    epsilon: float | None = None
    delta: float | None = None


def spent_by(task: Task) -> str:
    """Return under which digest a task is entered."""
    if task.action == "contribute":
        return hashlib.sha256(f"{task.digest} {task.fence}".encode()).hexdigest()
    return task.digest


class Ledger:
    """The account in `path`. Reading it needs no open file: the command line may look while the agent writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def used(
        self,
        party: str,
        dataset: str,
        *,
        action: Action = "evaluate",
        now: datetime | None = None,
        apart_from: str | None = None,
    ) -> int:
        """Return how often the party has had `action` with the dataset in this calendar month (UTC).

        The entry with the digest `apart_from` is not counted. Raises `SutureError` `ledger.damaged`.
        """
        month = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m")
        return sum(
            entry.party == party
            and entry.dataset == dataset
            and entry.action == action
            and entry.time.astimezone(UTC).strftime("%Y-%m") == month
            and entry.digest != apart_from
            for entry in self.entries()
        )

    def charge(self, task: Task, dataset: str, terms: Terms | None = None) -> None:
        """Enter the task, once, a contribution with what it spends; durable on return."""
        digest = spent_by(task)
        if any(entry.digest == digest for entry in self.entries()):
            return
        entry = Entry(
            time=datetime.now(UTC),
            task=task.id,
            digest=digest,
            party=task.job.requester,
            dataset=dataset,
            action="contribute" if task.action == "contribute" else "evaluate",
            epsilon=terms.epsilon if terms is not None else None,
            delta=terms.delta if terms is not None else None,
        )
        journal = Journal(self.path)
        try:
            journal.append(entry.model_dump_json(exclude_none=True).encode())
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
