"""What noise promises, as rules, documents and the engine state it (torch-free)."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Epsilon: TypeAlias = Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)]
Delta: TypeAlias = Annotated[float, Field(gt=0, lt=0.1, allow_inf_nan=False)]


class Privacy(BaseModel):
    """Everything that is told is `(epsilon, delta)` differentially private for one patient, with all samples of it.

    Two data sets are neighbours when they are equal but for one patient whose samples count as nothing in one of them;
    how many patients there are is not hidden. It holds whatever the models do that are run on the data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: Epsilon
    delta: Delta


class NoiseTerms(BaseModel):
    """What noise protects each patient with: `epsilon` and `delta` together, or neither where there is none."""

    epsilon: Epsilon | None = None
    delta: Delta | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon and delta belong together")
        return self

    @property
    def privacy(self) -> Privacy | None:
        """What the noise promises; None without noise."""
        if self.epsilon is None or self.delta is None:
            return None
        return Privacy(epsilon=self.epsilon, delta=self.delta)
