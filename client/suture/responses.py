"""What the hub answers, checked: a field that is missing or of another kind is an error, an unknown one is ignored."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from suture.errors import HubError
from suture_contract.documents import Interval, Report
from suture_contract.errors import SutureError
from suture_contract.files import decoded
from suture_contract.kinds import Kind
from suture_contract.model.metadata import InputSpec, MemberRef, ModelMetadata, Name, Repo, Sha256
from suture_contract.model.metadata import Revision as RevisionId
from suture_contract.report.rows import complete

JobState = Literal[
    "queued",
    "matching",
    "contributing",
    "fitting",
    "evaluating",
    "composing",
    "complete",
    "partial",
    "failed",
    "cancelled",
]
ENDED: frozenset[JobState] = frozenset({"complete", "partial", "failed", "cancelled"})


def _stays_inside(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part) > 255 for part in parts) or not path.isprintable() or "\\" in path:
        raise ValueError("not a path within a folder")
    return path


#: A file's path in its repository. It becomes one in a folder here, so it must not lead anywhere else.
FileName = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_stays_inside)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def of(cls, document: Any, where: str) -> Self:
        """Check a document; raises `HubError` `hub.answer` naming the field that is not as agreed."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "(whole document)"
            raise HubError(
                "hub.answer",
                f"the hub's answer is not as agreed: {field}: {first['msg']}",
                where=where,
                hint="compare the versions of the hub and of this client",
            ) from None

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class AccessRequest(_Answer):
    """A party's request for the files of a gated model, and what its owner said."""

    model: Repo
    party: Name
    state: Literal["pending", "accepted", "refused"]
    reason: str
    answer: str
    requested_at: datetime
    decided_at: datetime | None = None
    expires_at: datetime | None = None


class File(_Answer):
    """One file of a revision."""

    name: FileName
    size: int
    sha256: Sha256


_FLAGGED = {"withdrawn": "was withdrawn", "key_revoked": "is signed with a revoked key", "purged": "was purged"}


class Flag(_Answer):
    """Why a revision should not be used: it, or one it was made of, was withdrawn or purged, or its key revoked."""

    kind: str
    repo: Repo | None = None
    revision: RevisionId | None = None
    reason: str = ""

    def __str__(self) -> str:
        what = self.repo or "a model that is not shared with you"
        return f"{what} {_FLAGGED.get(self.kind, self.kind)}" + (f": {self.reason}" if self.reason else "")


class Revision(_Answer):
    """An immutable commit of a model; its id is computed from its files' digests, and checked here."""

    id: RevisionId
    repo: Repo
    created_at: datetime
    metadata: ModelMetadata
    files: tuple[File, ...]
    job: str | None = None
    signed_by: str | None = None
    flags: tuple[Flag, ...] = ()

    @model_validator(mode="after")
    def _id_follows_from_files(self) -> Self:
        if revision_id({file.name: file.sha256 for file in self.files}) != self.id:
            raise ValueError("the id does not follow from the files' digests")
        if not any(file.name == "model.safetensors" for file in self.files):
            raise ValueError("there is no model.safetensors")
        return self

    def file(self, name: str) -> File | None:
        """Return the entry of one file, or None when the revision does not have it."""
        return next((file for file in self.files if file.name == name), None)

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        return {
            "repo": self.repo,
            "revision": self.id,
            "created_at": self.created_at,
            "bytes": sum(file.size for file in self.files),
            "job": self.job,
            "signed_by": self.signed_by,
            "flags": "; ".join(map(str, self.flags)),
        }

    @property
    def model_file(self) -> File:
        """The entry of `model.safetensors`."""
        return next(file for file in self.files if file.name == "model.safetensors")


class TokenInfo(_Answer):
    """A token of a party, or of its site, without the secret."""

    id: str
    name: str | None = None
    site: str | None = None
    roles: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class NewToken(_Answer):
    """A token that was made: the secret is told this once. Printed, it is not shown."""

    id: str
    token: str = Field(repr=False)


class SiteOf(_Answer):
    """A site of a party, and whether it has asked for work lately."""

    name: Name
    online: bool
    suspended: bool = False
    #: When it last asked for work, and of which version it is; None where the hub does not tell you, or does not know.
    last_seen_at: datetime | None = None
    version: str | None = None


class PartyInfo(_Answer):
    """An organisation at the hub, with its sites."""

    name: Name
    created_at: datetime
    suspended: bool = False
    sites: tuple[SiteOf, ...] = ()

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        return {
            "party": self.name,
            "sites": ", ".join(site.name for site in self.sites),
            "online": ", ".join(site.name for site in self.sites if site.online),
            "suspended": self.suspended,
            "created_at": self.created_at,
        }


class SiteDataset(_Answer):
    """A dataset that one of your sites has told the hub of: what `Hub.stitch` may name."""

    site: Name
    name: Name


class RevisionName(_Answer):
    """A revision of a model."""

    repo: Repo
    revision: RevisionId


class Purged(_Answer):
    """What was taken away for good, or would be: `done` says whether the hub's store no longer holds it.

    With `versions_kept`, the hub's operator has old versions to remove besides.
    `descendants` were made of these revisions, and are flagged; `jobs` needed them, and end.
    """

    id: str | None = None
    repo: Repo
    done: bool
    revisions: tuple[RevisionName, ...]
    digests: tuple[Sha256, ...]
    bytes: int
    descendants: tuple[RevisionName, ...] = ()
    jobs: tuple[str, ...] = ()
    versions_kept: bool = False


