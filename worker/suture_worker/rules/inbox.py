"""What the operator is asked before it is done, and what was answered: `state/inbox`.

    <task>.request.json    who asks for what, with an estimate of what it takes     written by the agent
    <task>.decision.json   the operator's answer                                    the command line
    standing.json          answers that hold for a while for a party, action, dataset    the command line
    decisions.jsonl        every answer, with who gave it and why; never leaves the site

A decision names the digest of what was asked: if the hub changes the task, it is asked again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Name, Repo, Revision, Sha256
from suture_worker import files
from suture_worker.decisions import note_decision, operator
from suture_worker.leased_task import Action, Identifier, LeasedTask

#: What a requester may be told instead of nothing, if the operator says so; the code is `policy.<word>`.
Reply = Literal["no_agreement", "not_now", "unsuitable_models", "unsuitable_data"]
MAX_REMEMBERED_DAYS = 366

_ID: TypeAdapter[str] = TypeAdapter(Identifier)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AskedModel(_Closed):
    """A model that would be run; `size` in bytes."""

    repo: Repo
    revision: Revision
    sha256: Sha256
    party: Name
    size: int
    #: What site.toml calls the key that signed it; None where no key of this site did.
    signed_by: Annotated[str, StringConstraints(max_length=200)] | None = None

    def signature(self, own: str | None) -> str:
        """Say who signed it, at the site of the party `own`, whose models need no signature there."""
        if self.signed_by is not None:
            return f"signed with the key {self.signed_by}"
        return (
            "your own party's, which needs no signature here"
            if self.party == own
            else "signed with no key that is known here"
        )


class Estimate(_Closed):
    """What all models together take, from a dry run that allocates nothing.

    `flops_per_sample` in floating-point operations; `peak_bytes` of the largest, two samples at a time;
    `seconds_per_1000` samples, once through all models, at the speed of this machine's processor.
    """

    flops_per_sample: Annotated[int, Field(ge=0)]
    peak_bytes: Annotated[int, Field(ge=0)]
    seconds_per_1000: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    #: Of a contribution: features at each place, and how many numbers would leave.
    features: tuple[Annotated[int, Field(ge=1)], ...] = ()
    numbers: Annotated[int, Field(ge=1)] | None = None


class Request(_Closed):
    """Who asks for what, and what would leave."""

    task: Identifier
    digest: Sha256
    asked_at: AwareDatetime
    party: Name
    action: Action
    dataset: Name
    job: Identifier
    models: tuple[AskedModel, ...]
    #: Which of them are older than revisions that were seen here, in words.
    older: tuple[str, ...] = ()
    #: How many candidates an evaluation would measure.
    candidates: int | None = None
    options: dict[str, Any] = {}
    leaves: tuple[str, ...]
    estimate: Estimate | None = None


class InboxDecision(_Closed):
    """The operator's answer; `reason` stays here, `told` is what the requester may know."""

    digest: Sha256
    dataset: Name
    approved: bool
    by: Annotated[str, StringConstraints(max_length=200)]
    at: AwareDatetime
    reason: Annotated[str, StringConstraints(max_length=2000)] | None = None
    told: Reply | None = None


class Standing(_Closed):
    """An approval that holds until a moment for whatever this party asks to do with this dataset."""

    party: Name
    action: Action
    dataset: Name
    until: AwareDatetime
    by: str
    at: AwareDatetime


class _Standing(_Closed):
    rules: tuple[Standing, ...] = ()


