"""What noise promises, as rules, documents and the engine state it (torch-free)."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

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
