"""What `suture demo` can play: parties with data and networks of their own, who asks, and what is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from suture.bundle import Description
from suture_contract.documents import Interval, Report
from suture_contract.rounding import fixed

#: What the shipped file may lose where it must be no worse: this part of the samples.
MARGIN = 0.02
#: "above": the whole interval of the difference lies above zero. "reaches": it reaches zero, or no more than `MARGIN`
#: is lost. "shown": nothing is wanted.
Wanted: TypeAlias = Literal["above", "reaches", "shown"]


@dataclass(frozen=True)
class PartyData:
    """One party's samples.

    `inputs` float32 (N, C, *spatial), `labels` int64 (N,), `split` (N,) "train", "validation" or "test"; where a site
    made the split, `split_digest` is that of its dataset.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    split_digest: str | None = None

    def of(self, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return inputs and labels of one split."""
        return self.inputs[self.split == split], self.labels[self.split == split]


@dataclass(frozen=True)
class Judged:
    """One party's test samples: what part of them each model names rightly; differences are paired."""

    n: int
    own: float
    plain: float
    shipped: float
    over_own: Interval
    over_plain: Interval


@dataclass(frozen=True)
class Target:
    """One thing that the shipped file must reach: a paired difference, judged by its interval."""

    what: str
    difference: Interval
    wanted: Wanted

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        if self.wanted == "above":
            return self.difference.low > 0
        return self.wanted == "shown" or self.difference.high >= 0 or self.difference.value >= -MARGIN

    def __str__(self) -> str:
        interval = self.difference
        value, low, high = (
            fixed(at, 1, percent=True, sign=True) for at in (interval.value, interval.low, interval.high)
        )
        wanted = {
            "above": "wanted above zero",
            "reaches": f"wanted reaching zero, or at least {-100 * MARGIN:+g}",
            "shown": "no target",
        }
        return f"{self.what}: {value} points [{low}, {high}], {wanted[self.wanted]}"


@dataclass(frozen=True)
class Story:
    """Parties, and what each of them does. The first one asks for the stitch, the others evaluate it, too."""

    #: Names the repositories and the sites' datasets.
    name: str
    parties: tuple[str, ...]
    labels: tuple[str, ...]
    #: What is said at the beginning.
    opening: str
    #: One sample, as people say: image.
    sample: str
    #: A prediction, with `{label}`, its `{probability}`, and the `{truth}`.
    prediction: str
    #: The parties' samples for a seed.
    divide: Callable[[int], Mapping[str, PartyData]]
    #: Writes a party's samples into a folder, for a seed; returns the dataset as the party's site.toml describes it.
    write: Callable[[str, PartyData, int, Path], Mapping[str, Any]]
    #: A party's untrained network, for a seed.
    network: Callable[[str, PartyData, int], nn.Module]
    epochs: int
    #: What a party's model is published with.
    describe: Callable[[str, PartyData], Description]
    #: What the shipped file must reach.
    targets: Callable[[Mapping[str, Judged], Report], list[Target]]
    #: What is said below the targets.
    remark: str = ""

    @property
    def asking(self) -> str:
        """The party that asks."""
        return self.parties[0]

    @property
    def asked(self) -> tuple[str, ...]:
        """The parties that are asked to evaluate."""
        return self.parties[1:]
