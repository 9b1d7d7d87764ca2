"""The task a hub leases to this site, checked before anything acts on it: the hub may be wrong or broken into."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, StringConstraints, ValidationError, model_validator

from suture_contract.contributions import ContributionDocument, Norm, Places
from suture_contract.documents import ClinicalMetric, Evaluation, Missing, Revised
from suture_contract.errors import SutureError
from suture_contract.fit_options import FitOptions
from suture_contract.kinds import CANDIDATES, FILES, STITCHES, Kind
from suture_contract.model.metadata import MemberRef, ModelMetadata, Name, Repo, Revision, Sha256

if TYPE_CHECKING:
    from suture_worker.kinds.kind import TaskKind

#: What the rules of a site speak of; where members can be joined, and composing, belong to a fit.
Action = Literal["fit", "evaluate", "contribute"]
#: Ids become names of folders and parts of URLs.
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Size = Annotated[int, Field(ge=1, le=64 * 2**30)]


class Claim(NamedTuple):
    """A task, the fence that proves to the hub that its lease is ours, and who asks for it, in which job."""

    task: str
    fence: int
    party: str | None = None
    job: str | None = None


class _FromHub(BaseModel):
    # A newer hub may say more than this site knows: unknown fields are left aside, known ones are checked.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class LeasedMember(_FromHub):
    """A model to work with, as the hub describes it."""

    repo: Repo
    revision: Revision
    sha256: Sha256
    size: Size
    party: Name
    metadata: ModelMetadata

    @model_validator(mode="after")
    def _party_is_its_owner(self) -> LeasedMember:
        # Rules speak of parties, signatures of names: they must be of one.
        if self.repo.partition("/")[0] != self.party:
            raise ValueError("party: it is not the owner that the model's name says")
        return self

    @property
    def ref(self) -> MemberRef:
        """The member as documents name it."""
        return MemberRef(repo=self.repo, revision=self.revision, sha256=self.sha256)


class FileRef(_FromHub):
    """A file the hub keeps for this job."""

    sha256: Sha256
    size: Size


class CandidateFiles(_FromHub):
    """The two files of a fitted candidate set."""

    candidates: FileRef = Field(alias=CANDIDATES)
    stitches: FileRef = Field(alias=STITCHES)

    @property
    def files(self) -> dict[str, FileRef]:
        """Both, by name."""
        return {CANDIDATES: self.candidates, STITCHES: self.stitches}


Members = Annotated[tuple[LeasedMember, ...], Field(min_length=2, max_length=64)]


class TaskSpec(_FromHub):
    """What every kind of task has: models, and the dataset to work on where the job names one."""

    members: Members
    dataset: Annotated[str, Field(max_length=200)] | None = None


class MatchSpec(TaskSpec):
    """Find out, on a dataset of the requester's site, where a fit with these options would join the members."""

    dataset: Annotated[str, Field(max_length=200)]
    options: dict[str, Any] = {}


class ContributeSpec(TaskSpec):
    """Contribute moments of this party's data at `placements`; the requester's `norms` there measure the noise."""

    placements: Annotated[Places, Field(min_length=1)]
    norms: tuple[Norm, ...]

    @model_validator(mode="after")
    def _fits_the_members(self) -> ContributeSpec:
        if len(self.norms) != len(self.placements):
            raise ValueError("norms: there is one for each placement")
        if any(int(index) >= len(self.members) for placement in self.placements for index in placement):
            raise ValueError("placements: there is no such member")
        return self


class ContributedFile(FileRef, ContributionDocument):
    """A file of moments that the hub keeps for a fit, and what its party said of it."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class FitSpec(TaskSpec):
    """Fit candidates on a dataset of the requester's site, with what other parties contributed."""

    dataset: Annotated[str, Field(max_length=200)]
    options: dict[str, Any] = {}
    contributions: Annotated[dict[Name, ContributedFile], Field(max_length=64)] = {}


