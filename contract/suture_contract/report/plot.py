"""The candidates in the plane of two parties' metrics, laid out for the page (pure; coordinates in pixels).

Drawn as plain SVG: it weighs a few kilobytes, needs no script, and prints as it looks on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from suture_contract.documents import CandidateReport, Report
from suture_contract.report.words import Scale, scale_of

WIDTH, HEIGHT = 680, 460
LEFT, RIGHT, TOP, BOTTOM = 74, 664, 20, 396
_LINE = 17.0
_LETTER = 6.9

Role = Literal["chosen", "ensemble", "single", "front", "other"]
Side = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """One candidate: where it is, how it is drawn, and what to say when it is pointed at."""

    x: float
    y: float
    role: Role
    front: bool
    tooltip: str
    name: str = ""


@dataclass(frozen=True)
class NameTag:
    """The name written beside a mark."""

    x: float
    y: float
    text: str
    anchor: Side
    bold: bool


@dataclass(frozen=True)
class Plot:
    """One plot: `x_party`'s metric to the right, `y_party`'s upwards; towards the upper right is better."""

    x_party: str
    y_party: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    tags: tuple[NameTag, ...]
    #: Where the two parties' own models stand, as far as they have one.
    x_own: float | None
    y_own: float | None


def plots(report: Report) -> list[Plot]:
    """Return one plot for each other party that was measured, with the requester's metric to the right."""
    if report.requester not in report.parties:
        return []
    others = sorted(party for party in report.parties if party != report.requester)
    return [_plot(report, report.requester, other) for other in others]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return `about` round numbers between `low` and `high`, one, two or five times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.75 * raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _plot(report: Report, x_party: str, y_party: str) -> Plot:
    x_scale, y_scale = (scale_of(report.parties[party].metric) for party in (x_party, y_party))
    candidates = [c for c in report.candidates if x_party in c.metrics and y_party in c.metrics]
    x_at, x_ticks = _axis([c.metrics[x_party] for c in candidates], LEFT, RIGHT, x_scale)
    y_at, y_ticks = _axis([c.metrics[y_party] for c in candidates], BOTTOM, TOP, y_scale)
    own = {party: report.parties[party].rows.get("own") for party in (x_party, y_party)}

    def mark_of(candidate: CandidateReport) -> Mark:
        x, y = candidate.metrics[x_party], candidate.metrics[y_party]
        role = _role(candidate, report.chosen)
        return Mark(
            x=x_at(x),
            y=y_at(y),
            role=role,
            front=candidate.front,
            tooltip=f"{candidate.label}: {x_party} {x_scale.text(x)}, {y_party} {y_scale.text(y)}",
            name=_name(candidate, role),
        )

    order: list[Role] = ["other", "front", "single", "ensemble", "chosen"]
    marks = sorted((mark_of(candidate) for candidate in candidates), key=lambda mark: order.index(mark.role))
    x_own, y_own = own[x_party], own[y_party]
    return Plot(
        x_party=x_party,
        y_party=y_party,
        x_title=f"{x_party}: {x_scale.name} on its test data",
        y_title=f"{y_party}: {y_scale.name} on its test data",
        x_ticks=tuple(x_ticks),
        y_ticks=tuple(y_ticks),
        marks=tuple(marks),
        tags=tuple(_place_names([mark for mark in marks if mark.name])),
        x_own=None if x_own is None else x_at(x_own.value),
        y_own=None if y_own is None else y_at(y_own.value),
    )


def _role(candidate: CandidateReport, chosen: str) -> Role:
    if candidate.id == chosen:
        return "chosen"
    if candidate.kind in ("single", "ensemble"):
        return candidate.kind
    return "front" if candidate.front else "other"


def _name(candidate: CandidateReport, role: Role) -> str:
    if role == "chosen":
        return "chosen" if candidate.kind == "stitched" else f"chosen: {candidate.label}"
    return candidate.label if candidate.kind in ("single", "ensemble") else ""


def _axis(
    values: Sequence[float], start: float, end: float, scale: Scale
) -> tuple[Callable[[float], float], list[Tick]]:
    """Return the map from a value to its pixel, and the ticks; turned round where a lower value is better."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    if not scale.higher_is_better:
        start, end = end, start

    def at(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 2)

    marks = ticks(low, high)
    decimals = scale.decimals_between(marks[1] - marks[0] if len(marks) > 1 else high - low)
    return at, [Tick(at(value), scale.text(value, decimals)) for value in marks]


def _place_names(marks: Sequence[Mark]) -> list[NameTag]:
    """Write each name beside its mark, at the nearest place where it covers no other name or named mark."""
    taken: list[Box] = [(mark.x - 8, mark.y - 8, mark.x + 8, mark.y + 8) for mark in marks]
    tags: list[NameTag] = []
    for mark in sorted(marks, key=lambda mark: mark.role != "chosen"):
        width = len(mark.name) * _LETTER * (1.08 if mark.role == "chosen" else 1)
        options = [_tag(mark, side, row, width) for row in (0, 1, -1, 2, -2, 3, -3, 4) for side in ("start", "end")]
        tag, box = next((option for option in options if _is_free(option[1], taken)), options[0])
        tags.append(tag)
        taken.append(box)
    return tags


def _tag(mark: Mark, side: str, row: int, width: float) -> tuple[NameTag, Box]:
    y = mark.y + row * _LINE
    gap = 13 if row == 0 else 4
    x = mark.x + gap if side == "start" else mark.x - gap
    box = (x, y - 9, x + width, y + 7) if side == "start" else (x - width, y - 9, x, y + 7)
    anchor: Side = "start" if side == "start" else "end"
    return NameTag(x, y + 4, mark.name, anchor, mark.role == "chosen"), box


def _is_free(box: Box, taken: Sequence[Box]) -> bool:
    left, top, right, bottom = box
    if left < LEFT or right > RIGHT or top < TOP - 6 or bottom > BOTTOM:
        return False
    return all(right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3] for other in taken)
