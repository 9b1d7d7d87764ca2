"""What comes of every kind of source: the network, and what can be said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from suture_contract.errors import SutureError
from suture_stitching.normalisation import normalised


@dataclass(frozen=True)
class NetworkSource:
    """A network with what its files say about it.

    `shape` is that of an input without its batch, None where nothing says it. `description` has fields of
    `suture.json`, as `suture.bundle.Description` names them. `notes` are for the person who exports it. `unsaid`
    is what happens to an image before the network that `suture.json` has no words for.
    """

    module: nn.Module
    shape: tuple[int, ...] | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    unsaid: Sequence[str] = ()

    def example(self, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return two random inputs of `shape`, by default the source's own; raises `SutureError` `source.shape`.

        They lie in the description's `value_range`, by default 0 to 1, both of which whole numbers may be.
        """
        shape = self.shape if shape is None else shape
        if shape is None:
            raise SutureError(
                "source.shape",
                "nothing says how large an input is",
                where="shape",
                hint="say it without the batch: --shape 1,96,96,96",
            )
        low, high = self.description.get("value_range") or (0.0, 1.0)
        drawn = torch.Generator().manual_seed(0)
        if not dtype.is_floating_point:
            return torch.randint(int(low), int(high) + 1, (2, *shape), generator=drawn, dtype=dtype)
        values = torch.rand(2, *shape, generator=drawn) * (high - low) + low
        mean, std = self.description.get("mean"), self.description.get("std")
        return (values if mean is None or std is None else normalised(values, mean, std)).to(dtype)

    def described(self, **stated: Any) -> dict[str, Any]:
        """Return all fields of `suture.json` that are known: what is `stated` stands above what was read.

        Raises `SutureError` `source.preprocessing` where `suture.json` has no words for what happens to an image
        first, and nobody states the range of those that are delivered.
        """
        stated = {name: value for name, value in stated.items() if value is not None}
        together = {**self.description, **stated}
        if not self.unsaid:
            return together
        first = "; ".join(self.unsaid)
        if not stated.keys() & {"value_range", "mean"}:
            raise SutureError(
                "source.preprocessing",
                f"before this network, {first}: suture.json has no words for that",
                where="value_range",
                hint="have the data prepared so before Suture reads them, and say their range then: --value-range -5,5"
                "; or put it into the network's forward() and export that",
            )
        limits = f"Before this network, {first}: the data must be prepared so."
        return {**together, "limitations": " ".join(filter(None, [together.get("limitations"), limits]))}
