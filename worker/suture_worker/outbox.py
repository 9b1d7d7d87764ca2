"""The one gate through which anything leaves a site.

What a child wrote is checked as strictly as what comes from outside: a document must have exactly its schema's fields
and name only what the hub itself named in the task, numbers are rounded, results from too few samples are refused,
errors are a code and a correlation id. What passes is written to the egress log, durably, before it can be sent: only
a `Cleared` message can be handed to the hub, and only this module makes one.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from suture_stitching.compatibility import describe_ensemble
from suture_stitching.documents import CandidateId, CandidateSet, Evaluation, Report
from suture_stitching.errors import SutureError
from suture_stitching.portable.format import check_against, check_file
from suture_stitching.report.build import build
from suture_stitching.select import choose
from suture_worker.egress import EgressLog
from suture_worker.files import sha256_of
from suture_worker.folder import DOCUMENT, Code, CorrelationId, Progress, TaskFolder
from suture_worker.lease import CANDIDATES, STITCHES, Claim, ComposeSpec, EvaluateSpec, Task
from suture_worker.policy import TOO_FEW
from suture_worker.tensors import check_stitches

MODEL, METADATA, REPORT = "model.safetensors", "suture.json", "report.json"
DECIMALS = 4
MAX_DOCUMENT = 16 * 2**20
#: Everything a site says about what it is doing; any other word a child writes is replaced.
STEPS = frozenset({"fetch", "load", "match", "solve", "gate", "double", "refine", "fit", "evaluate", "compose"})
#: Numbers of a candidate that are part of the model, not measured.
_EXACT = frozenset({"alpha", "near", "far"})


@dataclass(frozen=True)
class Cleared:
    """A message that passed the gate and is in the egress log; `content` is exactly what leaves."""

    claim: Claim
    kind: Literal["progress", "result", "fail", "decline", "file"]
    content: bytes | Path
    sha256: str
    name: str | None = None


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _FitDocument(_Closed):
    n: Annotated[int, Field(ge=0)]


class _ComposeDocument(_Closed):
    chosen: CandidateId


class _Failure(_Closed):
    code: Code
    correlation_id: CorrelationId
    retryable: bool


class _Decline(_Closed):
    code: Code


_Document = TypeVar("_Document", bound=BaseModel)


class Outbox:
    """Checks, notes and hands out what may leave. `min_samples` is the site's own minimum."""

    def __init__(self, folder: Path, *, min_samples: int) -> None:
        self._log = EgressLog(folder)
        self._min_samples = min_samples

    def close(self) -> None:
        """Close the egress log."""
        self._log.close()

    # Messages

    def progress(self, claim: Claim, progress: Progress) -> Cleared:
        """Clear a progress message: a word this site may say and two numbers."""
        step = progress.step if progress.step in STEPS else "working"
        body: dict[str, Any] = {"step": step, "done": progress.done, "total": progress.total}
        if progress.seconds_left is not None:
            body["seconds_left"] = round(progress.seconds_left, 1)
        return self._message(claim, "progress", body)

    def failure(self, claim: Claim, code: str, correlation_id: str, *, retryable: bool) -> Cleared:
        """Clear an error: its code and where the site's log tells more, never its text."""
        return self._message(
            claim,
            "fail",
            _checked(_Failure, {"code": code, "correlation_id": correlation_id, "retryable": retryable}).model_dump(),
        )

    def decline(self, claim: Claim, code: str) -> Cleared:
        """Clear a refusal by the site's policy."""
        return self._message(claim, "decline", _checked(_Decline, {"code": code}).model_dump())

    def _message(self, claim: Claim, kind: Literal["progress", "fail", "decline"], body: dict[str, Any]) -> Cleared:
        content = _json({"fence": claim.fence, **body})
        self._log.small(claim.task, kind, content)
        return Cleared(claim, kind, content, hashlib.sha256(content).hexdigest())

    # Results

    def result(self, task: Task, folder: TaskFolder) -> list[Cleared]:
        """Clear all that a finished task sends, files first and its document last; all of it or, raising, nothing.

        Raises `SutureError` `outbox.refused` for anything that is not in order, and `policy.too_few_samples`.
        """
        if isinstance(task.spec, EvaluateSpec):
            named: dict[str, bytes | Path] = {}
            document = self._evaluation(task.spec, folder)
        elif isinstance(task.spec, ComposeSpec):
            named, document = self._composition(task, task.spec, folder)
        else:
            named, document = self._fit(task, folder)
        cleared = [self._file(task, name, content) for name, content in named.items()]
        body = _json({"fence": task.fence, "document": document})
        self._log.document(task.id, "result", None, body)
        return [*cleared, Cleared(task.claim, "result", body, hashlib.sha256(body).hexdigest())]

    def _file(self, task: Task, name: str, content: bytes | Path) -> Cleared:
        if isinstance(content, bytes):
            self._log.document(task.id, "file", name, content)
            digest = hashlib.sha256(content).hexdigest()
        else:
            digest = sha256_of(content)
            self._log.file(task.id, name, digest, content.stat().st_size)
        return Cleared(task.claim, "file", content, digest, name)

    def _fit(self, task: Task, folder: TaskFolder) -> tuple[dict[str, bytes | Path], Any]:
        document = _read(_FitDocument, folder.results / DOCUMENT)
        candidates = _read(CandidateSet, folder.results / CANDIDATES)
        self._enough([document.n, candidates.n])
        _members_match(task, candidates)
        _expect(set(candidates.labels or ()) <= _labels(task), "candidates.labels", "names labels that no member has")
        check_stitches(_regular(folder.results / STITCHES), candidates)
        fitted: dict[str, bytes | Path] = {
            CANDIDATES: _json(_rounded(_dump(candidates))),
            STITCHES: folder.results / STITCHES,
        }
        return fitted, document.model_dump()

    def _evaluation(self, spec: EvaluateSpec, folder: TaskFolder) -> Any:
        evaluation = _read(Evaluation, folder.results / DOCUMENT)
        self._enough(scores.n for scores in evaluation.splits.values())
        _expect(bool(evaluation.splits), "evaluation.splits", "is empty")
        _expect(evaluation.own == spec.own, "evaluation.own", "is not the member the task named")
        known = {candidate.id for candidate in _read(CandidateSet, folder.candidates / CANDIDATES).candidates}
        for split, scores in evaluation.splits.items():
            _expect(scores.scores.keys() == known, f"evaluation.splits.{split}", "does not measure every candidate")
        return _rounded(_dump(evaluation))

    def _composition(self, task: Task, spec: ComposeSpec, folder: TaskFolder) -> tuple[dict[str, bytes | Path], Any]:
        # Choice, report and metadata follow from what the hub sent; made here, they can hold nothing from a child.
        document = _read(_ComposeDocument, folder.results / DOCUMENT)
        candidates = _read(CandidateSet, folder.candidates / CANDIDATES)
        _members_match(task, candidates)
        choice = choose(candidates, spec.evaluations, requester=task.job.requester)
        _expect(document.chosen == choice.chosen, "document.chosen", "is not the candidate to choose")
        made = build(
            candidates,
            spec.evaluations,
            choice,
            requester=task.job.requester,
            parties_of_members=[member.party for member in spec.members],
            job=task.job.id,
            missing=spec.missing,
        )
        report = Report.model_validate(_rounded(_dump(made)))
        metadata = describe_ensemble([member.metadata for member in spec.members], candidates, report)
        model = _regular(folder.results / MODEL)
        check_against(check_file(model), metadata)
        named: dict[str, bytes | Path] = {
            MODEL: model,
            METADATA: metadata.to_json().encode(),
            REPORT: _json(_dump(report)),
        }
        return named, document.model_dump()

    def _enough(self, samples: Iterable[int]) -> None:
        if any(n < self._min_samples for n in samples):
            raise SutureError(TOO_FEW, "the result comes from too few samples to leave this site", where="outbox")