class Inbox:
    """The requests and answers in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # The agent's part

    def ask(self, request: Request) -> None:
        """Put a question before the operator; an older one about the same task is replaced."""
        files.write(self._path(request.task, "request"), request.model_dump_json(indent=1))

    def answer(self, task: LeasedTask, dataset: str) -> InboxDecision | None:
        """Return what was decided about exactly this task, by itself or by a standing approval; None so far.

        Where models are older than what was seen here, a person looks at it by itself.
        """
        decision = self._decision(task.id)
        if decision is not None and (decision.digest, decision.dataset) == (task.digest, dataset):
            return decision
        if self.asked(task, dataset) and self.request(task.id).older:
            return None
        now = datetime.now(UTC)
        for rule in self.standing():
            if _key(rule) == (task.job.requester, task.action, dataset) and now < rule.until:
                # Kept: what was begun is not asked about again when the standing approval ends.
                decision = InboxDecision(digest=task.digest, dataset=dataset, approved=True, by=rule.by, at=rule.at)
                files.write(self._path(task.id, "decision"), decision.model_dump_json(indent=1))
                return decision
        return None

    def asked(self, task: LeasedTask, dataset: str) -> bool:
        """Whether the operator has exactly this question."""
        try:
            request = self.request(task.id)
            return (request.digest, request.dataset) == (task.digest, dataset)
        except SutureError:
            return False

    def close(self, task_id: str) -> None:
        """Forget a task that has ended."""
        for kind in ("request", "decision"):
            self._path(task_id, kind).unlink(missing_ok=True)

    # The operator's part

    def requests(self) -> list[Request]:
        """Return all that is asked, oldest first."""
        requests = files.still_there(
            self.folder.glob("*.request.json"), lambda path: self.request(path.name.removesuffix(".request.json"))
        )
        return sorted(requests, key=lambda request: (request.asked_at, request.task))

    def request(self, task_id: str) -> Request:
        """Return one question; raises `SutureError` `inbox.unknown`."""
        try:
            return Request.model_validate_json(self._path(task_id, "request").read_bytes())
        except (FileNotFoundError, ValidationError):
            hint = "`suture site inbox list` shows what is asked"
            raise SutureError("inbox.unknown", "nothing is asked about such a task", where=task_id, hint=hint) from None

    def decided(self, request: Request) -> InboxDecision | None:
        """Return the answer to this request, which the agent has not acted upon yet."""
        decision = self._decision(request.task)
        key = (request.digest, request.dataset)
        return decision if decision is not None and (decision.digest, decision.dataset) == key else None

    def decide(
        self,
        request: Request,
        *,
        approved: bool,
        reason: str | None = None,
        reply: Reply | None = None,
        remember_days: int | None = None,
    ) -> InboxDecision:
        """Write down the answer, with who gave it; the agent acts upon it soon. Raises `inbox.decided`."""
        if self.decided(request) is not None:
            raise SutureError("inbox.decided", "this was decided already", where=request.task)
        now = datetime.now(UTC)
        by = operator()
        decision = InboxDecision(
            digest=request.digest,
            dataset=request.dataset,
            approved=approved,
            by=by,
            at=now,
            reason=reason,
            told=reply,
        )
        entry = {"task": request.task, "party": request.party, "action": request.action, "dataset": request.dataset}
        note_decision(self.folder, {**entry, **decision.model_dump(mode="json"), "remember_days": remember_days})
        if approved and remember_days is not None:
            until = now + timedelta(days=remember_days)
            rule = Standing(
                party=request.party, action=request.action, dataset=request.dataset, until=until, by=by, at=now
            )
            self._keep([*(kept for kept in self.standing() if _key(kept) != _key(rule)), rule])
        files.write(self._path(request.task, "decision"), decision.model_dump_json(indent=1))
        return decision

    def standing(self) -> list[Standing]:
        """Return the standing approvals, those that have ended included; raises `SutureError` `inbox.damaged`."""
        path = self.folder / "standing.json"
        try:
            return list(_Standing.model_validate_json(path.read_bytes()).rules)
        except FileNotFoundError:
            return []
        except ValidationError:
            raise SutureError(
                "inbox.damaged", "it cannot be read", where=str(path), hint="delete it and approve again"
            ) from None

    def forget(self, party: str, action: str, dataset: str) -> None:
        """Withdraw a standing approval; raises `SutureError` `inbox.unknown` if there is none."""
        kept = [rule for rule in self.standing() if _key(rule) != (party, action, dataset)]
        if len(kept) == len(self.standing()):
            raise SutureError(
                "inbox.unknown", "there is no such standing approval", hint="`suture site inbox standing` shows all"
            )
        withdrawn = {"party": party, "action": action, "dataset": dataset, "forgotten": True, "by": operator()}
        note_decision(self.folder, withdrawn)
        self._keep(kept)

    def _keep(self, rules: list[Standing]) -> None:
        files.write(self.folder / "standing.json", _Standing(rules=tuple(rules)).model_dump_json(indent=1))

    def _decision(self, task_id: str) -> InboxDecision | None:
        try:
            return InboxDecision.model_validate_json(self._path(task_id, "decision").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _path(self, task_id: str, kind: Literal["request", "decision"] | str) -> Path:
        try:
            return self.folder / f"{_ID.validate_python(task_id)}.{kind}.json"
        except ValidationError:
            raise SutureError("inbox.unknown", "this is not the id of a task", where="task") from None


def _key(rule: Standing) -> tuple[str, str, str]:
    return rule.party, rule.action, rule.dataset
