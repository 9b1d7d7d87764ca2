"""The site's account: how many evaluations and contributions each party has had with each dataset this month.

    {"time": "...", "task": "...", "digest": "...", "party": "south", "dataset": "frames", "action": "evaluate"}

An entry is durable before the work begins, and an evaluation has one entry however often it is attempted: its digest is
that of who asked for what. One that comes again with other content is another evaluation, whatever id the hub gives it.
A contribution has an entry for each lease: its noise is drawn anew, and what is told twice is protected less. What a
fit or an evaluation with noise spends of its job's account is entered before its result leaves, once for one result:

    {..., "action": "fit", "job": "...", "epsilon": 8, "delta": 1e-5, "share": 0.75, "told": "<sha256 of the result>"}
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Name, Sha256
from suture_worker.folder import Terms
from suture_worker.journal import Journal, whole_lines
from suture_worker.leased_task import Action, Identifier, LeasedTask


class LedgerEntry(BaseModel):
    """An evaluation or contribution that was begun; or, with `told`, what a result has spent of its job's account."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    time: AwareDatetime
    task: Identifier
    digest: Sha256
    party: Name
    dataset: Annotated[str, StringConstraints(max_length=200)]
    action: Action = "evaluate"
    #: With noise: what it has spent, of a fit or an evaluation the part `share` of the job's account.
    epsilon: float | None = None
    delta: float | None = None
    job: Identifier | None = None
    share: float | None = None
    told: Sha256 | None = None

    @property
    def counts(self) -> bool:
        """Whether it is one of so many in a month: of a fit its result with noise, else what was begun."""
        return (self.told is not None) == (self.action == "fit")


def spent_by(task: LeasedTask) -> str:
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

        Of fits those with noise count; the entry with the digest `apart_from` does not. Raises `SutureError`
        `ledger.damaged`.
        """
        month = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m")
        return sum(
            entry.party == party
            and entry.dataset == dataset
            and entry.action == action
            and entry.time.astimezone(UTC).strftime("%Y-%m") == month
            and entry.digest != apart_from
            and entry.counts
            for entry in self.entries()
        )

    def charge(self, task: LeasedTask, dataset: str, terms: Terms | None = None) -> None:
        """Enter the task, once, a contribution with what it spends; durable on return."""
        digest = spent_by(task)
        if any(entry.digest == digest and entry.told is None for entry in self.entries()):
            return
        entry = LedgerEntry(
            time=datetime.now(UTC),
            task=task.id,
            digest=digest,
            party=task.job.requester,
            dataset=dataset,
            action="contribute" if task.action == "contribute" else "evaluate",
            epsilon=terms.epsilon if terms is not None else None,
            delta=terms.delta if terms is not None else None,
        )
        self._append(entry)

    def spend(self, task: LeasedTask, dataset: str, terms: Terms, result_digest: str) -> None:
        """Enter what the result with the digest `result_digest` spends of its job's account; durable on return.

        Raises `SutureError` `ledger.spent` where the account does not hold so much any more: another result of the
        same step would tell of the same patients with other noise.
        """
        spent = [
            entry
            for entry in self.entries()
            if (entry.job, entry.dataset, entry.epsilon, entry.delta)
            == (task.job.id, dataset, terms.epsilon, terms.delta)
        ]
        if any((entry.told, entry.action) == (result_digest, task.action) for entry in spent):
            return
        if sum(entry.share or 0.0 for entry in spent) + terms.share > 1 + 1e-9:
            raise SutureError("ledger.spent", "the job's account of noise is spent", where=task.id)
        self._append(
            LedgerEntry(
                time=datetime.now(UTC),
                task=task.id,
                digest=task.digest,
                party=task.job.requester,
                dataset=dataset,
                action=task.action,
                epsilon=terms.epsilon,
                delta=terms.delta,
                job=task.job.id,
                share=terms.share,
                told=result_digest,
            )
        )

    def _append(self, entry: LedgerEntry) -> None:
        journal = Journal(self.path)
        try:
            journal.append(entry.model_dump_json(exclude_none=True).encode())
        finally:
            journal.close()

    def entries(self) -> list[LedgerEntry]:
        """Return all entries, oldest first."""
        entries = []
        for number, line in enumerate(whole_lines(self.path), start=1):
            try:
                entries.append(LedgerEntry.model_validate_json(line))
            except ValidationError:
                raise SutureError(
                    "ledger.damaged",
                    f"line {number} cannot be read, so nobody knows what was spent",
                    where=str(self.path),
                    hint="restore the file from a backup; until then nothing with a budget is evaluated",
                ) from None
        return entries
