"""Checking what a task's result consists of, before the hub takes it. No database, nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from suture_contract.card.yaml_block import split_card
from suture_contract.contributions import MOMENTS, ContributionDocument, Described, Matched
from suture_contract.documents import CandidateId, CandidateSet, Evaluation, Missing, Report, Revised
from suture_contract.model.metadata import Lineage, Member, Task
from suture_service.errors import HubError
from suture_service.models.publishing import check_model
from suture_service.models.service import CARD, METADATA, MODEL, REPORT, Checked
from suture_service.tables import Json

CANDIDATES, STITCHES = "candidates.json", "stitches.safetensors"
FILES = {
    "match": (),
    "contribute": (MOMENTS,),
    "fit": (CANDIDATES, STITCHES),
    "evaluate": (),
    "compose": (MODEL, METADATA, REPORT, CARD),
}
#: A site may leave them out.
OPTIONAL = {CARD}
MAX_STITCHES_HEADER = 16 * 2**20

Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True)
class FileContent:
    """A file that the site has put: `read(offset, length)` returns a part of its `size` bytes."""

    size: int
    sha256: str
    read: Callable[[int, int], bytes]


@dataclass(frozen=True)
class JobFacts:
    """What a result must agree with."""

    job: str
    requester: str
    task: Task
    members: tuple[Member, ...]


class FitResult(BaseModel):
    """The result of a `fit`: the number of samples it used."""

    model_config = ConfigDict(extra="forbid")
    n: int = Field(ge=0)


class ComposeResult(BaseModel):
    """The result of a `compose`: the chosen candidate."""

    model_config = ConfigDict(extra="forbid")
    chosen: CandidateId


def check_match(facts: JobFacts, document: dict[str, Any]) -> dict[str, Any]:
    """Return where the members of a job can be joined, as its requester's site says."""
    matched = _parse(Matched, document, "document")
    if len(matched.norms) != len(matched.placements):
        raise HubError("result.invalid", "there is one norm for each placement", where="document.norms")
    for placement in matched.placements:
        if any(int(index) >= len(facts.members) for index in placement):
            raise HubError("result.invalid", "a member is named that there is not", where="document.placements")
    return matched.model_dump(mode="json")


def check_contribution(
    facts: JobFacts, document: dict[str, Any], file: FileContent, matched: Matched
) -> dict[str, Any]:
    """Return the result of a contribution whose file says of itself that it is of this job's models and places."""
    result = _parse(ContributionDocument, document, "document")
    header = _header(file, MOMENTS, "moments")
    try:
        described = Described.model_validate_json(header["__metadata__"]["described"])
    except (KeyError, TypeError, ValidationError):
        raise HubError("moments.invalid", "the file does not say what it is", where=MOMENTS) from None
    _same("members", described.members, tuple(member.sha256 for member in facts.members), MOMENTS)
    _same("placements", described.placements, matched.placements, MOMENTS)
    _same("n", described.n, result.n, MOMENTS)
    noise = (described.privacy.epsilon, described.privacy.delta) if described.privacy is not None else (None, None)
    _same("privacy", noise, (result.epsilon, result.delta), MOMENTS)
    return result.model_dump(mode="json", exclude_none=True)


def check_fit(
    facts: JobFacts,
    document: dict[str, Any],
    files: Mapping[str, FileContent],
    contributions: Mapping[str, Json] | None = None,
) -> dict[str, Any]:
    """Return the result of a fit whose candidates and stitches fit the job and each other.

    `contributions` are what the parties said of theirs; only these may be named.
    """
    result = _parse(FitResult, document, "document")
    candidates = read_candidates(files[CANDIDATES])
    _same("members", candidates.members, facts.members, CANDIDATES)
    _same("task", candidates.task, facts.task, CANDIDATES)
    count = len(facts.members)
    for candidate in candidates.candidates:
        if any(index >= count for index in candidate.members):
            raise HubError("candidates.invalid", f"{candidate.id} names a member that there is not", where=CANDIDATES)
    if len({candidate.id for candidate in candidates.candidates}) != len(candidates.candidates):
        raise HubError("candidates.invalid", "two candidates have the same id", where=CANDIDATES)
    for one in candidates.contributions or ():
        said = one.model_dump(mode="json", exclude={"party"}, exclude_none=True)
        _same(f"contributions.{one.party}", said, (contributions or {}).get(one.party), CANDIDATES)
    _check_stitches(files[STITCHES], candidates)
    return result.model_dump()


def check_evaluation(document: dict[str, Any], own: int | None, candidates: FileContent) -> dict[str, Any]:
    """Return an evaluation that speaks of this job's candidates, all of them, and of nothing else."""
    evaluation = _parse(Evaluation, document, "document")
    _same("own", evaluation.own, own, "document")
    expected = {candidate.id for candidate in read_candidates(candidates).candidates}
    if "test" not in evaluation.splits:
        raise HubError("evaluation.invalid", "the test split is missing", where="document.splits")
    for name, split in evaluation.splits.items():
        compared = {id for score in split.scores.values() for id in score.against}
        if odd := (split.scores.keys() ^ expected) | (compared - expected):
            wrong = min(odd)
            raise HubError(
                "evaluation.mismatch",
                f"candidate {wrong} is {'not one of the job' if wrong not in expected else 'missing'}",
                where=f"document.splits.{name}.scores",
            )
    return evaluation.model_dump(mode="json", by_alias=True)


