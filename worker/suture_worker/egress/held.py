"""Results that wait until a person lets them out: `state/outbox/held/<task>`.

manifest.json    what would leave: name, size and SHA-256 of each part       written by the agent, last
0, 1, ...        the parts, byte for byte                                    agent
verdict.json     released or refused, by whom and why                        the command line

What was sent or refused is held no longer. `state/outbox/decisions.jsonl` keeps who decided it, why, and the digest of
each part; it never leaves the site.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from suture_contract.errors import SutureError
from suture_contract.files import sha256_of
from suture_contract.kinds import Kind
from suture_contract.model.metadata import Name, Sha256
from suture_worker import files
from suture_worker.decisions import note_decision, operator
from suture_worker.egress.release_check import Draft
from suture_worker.leased_task import Identifier, LeasedTask
from suture_worker.rules.inbox import Reply

_ID: TypeAdapter[str] = TypeAdapter(Identifier)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeldPart(_Closed):
    """One thing that would leave; the document that ends a task has no name."""

    kind: Literal["file", "result"]
    name: str | None
    sha256: Sha256
    size: int


class Manifest(_Closed):
    """What would leave for a task, under the lease that `fence` names."""

    task: Identifier
    digest: Sha256
    fence: int
    held_at: AwareDatetime
    action: Kind
    party: Name
    job: Identifier
    parts: tuple[HeldPart, ...]


class Verdict(_Closed):
    """What a person decided; `reason` stays here, `told` is what the requester may know."""

    fence: int
    released: bool
    by: str
    at: AwareDatetime
    reason: Annotated[str, StringConstraints(max_length=2000)] | None = None
    told: Reply | None = None


class Held:
    """The results held in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # The agent's part

    def keep(self, task: LeasedTask, drafts: Sequence[Draft]) -> None:
        """Hold what a task would send; an older lease's result is replaced."""
        self.drop(task.id)
        place = self._place(task.id)
        place.mkdir(mode=0o700, parents=True)
        for number, draft in enumerate(drafts):
            if isinstance(draft.content, bytes):
                files.write(place / str(number), draft.content)
            else:
                with (place / str(number)).open("xb") as target, draft.content.open("rb") as source:
                    shutil.copyfileobj(source, target)
                    target.flush()
                    os.fsync(target.fileno())
        manifest = Manifest(
            task=task.id,
            digest=task.digest,
            fence=task.fence,
            held_at=datetime.now(UTC),
            action=task.kind,
            party=task.job.requester,
            job=task.job.id,
            parts=_parts(drafts),
        )
        files.write(place / "manifest.json", manifest.model_dump_json(indent=1))

    def has(self, task: LeasedTask, drafts: Sequence[Draft]) -> bool:
        """Whether exactly this is held as the result of exactly this lease."""
        try:
            manifest = self.manifest(task.id)
        except SutureError:
            return False
        return (manifest.digest, manifest.fence, manifest.parts) == (task.digest, task.fence, _parts(drafts))

    def drafts(self, task: LeasedTask) -> list[Draft]:
        """Return what was held, checked byte for byte; raises `SutureError` `outbox.altered`."""
        manifest, place = self.manifest(task.id), self._place(task.id)
        drafts = []
        for number, part in enumerate(manifest.parts):
            path = place / str(number)
            if not path.is_file() or sha256_of(path) != part.sha256:
                raise SutureError("outbox.altered", "what is held was changed", where=str(path))
            document = part.name is None or part.name.endswith(".json")
            drafts.append(Draft(part.kind, part.name, path.read_bytes() if document else path, part.sha256, part.size))
        return drafts

    def drop(self, task_id: str) -> None:
        """Forget what is held for a task."""
        place = self._place(task_id)
        (place / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    # The operator's part

    def manifests(self) -> list[Manifest]:
        """Return all that is held, oldest first."""
        manifests = files.still_there(self.folder.glob("*/manifest.json"), lambda path: self.manifest(path.parent.name))
        return sorted(manifests, key=lambda manifest: (manifest.held_at, manifest.task))

    def manifest(self, task_id: str) -> Manifest:
        """Return what is held for a task; raises `SutureError` `outbox.unknown`."""
        try:
            return Manifest.model_validate_json((self._place(task_id) / "manifest.json").read_bytes())
        except (OSError, ValidationError):
            hint = "`suture site outbox list` shows what is held"
            raise SutureError("outbox.unknown", "nothing is held for such a task", where=task_id, hint=hint) from None

    def part(self, manifest: Manifest, number: int) -> Path:
        """Return where a part lies."""
        return self._place(manifest.task) / str(number)

    def verdict(self, task_id: str) -> Verdict | None:
        """Return what was decided about what is held, if anything."""
        try:
            verdict = Verdict.model_validate_json((self._place(task_id) / "verdict.json").read_bytes())
            return verdict if verdict.fence == self.manifest(task_id).fence else None
        except (OSError, ValidationError, SutureError):
            return None

    def decide(
        self, manifest: Manifest, *, released: bool, reason: str | None = None, reply: Reply | None = None
    ) -> Verdict:
        """Write down the verdict; the agent acts upon it soon. Raises `outbox.decided`."""
        if self.verdict(manifest.task) is not None:
            raise SutureError("outbox.decided", "this was decided already", where=manifest.task)
        verdict = Verdict(
            fence=manifest.fence, released=released, by=operator(), at=datetime.now(UTC), reason=reason, told=reply
        )
        asked = {"task": manifest.task, "party": manifest.party, "action": manifest.action, "job": manifest.job}
        parts = [{"name": part.name, "sha256": part.sha256} for part in manifest.parts]
        note_decision(self.folder.parent, {**asked, **verdict.model_dump(mode="json"), "parts": parts})
        files.write(self._place(manifest.task) / "verdict.json", verdict.model_dump_json(indent=1))
        return verdict

    def _place(self, task_id: str) -> Path:
        try:
            return self.folder / _ID.validate_python(task_id)
        except ValidationError:
            raise SutureError("outbox.unknown", "this is not the id of a task", where="task") from None


def _parts(drafts: Sequence[Draft]) -> tuple[HeldPart, ...]:
    return tuple(HeldPart(kind=draft.kind, name=draft.name, sha256=draft.sha256, size=draft.size) for draft in drafts)
