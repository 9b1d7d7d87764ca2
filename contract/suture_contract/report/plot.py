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

#: The height of a line of a name and the width of its letters, at 13 px.
_LINE = 17.0
_LETTER = 6.9
#: Longer names are cut: the mark says the whole one where it is pointed at.
_LONGEST = 28
#: A closer look is worth it where what it shows takes less than this share of an axis.
_CROWDED = 0.6

Role = Literal["chosen", "ensemble", "single", "front", "other"]
Side = Literal["start", "middle", "end"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """The size of a drawing, and where its axes lie in it."""

    name: Literal["wide", "narrow"]
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


WIDE = Frame("wide", 680, 460, 74, 664, 20, 396)
#: For telephones: the page shows the one or the other.
NARROW = Frame("narrow", 350, 390, 72, 342, 14, 334)


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
    """The name written beside a mark; a line leads from the mark to one that had to stand off."""

    x: float
    y: float
    text: str
    anchor: Side
    bold: bool
    line: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Plot:
    """One plot: `x_party`'s metric to the right, `y_party`'s upwards; towards the upper right is better."""

    frame: Frame
    x_party: str
    y_party: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    tags: tuple[NameTag, ...]
    #: Where the two parties' own models stand, as far as they have one that lies within the axes.
    x_own: float | None
    y_own: float | None
    #: What is better than both own models: x, y, width, height.
    better: Box | None
    #: What has a name and lies outside of a closer look.
    outside: tuple[str, ...] = ()


def plots(report: Report, frame: Frame = WIDE) -> list[Plot]:
    """Return one plot for each other party that was measured, with the requester's metric to the right."""
    return [_plot(report, pair, frame, _measured(report, pair)) for pair in _pairs(report)]


def closer(report: Report, frame: Frame = WIDE) -> list[Plot | None]:
    """Return for each of `plots` a closer look at the better half; None where that shows no more."""
    return [_closer(report, pair, frame) for pair in _pairs(report)]


def _pairs(report: Report) -> list[tuple[str, str]]:
    if report.requester not in report.parties:
        return []
    return [(report.requester, party) for party in sorted(report.parties) if party != report.requester]


def _measured(report: Report, pair: tuple[str, str]) -> list[CandidateReport]:
    return [candidate for candidate in report.candidates if set(pair) <= candidate.metrics.keys()]


def _closer(report: Report, pair: tuple[str, str], frame: Frame) -> Plot | None:
    """Look at the chosen one, and at the half of what was made of several models that is better at each party."""
    candidates = _measured(report, pair)
    made = [candidate for candidate in candidates if candidate.kind != "single"]
    if not made:
        return None
    bounds = {}
    for party in pair:
        sign = 1 if scale_of(report.parties[party].metric).higher_is_better else -1
        values = sorted((candidate.metrics[party] for candidate in made), key=lambda value: -sign * value)
        chosen = [candidate.metrics[party] for candidate in candidates if candidate.id == report.chosen]
        bounds[party] = _bounds([*values[: (len(values) + 1) // 2], *chosen])
    inside = [c for c in candidates if all(low <= c.metrics[p] <= high for p, (low, high) in bounds.items())]
    shown = {party: _bounds([c.metrics[party] for c in inside]) for party in pair} if len(inside) > 1 else {}
    if not any(_is_crowded(shown[party], _bounds([c.metrics[party] for c in candidates])) for party in shown):
        return None
    return _plot(report, pair, frame, inside)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _is_crowded(part: tuple[float, float], whole: tuple[float, float]) -> bool:
    return part[1] - part[0] < _CROWDED * (whole[1] - whole[0])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return `about` round numbers between `low` and `high`, one, two or five times a power of ten apart."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.75 * raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _plot(report: Report, pair: tuple[str, str], frame: Frame, shown: Sequence[CandidateReport]) -> Plot:
    x_party, y_party = pair
    x_scale, y_scale = (scale_of(report.parties[party].metric) for party in pair)
    x_at, x_ticks = _axis([c.metrics[x_party] for c in shown], frame.left, frame.right, x_scale)
    y_at, y_ticks = _axis([c.metrics[y_party] for c in shown], frame.bottom, frame.top, y_scale)

    def words_of(candidate: CandidateReport) -> str:
        x, y = candidate.metrics[x_party], candidate.metrics[y_party]
        return f"{candidate.label}: {x_party} {x_scale.text(x)}, {y_party} {y_scale.text(y)}"

    def mark_of(candidate: CandidateReport) -> Mark:
        role = _role(candidate, report.chosen)
        x, y = x_at(candidate.metrics[x_party]), y_at(candidate.metrics[y_party])
        return Mark(x, y, role, candidate.front, words_of(candidate), _name(candidate, role))

    order: list[Role] = ["other", "front", "single", "ensemble", "chosen"]
    marks = sorted((mark_of(candidate) for candidate in shown), key=lambda mark: order.index(mark.role))
    x_row, y_row = (report.parties[party].rows.get("own") for party in pair)
    x_own = None if x_row is None else x_at(x_row.value)
    y_own = None if y_row is None else y_at(y_row.value)
    return Plot(
        frame=frame,
        x_party=x_party,
        y_party=y_party,
        x_title=f"{x_party}: {x_scale.name}",
        y_title=f"{y_party}: {y_scale.name}",
        x_ticks=tuple(x_ticks),
        y_ticks=tuple(y_ticks),
        marks=tuple(marks),
        tags=tuple(_place_names([mark for mark in marks if mark.name], frame)),
        x_own=x_own if x_own is not None and frame.left <= x_own <= frame.right else None,
        y_own=y_own if y_own is not None and frame.top <= y_own <= frame.bottom else None,
        better=_better(frame, x_own, y_own),
        outside=tuple(
            mark.tooltip for mark in map(mark_of, _measured(report, pair)) if mark.name and mark not in marks
        ),
    )


def _better(frame: Frame, x_own: float | None, y_own: float | None) -> Box | None:
    if x_own is None or y_own is None or x_own >= frame.right or y_own <= frame.top:
        return None
    left, bottom = max(x_own, frame.left), min(y_own, frame.bottom)
    return left, frame.top, round(frame.right - left, 2), round(bottom - frame.top, 2)


def _role(candidate: CandidateReport, chosen: str) -> Role:
    if candidate.id == chosen:
        return "chosen"
    if candidate.kind in ("single", "ensemble"):
        return candidate.kind
    return "front" if candidate.front else "other"


def _name(candidate: CandidateReport, role: Role) -> str:
    if role == "chosen":
        name = f"chosen: {candidate.label}" if candidate.kind in ("single", "ensemble") else "chosen"
    else:
        name = candidate.label if candidate.kind in ("single", "ensemble") else ""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


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

    marks = ticks(low, high, 5 if abs(end - start) > 320 else 4)
    decimals = scale.decimals_between(marks[1] - marks[0] if len(marks) > 1 else high - low)
    return at, [Tick(at(value), scale.text(value, decimals)) for value in marks]


def _place_names(marks: Sequence[Mark], frame: Frame) -> list[NameTag]:
    """Write each name at the nearest place where it covers no other name or named mark, or else leave it out."""
    taken: list[Box] = [(mark.x - 8, mark.y - 8, mark.x + 8, mark.y + 8) for mark in marks]
    tags: list[NameTag] = []
    order: list[Role] = ["chosen", "ensemble", "single"]
    rows = sorted(range(-20, 21), key=lambda row: (abs(row), row))
    for mark in sorted(marks, key=lambda mark: order.index(mark.role)):
        width = len(mark.name) * _LETTER * (1.08 if mark.role == "chosen" else 1)
        options = (_tag(mark, side, row, width, frame) for row in rows for side in ("start", "end"))
        placed = next(((tag, box) for tag, box in options if _is_free(box, taken, frame)), None)
        if placed is not None:
            tags.append(placed[0])
            taken.append(placed[1])
    return tags


def _tag(mark: Mark, side: Side, row: int, width: float, frame: Frame) -> tuple[NameTag, Box]:
    y = mark.y + row * _LINE
    gap = 13 if row == 0 else 4
    x = mark.x + gap if side == "start" else mark.x - gap
    # A name too long for this side of its mark slides inwards, where it stands above or below.
    if row and side == "start":
        x = min(x, frame.right - width)
    elif row:
        x = max(x, frame.left + width)
    left = x if side == "start" else x - width
    box = (round(left, 2), round(y - 9, 2), round(left + width, 2), round(y + 7, 2))
    line = None
    if abs(row) > 1:
        nearest = box[1] if row > 0 else box[3]
        line = (mark.x, mark.y + (9 if row > 0 else -9), round(min(max(mark.x, box[0]), box[2]), 2), nearest)
    return NameTag(round(x, 2), round(y + 4, 2), mark.name, side, mark.role == "chosen", line), box


def _is_free(box: Box, taken: Sequence[Box], frame: Frame) -> bool:
    left, top, right, bottom = box
    if left < frame.left or right > frame.right or top < frame.top - 6 or bottom > frame.bottom:
        return False
    return all(right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3] for other in taken)