def evaluation_as_kept(document: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation in the form in which the hub keeps it."""
    return _parse(Evaluation, document, "document").model_dump(mode="json", by_alias=True)


def check_composed(
    facts: JobFacts,
    document: dict[str, Any],
    files: Mapping[str, FileContent],
    *,
    candidates: FileContent,
    evaluated: Sequence[str],
    missing: Sequence[Missing],
    version: int = 1,
    revised: Revised | None = None,
) -> tuple[dict[str, Any], Checked]:
    """Return the result and what the composed model's files say; lineage and report are those of the job."""
    result = _parse(ComposeResult, document, "document")
    if result.chosen not in {candidate.id for candidate in read_candidates(candidates).candidates}:
        raise HubError("report.mismatch", f"{result.chosen} is no candidate of this job", where="document.chosen")
    checked = check_model(files)
    stated = checked.metadata.lineage if checked.metadata is not None else None
    lineage = Lineage(job=facts.job, requester=facts.requester, members=facts.members, candidate=result.chosen)
    for field in ("job", "requester", "members", "candidate"):
        found = getattr(stated, field) if stated is not None else None
        _same(f"lineage.{field}", found, getattr(lineage, field), METADATA, "lineage.mismatch")
    report = _read_document(Report, files[REPORT], REPORT)
    _same("requester", report.requester, facts.requester, REPORT)
    _same("chosen", report.chosen, result.chosen, REPORT)
    _same("lineage.job", report.lineage.job, facts.job, REPORT)
    _same("lineage.members", report.lineage.members, facts.members, REPORT)
    _same("contributions", report.contributions, read_candidates(candidates).contributions, REPORT)
    _same("parties", sorted(report.parties), sorted(evaluated), REPORT)
    _same("missing", _by_party(report.missing), _by_party(missing), REPORT)
    _same("version", report.version, version, REPORT)
    _same("revised", report.revised, revised, REPORT)
    return result.model_dump(), replace(checked, card=_read_card(files[CARD]) if CARD in files else None)


def _read_card(file: FileContent) -> Json:
    try:
        return split_card(_read(file, file.size, CARD).decode(), where=CARD)[0]
    except UnicodeDecodeError:
        raise HubError("card.encoding", "not UTF-8 text", where=CARD) from None


def read_candidates(file: FileContent) -> CandidateSet:
    """Return the candidates in a file; raises `HubError` (`candidates.invalid`)."""
    return _read_document(CandidateSet, file, CANDIDATES)


def _check_stitches(file: FileContent, candidates: CandidateSet) -> None:
    """Check that the file is whole and holds the tensors that the candidates name."""
    header = _header(file, STITCHES, "stitches")
    named = {
        tensor
        for candidate in candidates.candidates
        for match in candidate.matches
        for stitch in match.stitches
        for tensor in (stitch.weight, stitch.bias)
    }
    if absent := named - header.keys():
        raise HubError("stitches.invalid", f"tensor {min(absent)} is missing", where=STITCHES)


def _header(file: FileContent, where: str, noun: str) -> dict[str, Any]:
    """Return the header of a whole safetensors file."""
    length = int.from_bytes(file.read(0, 8), "little")
    if file.size < 8 or length > min(MAX_STITCHES_HEADER, file.size - 8):
        raise HubError(f"{noun}.invalid", "this is no whole safetensors file", where=where, hint="upload it again")
    try:
        header = json.loads(file.read(8, length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise HubError(f"{noun}.invalid", "the header is not JSON", where=where, hint="upload it again")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__" and _has_end(entry)]
    if max(ends, default=0) != file.size - 8 - length:
        raise HubError(f"{noun}.truncated", "the file is cut short", where=where, hint="upload it again")
    return header


def _has_end(entry: object) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int)


def _by_party(missing: Sequence[Missing]) -> list[tuple[str, str]]:
    return sorted((entry.party, entry.reason) for entry in missing)


def _same(field: str, found: object, expected: object, where: str, code: str | None = None) -> None:
    if found != expected:
        noun = {REPORT: "report", CANDIDATES: "candidates", MOMENTS: "moments"}.get(where, "evaluation")
        raise HubError(
            code or f"{noun}.mismatch",
            f"{field} does not agree with the job",
            where=f"{where}: {field}",
            hint="take it from the task's spec",
        )


def _read_document(kind: type[Document], file: FileContent, where: str) -> Document:
    try:
        return kind.model_validate_json(_read(file, file.size, where))
    except ValidationError as error:
        raise _invalid(error, where) from None


def _parse(kind: type[Document], document: dict[str, Any], where: str) -> Document:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _invalid(error, where) from None


def _invalid(error: ValidationError, where: str) -> HubError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    noun = {REPORT: "report", CANDIDATES: "candidates"}.get(where, "result")
    return HubError(f"{noun}.invalid", f"{place or 'the document'}: {first['msg']}", where=where)


def _read(file: FileContent, limit: int, where: str) -> bytes:
    if file.size > limit:
        raise HubError("upload.too_large", f"larger than {limit} bytes", where=where)
    return file.read(0, file.size)