class Model(_Answer):
    """A repository `party/name` and its newest revision."""

    id: Repo
    visibility: Literal["private", "all"]
    shared_with: tuple[Name, ...] = ()
    revision: RevisionId
    metadata: ModelMetadata
    flags: tuple[Flag, ...] = ()
    created_at: datetime
    updated_at: datetime

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        metadata = self.metadata
        return {
            "model": self.id,
            "task": metadata.task,
            "labels": ", ".join(metadata.labels or ()),
            "input": "; ".join(_input_words(spec) for spec in metadata.inputs.values()),
            "license": metadata.license,
            "visibility": self.visibility,
            "shared_with": ", ".join(self.shared_with),
            "revision": self.revision,
            "updated_at": self.updated_at,
            "flags": "; ".join(map(str, self.flags)),
        }


class Key(_Answer):
    """A party's public key, as the hub has it."""

    fingerprint: Sha256
    party: Name
    name: str
    public_key: str
    created_at: datetime
    revoked_at: datetime | None = None
    revoked_reason: str | None = None


class TaskProgress(_Answer):
    """How far a site says it is."""

    step: str
    done: int
    total: int
    seconds_left: float | None = None


class Wait(_Answer):
    """Why a task is not worked on: its site is away since then (or never came), has other work, or asks a person."""

    why: str
    since: datetime | None = None

    def __str__(self) -> str:
        if self.why == "site_offline":
            return "site not seen yet" if self.since is None else f"site offline since {self.since:%Y-%m-%d %H:%M} UTC"
        return {
            "queued": "queued behind other work of the site",
            "approval": "waits for approval there (suture site inbox list)",
            "release": "waits for release there (suture site outbox list)",
        }.get(self.why, self.why)


class TaskStatus(_Answer):
    """One site's part of a job."""

    id: str
    kind: Kind
    party: str
    state: str
    attempt: int = 0
    progress: TaskProgress | None = None
    reason: str | None = None
    waits: Wait | None = None


class Result(_Answer):
    """A revision that a job published; `version` is its report's."""

    repo: Repo
    revision: RevisionId
    version: int = 1
    created_at: datetime | None = None


class Compared(_Answer):
    """What one report says of its chosen model at one party, to be put beside others."""

    repo: Repo
    party: Name
    verdict: str
    metric: str
    n: int
    rows: dict[str, Interval]

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        chosen, own, plain = (self.rows.get(name) for name in ("chosen", "own", "ensemble"))
        return {
            "model": self.repo,
            "party": self.party,
            "metric": self.metric,
            "chosen": None if chosen is None else chosen.value,
            "low": None if chosen is None else chosen.low,
            "high": None if chosen is None else chosen.high,
            "own": None if own is None else own.value,
            "ensemble": None if plain is None else plain.value,
            "n": self.n,
            "verdict": self.verdict,
        }


class MissingParty(_Answer):
    """A party that was asked and is not in the report."""

    party: str
    reason: str


class JobError(_Answer):
    """Why a job failed, and where; `correlation_id` finds the details at that site: `suture site failure ID`."""

    code: str
    correlation_id: str | None = None
    party: str | None = None
    site: str | None = None
    task: str | None = None


class JobStatus(_Answer):
    """A job as it is now."""

    id: str
    requester: str
    state: JobState
    models: tuple[MemberRef, ...]
    dataset: str
    publish_as: str | None = None
    report_for: tuple[str, ...] = ()
    evaluate_at: tuple[str, ...]
    contribute_from: tuple[str, ...] = ()
    created_at: datetime
    finished_at: datetime | None = None
    tasks: tuple[TaskStatus, ...] = ()
    result: Result | None = None
    results: tuple[Result, ...] = ()
    missing: tuple[MissingParty, ...] = ()
    error: JobError | None = None

    @property
    def still_to_be_asked(self) -> tuple[str, ...]:
        """The parties that will be asked to evaluate once the fit is there."""
        if self.ended or any(task.kind == "evaluate" for task in self.tasks):
            return ()
        return self.evaluate_at

    def row(self) -> dict[str, Any]:
        """Return its cells by column, for a table."""
        return {
            "job": self.id,
            "state": self.state,
            "requester": self.requester,
            "models": ", ".join(member.repo for member in self.models),
            "dataset": self.dataset,
            "result": None if self.result is None else self.result.repo,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
        }

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.state in ENDED


class Event(_Answer):
    """Something that happened to a job."""

    seq: int
    at: datetime
    task: str | None = None
    kind: str
    data: dict[str, Any] = {}


def _input_words(spec: InputSpec) -> str:
    """Return what an input is, such as `image 3 x 224 x 224`."""
    sizes = [spec.num_channels, *("any" if size is None else size for size in spec.spatial_shape)]
    return f"{spec.format} {' x '.join(map(str, sizes))}"


def revision_id(digests: dict[str, str]) -> str:
    """Return the id of a revision: 40 hex digits of the SHA-256 over the sorted lines `name NUL sha256 LF`."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def read_report(text: str | bytes, *, where: str) -> Report:
    """Parse `report.json`, of an older version too; raises `SutureError` `report.invalid`."""
    try:
        return complete(Report.model_validate_json(decoded(text, where=where, code="report.encoding")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole document)"
        raise SutureError("report.invalid", f"{field}: {first['msg']}", where=where) from None