class EvaluateSpec(TaskSpec):
    """Measure fitted candidates on this party's data. `own` is the index of the party's own member."""

    own: Annotated[int, Field(ge=0)] | None = None
    candidates: CandidateFiles
    #: What the job asks for beside the metric of the task.
    metrics: tuple[ClinicalMetric, ...] = ()

    @model_validator(mode="after")
    def _own_is_a_member(self) -> EvaluateSpec:
        if self.own is not None and self.own >= len(self.members):
            raise ValueError("own: there is no such member")
        return self


class ComposeSpec(TaskSpec):
    """Choose among the candidates by everybody's evaluations and compose the chosen one; reads no dataset."""

    candidates: CandidateFiles
    evaluations: dict[Name, Evaluation]
    missing: tuple[Missing, ...] = ()
    version: Annotated[int, Field(ge=1)] = 1
    revised: Revised | None = None
    publish_as: Repo


class JobRef(_FromHub):
    """Whose job it is."""

    id: Identifier
    requester: Name


class LeasedTask(_FromHub):
    """One leased task."""

    id: Identifier
    kind: Kind
    attempt: Annotated[int, Field(ge=1)]
    fence: int
    lease_seconds: Annotated[float, Field(ge=1, le=86400)] = 60.0
    job: JobRef
    spec: SerializeAsAny[TaskSpec]

    @model_validator(mode="before")
    @classmethod
    def _spec_of_its_kind(cls, content: Any) -> Any:
        if not isinstance(content, dict) or isinstance(content.get("spec"), BaseModel):
            return content
        kind = str(content.get("kind"))
        if kind not in FILES:
            return content
        return {**content, "spec": _side(kind).spec_model.model_validate(content.get("spec"))}

    @property
    def claim(self) -> Claim:
        """What every message about the task carries."""
        return Claim(self.id, self.fence, self.job.requester, self.job.id)

    @property
    def side(self) -> TaskKind:
        """What this site knows of such tasks."""
        return _side(self.kind)

    @property
    def action(self) -> Action:
        """What the site's rules call it."""
        return self.side.action

    @property
    def options(self) -> dict[str, Any]:
        """The options of a fit that the task names."""
        options: dict[str, Any] = getattr(self.spec, "options", {})
        return options

    @property
    def digest(self) -> str:
        """The SHA-256 of who asks for what: the same for each attempt, another one if the hub changes the task."""
        asked = self.model_dump_json(by_alias=True, include={"id", "kind", "job", "spec"})
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def files(self) -> Mapping[str, FileRef]:
        """The job's files that this task starts from: fitted candidates, or what was contributed to a fit."""
        return self.side.start(self.spec)

    def to_json(self) -> str:
        """Return the text from which `from_json` makes an equal task."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def parse(cls, content: Any) -> LeasedTask:
        """Check a leased task; raises `SutureError`: `task.invalid` naming the field, `job.options` of its fit."""
        try:
            task = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise SutureError(
                "task.invalid",
                f"{field}: {first['msg']}",
                where="leased task",
                hint="update this site, or tell the hub's operator",
            ) from None
        FitOptions.read(task.options)
        return task

    @classmethod
    def from_json(cls, text: str | bytes) -> LeasedTask:
        """Read back what `to_json` wrote."""
        return cls.model_validate_json(text)


def import_sides() -> None:
    """Import what this site knows of every kind of task, which else happens when there is one."""
    for kind in FILES:
        _side(kind)


def _side(kind: str) -> TaskKind:
    # Imported by name when it is asked for: those modules build on this one.
    side: TaskKind = import_module(f"suture_worker.kinds.{kind}").KIND
    return side


def claim_of(content: Any) -> Claim | None:
    """Return the claim to a leased task that could not be parsed, so that it can be given back, or None."""
    if not isinstance(content, dict):
        return None
    task, fence = content.get("id"), content.get("fence")
    if isinstance(task, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", task) and isinstance(fence, int):
        try:
            job = JobRef.model_validate(content.get("job"))
        except ValidationError:
            return Claim(task, fence)
        return Claim(task, fence, job.requester, job.id)
    return None
