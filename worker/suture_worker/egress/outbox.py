"""The one way out of a site.

What passes the gate is written to the egress log, durably, before it can be sent: only a `Cleared` message can be
handed to the hub, and only this module makes one. A result that a person must release first is held meanwhile. Errors
are a code and a correlation id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from suture_contract.kinds import METADATA, MODEL, MOMENTS, REPORT
from suture_worker.config import SiteConfig
from suture_worker.egress.held import Held
from suture_worker.egress.log import EgressLog
from suture_worker.egress.release_check import Draft, ReleaseCheck, bounded, checked, to_json
from suture_worker.folder import Code, CorrelationId, TaskFolder, TaskProgress
from suture_worker.leased_task import Claim, LeasedTask
from suture_worker.rules.policy import UNDISCLOSED

#: Everything a site says about what it is doing, in this order; any other word a child writes is replaced.
STEPS = ("fetch", "load", "match", "solve", "stitch", "double", "refine", "compare", "fit", "evaluate", "compose")
#: Progress is told in this many parts at most, so that it says how far the work is and nothing else.
PARTS = 1000

Kind = Literal["progress", "result", "fail", "decline", "wait", "file", "datasets"]
#: What stands for the task in messages that are about none.
OF_THE_SITE = Claim("site", 0)


@dataclass(frozen=True)
class Cleared:
    """A message that passed the gate and is in the egress log; `content` is exactly what leaves."""

    claim: Claim
    kind: Kind
    content: bytes | Path
    sha256: str
    name: str | None = None


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Failure(_Closed):
    code: Code
    correlation_id: CorrelationId
    retryable: bool


class _Decline(_Closed):
    code: Code


class Outbox:
    """Checks, notes and hands out what may leave, within the site's own limits (see `PolicyConfig`)."""

    def __init__(
        self,
        folder: Path,
        *,
        min_samples: int,
        min_per_class: int = 11,
        decimals: int = 4,
        disclose_refusals: bool = True,
    ) -> None:
        self._log = EgressLog(folder)
        self._disclose_refusals = disclose_refusals
        self._gate = ReleaseCheck(min_samples=min_samples, min_per_class=min_per_class, decimals=decimals)
        self.held = Held(folder / "held")

    def use(self, config: SiteConfig) -> None:
        """Let out what these limits allow, from now on."""
        policy = config.policy
        self._disclose_refusals = policy.disclose_refusals
        self._gate = ReleaseCheck(
            min_samples=policy.min_samples,
            min_per_class=policy.min_per_class,
            decimals=policy.decimals,
            subgroups={name: dataset.subgroup_values for name, dataset in config.datasets.items()},
        )
        self._log.rules = config.version.sha256 if config.version is not None else None

    def close(self) -> None:
        """Close the egress log."""
        self._log.close()

    # Messages

    def progress(self, claim: Claim, progress: TaskProgress) -> Cleared:
        """Clear a progress message: a word this site may say and how far it is."""
        step = progress.step if progress.step in STEPS else "working"
        done, total = min(progress.done, progress.total), progress.total
        if step != "fetch" and total > PARTS:
            done, total = PARTS * done // total, PARTS
        body: dict[str, Any] = {"step": step, "done": done, "total": total}
        if progress.seconds_left is not None:
            body["seconds_left"] = bounded(min(progress.seconds_left, 1e9), 1)
        return self._message(claim, "progress", body)

    def failure(self, claim: Claim, code: str, correlation_id: str, *, retryable: bool) -> Cleared:
        """Clear an error: its code and where the site's log tells more, never its text."""
        content = {"code": code, "correlation_id": correlation_id, "retryable": retryable}
        return self._message(claim, "fail", checked(_Failure, content).model_dump())

    def decline(self, task: LeasedTask, code: str) -> Cleared:
        """Clear a refusal by the site's policy; of work on another's fit, only as much as the site discloses."""
        if task.action != "fit" and not self._disclose_refusals:
            code = UNDISCLOSED
        return self._message(task.claim, "decline", checked(_Decline, {"code": code}).model_dump())

    def waiting(self, claim: Claim, waits_for: Literal["approval", "release"]) -> Cleared:
        """Clear the word that a person at this site decides next."""
        return self._message(claim, "wait", {"waits_for": waits_for})

    def datasets(self, names: Sequence[str] | None) -> Cleared:
        """Clear the names of the datasets that the site's own party may fit on; None takes back what was told."""
        content = to_json({"datasets": None if names is None else list(names)})
        self._log.small(OF_THE_SITE.task, "datasets", content)
        return Cleared(OF_THE_SITE, "datasets", content, hashlib.sha256(content).hexdigest())

    def _message(self, claim: Claim, kind: Kind, body: dict[str, Any]) -> Cleared:
        content = to_json({"fence": claim.fence, **body})
        self._log.small(claim.task, kind, content, party=claim.party, job=claim.job)
        return Cleared(claim, kind, content, hashlib.sha256(content).hexdigest())

    # Results

    def result(self, task: LeasedTask, folder: TaskFolder) -> list[Cleared]:
        """Clear all that a finished task sends, files first and its document last; all of it or, raising, nothing.

        Raises `SutureError` `outbox.refused` for anything that is not in order, and `policy.too_few_samples`.
        """
        return self._clear(task, self._gate.check(task, folder))

    def hold(self, task: LeasedTask, folder: TaskFolder) -> None:
        """Check what a finished task would send, as `result` does, and hold it until a person decides.

        What is held already stays as it is, with what was decided about it, where it is the same.
        """
        drafts = self._gate.check(task, folder)
        if not self.held.has(task, drafts):
            self.held.keep(task, drafts)

    def released(self, task: LeasedTask) -> list[Cleared]:
        """Clear the very bytes that were held; raises `SutureError` `outbox.altered`."""
        return self._clear(task, self.held.drafts(task))

    def _clear(self, task: LeasedTask, drafts: Iterable[Draft]) -> list[Cleared]:
        cleared, asked = [], {"party": task.job.requester, "job": task.job.id}
        for draft in drafts:
            if isinstance(draft.content, bytes):
                self._log.document(task.id, draft.kind, draft.name, draft.content, **asked)
            elif draft.name == MOMENTS:
                # Sums over patients: the site keeps what it told, byte for byte.
                self._log.document(task.id, draft.kind, draft.name, draft.content.read_bytes(), **asked)
            else:
                assert draft.name is not None
                self._log.file(task.id, draft.name, draft.sha256, draft.size, **asked)
            cleared.append(Cleared(task.claim, draft.kind, draft.content, draft.sha256, draft.name))
        return cleared


__all__ = ["METADATA", "MODEL", "REPORT", "Cleared", "Outbox"]