def _labels(task: Task) -> set[str]:
    return {label for member in task.spec.members for label in member.metadata.labels or ()}


def _members_match(task: Task, candidates: CandidateSet) -> None:
    refs = tuple(member.ref for member in task.spec.members)
    _expect(candidates.members == refs, "candidates.members", "are not the members of the task")


def _expect(condition: bool, where: str, problem: str) -> None:
    if not condition:
        raise SutureError("outbox.refused", problem, where=where, hint="report this: a child wrote what it may not")


def _checked(schema: type[_Document], content: Mapping[str, Any]) -> _Document:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _refused(schema.__name__, error) from None


def _read(schema: type[_Document], path: Path) -> _Document:
    try:
        return schema.model_validate_json(_content(path))
    except ValidationError as error:
        raise _refused(path.name, error) from None


def _refused(where: str, error: ValidationError) -> SutureError:
    fields = ", ".join(".".join(str(part) for part in detail["loc"]) for detail in error.errors()[:5])
    return SutureError("outbox.refused", f"not in order: {fields}", where=where)


def _regular(path: Path) -> Path:
    """Return `path` if a child left a plain file there, not a link to something else."""
    try:
        plain = stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        plain = False
    _expect(plain, path.name, "is missing")
    return path


def _content(path: Path) -> bytes:
    with os.fdopen(os.open(_regular(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        content = file.read(MAX_DOCUMENT + 1)
    _expect(len(content) <= MAX_DOCUMENT, path.name, "is too large")
    return content


def _dump(document: BaseModel) -> Any:
    return document.model_dump(mode="json", by_alias=True, exclude_none=True)


def _rounded(content: Any, *, key: str = "") -> Any:
    """Round every measured number: the last digits of a metric tell single samples apart."""
    if isinstance(content, float):
        return content if key in _EXACT else round(content, DECIMALS)
    if isinstance(content, dict):
        return {name: _rounded(value, key=name) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value, key=key) for value in content]
    return content


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()
