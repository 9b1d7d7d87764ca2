"""What sites and hub tell each other about contributed moments; torch-free and closed, like `documents`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from suture_contract.documents import Count, MemberIndex, Point, Samples
from suture_contract.model.metadata import Sha256
from suture_contract.privacy import Delta, Epsilon, Privacy

SplitOfFit: TypeAlias = Literal["train", "validation"]
SPLITS: tuple[SplitOfFit, SplitOfFit] = ("train", "validation")
#: Names of a match's points by member, as in a candidate's document.
Place: TypeAlias = dict[MemberIndex, Point]
Places = Annotated[tuple[Annotated[Place, Field(min_length=2)], ...], Field(max_length=32)]
Norm = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Matched(_Closed):
    """Where the requester's own data say that the members should be joined, and how large features are there.

    `norms` has for each placement the root of the mean squared norm of the matched members' features side by side at a
    position, over `n` samples: what a contributor's noise is measured by.
    """

    n: Count
    #: Patients whose samples they are; None where nobody counted them.
    patients: Count | None = None
    placements: Places
    norms: Annotated[tuple[Norm, ...], Field(max_length=32)]


class ClippedPrivacy(Privacy):
    """Noise by which the whole contribution is private, as `Privacy` has it, measured by `clips`.

    For each placement that is the largest norm of the matched members' features side by side at a position; longer
    ones are shortened to it. They must not come from the contributor's data: the requester's `norms` will do.
    """

    clips: Annotated[tuple[Norm, ...], Field(min_length=1)]


class Described(_Closed):
    """All of a contribution but its moments; `n` are samples, and `privacy` what holds for it, None without noise."""

    schema_: Literal["suture.moments/1"] = Field(default="suture.moments/1", alias="schema")
    members: tuple[Sha256, ...]
    placements: tuple[Place, ...]
    n: Samples
    privacy: ClippedPrivacy | None = None

    def to_json(self) -> str:
        """Return the one text for the header of a contribution's file."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class ContributionDocument(_Closed):
    """The result of a `contribute` task, beside its file: samples, their patients, and what noise protects these."""

    n: Samples
    patients: Samples | None = None
    epsilon: Epsilon | None = None
    delta: Delta | None = None
