"""What is held, as pictures: people see in them what they would have to look for in a table. Pure layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from suture_contract.documents import CalibrationBin, Interval
from suture_contract.report import curves
from suture_contract.report.html import axis_of
from suture_contract.report.plot import Tick
from suture_contract.report.words import Scale

#: Bars of a histogram.
BINS = 40


@dataclass(frozen=True)
class Strip:
    """A value with its interval; `low`, `at` and `high` are places on the axis, in per cent."""

    name: str
    value: str
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Strips:
    """Values below each other on one axis."""

    what: str
    strips: tuple[Strip, ...]
    axis: tuple[Tick, ...]


@dataclass(frozen=True)
class Bar:
    """How many numbers lie in a part of the range; `left`, `width` and `height` in per cent of the picture."""

    left: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True)
class Histogram:
    """How numbers are spread between the least and the largest of them."""

    what: str
    bars: tuple[Bar, ...]
    low: str
    high: str


@dataclass(frozen=True)
class CurvePlot:
    """A calibration curve, in a frame as reports have it."""

    what: str
    curve: curves.Curve


def strips(intervals: Mapping[str, Interval], scale: Scale, digits: int) -> Strips:
    """Lay out values by name; there is one at least."""
    at, axis = axis_of(list(intervals.values()), scale)
    drawn = (
        Strip(name, scale.text(value.value, digits), at(value.low), at(value.value), at(value.high))
        for name, value in intervals.items()
    )
    return Strips(scale.name, tuple(drawn), axis)


def histogram(what: str, parts: Sequence[np.ndarray]) -> Histogram:
    """Lay out the numbers of all parts together; they have one number at least.

    Heights go by the logarithm of the counts, so that one number that lies apart from thousands is seen.
    """
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = np.sum([np.histogram(part, edges)[0] for part in parts], axis=0)
    most = math.log1p(int(counts.max()))
    return Histogram(what, tuple(_bars(counts.tolist(), edges.tolist(), most)), f"{low:.4g}", f"{high:.4g}")


def _bars(counts: Sequence[int], edges: Sequence[float], most: float) -> Iterable[Bar]:
    for place, count in enumerate(counts):
        if count:
            numbers = "1 number" if count == 1 else f"{count:,} numbers"
            tooltip = f"{numbers} from {edges[place]:.4g} to {edges[place + 1]:.4g}"
            height = round(100 * math.log1p(count) / most, 2)
            yield Bar(round(100 * place / BINS, 2), round(100 / BINS - 0.4, 2), height, tooltip)


def curve(what: str, name: str, bins: tuple[CalibrationBin, ...]) -> CurvePlot:
    """Lay out a calibration curve."""
    return CurvePlot(what, curves.curve(name, "chosen", bins))
