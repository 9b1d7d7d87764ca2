"""What a job may ask of its fit and evaluations: options that SDK, hub, site and engine know (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from suture_contract.errors import SutureError
from suture_contract.measures import ClinicalMetric
from suture_contract.naming import did_you_mean, problems_of

PAGE = "docs/fit-options.md"

Alpha = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Recipe = Literal["full", "paper"]


class FitOptions(BaseModel):
    """The options of a fit, each with its default and bounds. Nothing else is accepted, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="Seed of all random choices; the same seed gives the same result."
    )
    recipe: Recipe = Field(
        default="full",
        description='"paper" offers what the published method does: stitches in closed form at one pair of layers, or '
        "at two, double-batched; no gates, no training, no shares of labels.",
    )
    # A list of JSON is a tuple here, also after it was parsed.
    alphas: Annotated[tuple[Alpha, ...], Field(strict=False)] = Field(
        default=(0.25, 0.5, 0.75),
        min_length=1,
        max_length=8,
        description="Mixing weights to try at each match, from 0 (a member's own features) to 1 (the others').",
    )
    max_matches: int = Field(
        default=6, ge=1, le=16, description="Matches to use: the most similar ones, and always the last."
    )
    refine: bool = Field(
        default=True, description="Whether stitches are trained on the task after they were solved for."
    )
    refine_steps: int = Field(default=300, ge=1, le=100_000, description="Steps of training for each candidate.")
    refine_candidates: int = Field(default=4, ge=1, le=64, description="How many candidates are trained.")
    metrics: Annotated[tuple[ClinicalMetric, ...], Field(strict=False)] = Field(
        default=(),
        max_length=len(get_args(ClinicalMetric)),
        description="What every party measures on its test data beside the metric of the task.",
    )

    @model_validator(mode="before")
    @classmethod
    def _paper_trains_nothing(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and document.get("recipe") == "paper":
            if document.get("refine"):
                raise ValueError('refine: recipe "paper" trains no stitches')
            return {**document, "refine": False}
        return document

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> FitOptions:
        """Return the options in `document`; raises `SutureError` `job.options` naming the first that is wrong."""
        unknown = next((name for name in document if name not in cls.model_fields), None)
        if unknown is not None:
            raise SutureError(
                "job.options",
                f"there is no option '{ascii(unknown)[1:-1][:60]}'",
                where="options",
                hint=did_you_mean(str(unknown), cls.model_fields, page=PAGE),
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problem = problems_of(error.errors(include_url=False), cls, values=True)[0]
            raise SutureError(
                "job.options",
                problem.message,
                where=f"options.{problem.field}",
                hint="; ".join(filter(None, (problem.hint, f"see {PAGE}"))),
            ) from None

    def stated(self) -> dict[str, Any]:
        """Return what was asked for, as JSON, without defaults: what a later version may choose better stays open."""
        return self.model_dump(mode="json", exclude_unset=True)
