"""What there is to say about a portable model without running it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True)


class TensorDescription(_Document):
    """An input or output: its name in `suture.json` if there is one; sizes with the batch first, None where free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class SizeCost(_Document):
    """What one sample costs: FLOPs (2 per multiply-add), and bytes of weights and values alive at once.

    `bound_bytes` includes what operators may allocate for themselves, see `dry_run.Cost`.
    """

    inputs: tuple[tuple[int, ...], ...]
    flops: int
    peak_bytes: int
    bound_bytes: int


class PointDescription(_Document):
    """A stitch point; see `points.StitchPoint`."""

    name: str
    module: str
    shape: tuple[int, ...]
    depth: float
    clean: bool
    bypassed: tuple[str, ...]


class Published(_Document):
    """Something that leaves the party when the model is published."""

    what: str
    how_much: str


class Inspection(_Document):
    """All there is to say about a portable model without running it. Sizes in bytes."""

    file: str
    size: int
    version: str
    torch: str
    task: str | None
    labels: tuple[str, ...] | None
    license: str | None
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    tensors: int
    parameters: int
    weight_bytes: int
    nodes: int
    operators: dict[str, int]
    costs: tuple[SizeCost, ...]
    points: tuple[PointDescription, ...]
    leaves: tuple[Published, ...]
    stays: tuple[str, ...]
