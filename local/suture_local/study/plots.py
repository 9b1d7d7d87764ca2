"""The methods in the plane of the requester's metric and the mean of the other parties', as plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from suture_contract.report.plot import ticks
from suture_contract.rounding import fixed
from suture_local.study.summary import PLAIN, UNION, MethodRow, RequesterSummary, Summary

WIDTH, HEIGHT = 680, 460
LEFT, RIGHT, TOP, BOTTOM = 74, 664, 20, 396
_LETTER, _LINE = 6.9, 16.0
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1b2733; }
.soft { fill: #536270; font-size: 12px; } .axis { stroke: #d9dfe4; } .own { stroke: #536270; stroke-dasharray: 4 4; }
.better { fill: #e3f1f1; } .front { fill: #fff; stroke: #0a6c74; stroke-width: 1.5; stroke-opacity: .6; }
.single { fill: #4b5a68; } .plain { fill: #b36b00; } .union { fill: #1b2733; } .other { fill: #9aa7b2; }
.stitched { fill: #0a6c74; stroke: #fff; stroke-width: 1.5; }
.tag { paint-order: stroke; stroke: #fff; stroke-width: 4px; stroke-linejoin: round; }
.bold { font-weight: 700; fill: #0a6c74; }
"""


@dataclass(frozen=True)
class _Mark:
    x: float
    y: float
    style: str
    name: str
    text: str


def plot(asked: RequesterSummary, summary: Summary, parties: Sequence[str], metric: str) -> str:
    """Return the SVG for one requester: every method's mean over the seeds, and each seed's front of candidates."""
    requester = asked.requester
    others = [party for party in parties if party != requester]
    rows = [row for row in summary.rows if _is_shown(row, requester)]
    points = [_point({party: row.parties[party].value for party in parties}, requester, others) for row in rows]
    front = [_point(fit.candidates[id], requester, others) for fit in asked.fits for id in fit.front]
    x_at, x_ticks = _axis([x for x, _ in [*points, *front]], LEFT, RIGHT)
    y_at, y_ticks = _axis([y for _, y in [*points, *front]], BOTTOM, TOP)
    there = others[0] if len(others) == 1 else "mean of the others"
    marks = [
        _Mark(
            x_at(x),
            y_at(y),
            _style(row.method),
            _name(row.method),
            f"{row.method}: {requester} {fixed(x, 3)}, {there} {fixed(y, 3)}",
        )
        for row, (x, y) in zip(rows, points, strict=True)
    ]
    own = next(mark for row, mark in zip(rows, marks, strict=True) if row.method == f"alone: {requester}")
    plain = next(mark for row, mark in zip(rows, marks, strict=True) if row.method == PLAIN)
    body = [
        f'<rect class="better" x="{own.x}" y="{TOP}" width="{RIGHT - own.x:.1f}" height="{plain.y - TOP:.1f}"/>',
        *(_tick(x_at(value), value, vertical=True) for value in x_ticks),
        *(_tick(y_at(value), value, vertical=False) for value in y_ticks),
        f'<line class="own" x1="{own.x}" x2="{own.x}" y1="{TOP}" y2="{BOTTOM}"/>',
        f'<line class="own" x1="{LEFT}" x2="{RIGHT}" y1="{plain.y}" y2="{plain.y}"/>',
        f'<text class="soft" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 48}" text-anchor="middle">'
        f"{escape(requester)} (asks): {escape(metric)} →</text>",
        f'<text class="soft" transform="translate(16 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(there)}: {escape(metric)} →</text>",
        *(f'<circle class="front" cx="{x_at(x)}" cy="{y_at(y)}" r="3.5"/>' for x, y in front),
        *(_shape(mark) for mark in sorted(marks, key=lambda mark: mark.style == "stitched")),
        *_tags(marks),
    ]
    title = f"Methods when {requester} asks; further to the upper right is better"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _is_shown(row: MethodRow, requester: str) -> bool:
    kind, _, of = row.method.partition(": ")
    return kind == "alone" or not of or of == requester


def _point(metrics: dict[str, float], requester: str, others: Sequence[str]) -> tuple[float, float]:
    """Return the requester's metric and the mean over the others that were measured."""
    return metrics[requester], float(np.mean([metrics[party] for party in others if party in metrics]))


def _name(method: str) -> str:
    kind, _, party = method.partition(": ")
    return f"{party} alone" if kind == "alone" else kind


def _style(method: str) -> str:
    kind = method.partition(": ")[0]
    named = {"alone": "single", PLAIN: "plain", UNION: "union", "stitched": "stitched"}
    return named.get(kind, "other")


def _axis(values: Sequence[float], start: float, end: float) -> tuple[Callable[[float], float], list[float]]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    return at, ticks(low, high)


def _tick(at: float, value: float, *, vertical: bool) -> str:
    text = f"{value:.4g}"
    if vertical:
        return (
            f'<line class="axis" x1="{at}" x2="{at}" y1="{TOP}" y2="{BOTTOM}"/>'
            f'<text class="soft" x="{at}" y="{BOTTOM + 20}" text-anchor="middle">{text}</text>'
        )
    return (
        f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/>'
        f'<text class="soft" x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{text}</text>'
    )


def _shape(mark: _Mark) -> str:
    x, y = mark.x, mark.y
    drawn = {
        "stitched": f'<path d="M{x} {y - 10} l10 10 -10 10 -10 -10 z"/>',
        "plain": f'<rect x="{x - 6.5}" y="{y - 6.5}" width="13" height="13"/>',
        "single": f'<path d="M{x} {y - 8} l8 14 h-16 z"/>',
        "union": f'<path d="M{x - 7} {y - 2} h5 v-5 h4 v5 h5 v4 h-5 v5 h-4 v-5 h-5 z"/>',
    }.get(mark.style, f'<circle cx="{x}" cy="{y}" r="5"/>')
    return f'<g class="{mark.style}"><title>{escape(mark.text)}</title>{drawn}</g>'


def _tags(marks: Sequence[_Mark]) -> list[str]:
    """Return each mark's name beside it, at the nearest place where it covers no other name or mark."""
    taken = [(mark.x - 8, mark.y - 8, mark.x + 8, mark.y + 8) for mark in marks]
    tags = []
    for mark in sorted(marks, key=lambda mark: (mark.style != "stitched", mark.style == "other")):
        width = len(mark.name) * _LETTER
        options = [
            (abs(row) * _LINE + (0 if right else 1), right, row)
            for row in (0, 1, -1, 2, -2, 3, -3)
            for right in (True, False)
        ]

        def box(right: bool, row: int, mark: _Mark = mark, width: float = width) -> tuple[float, float, float, float]:
            x = mark.x + (13 if row == 0 else 4) * (1 if right else -1)
            y = mark.y + row * _LINE
            return (x, y - 9, x + width, y + 6) if right else (x - width, y - 9, x, y + 6)

        def cost(option: tuple[float, bool, int]) -> float:
            left, top, end, bottom = box(option[1], option[2])
            covered = sum(left < b[2] and b[0] < end and top < b[3] and b[1] < bottom for b in taken)
            outside = left < LEFT or end > RIGHT or top < TOP or bottom > BOTTOM
            return option[0] + 1000 * covered + 5000 * outside

        _, right, row = min(options, key=cost)
        left, top, end, bottom = box(right, row)
        taken.append((left, top, end, bottom))
        x, anchor = (left, "start") if right else (end, "end")
        style = "tag bold" if mark.style == "stitched" else "tag"
        tags.append(
            f'<text class="{style}" x="{x:.1f}" y="{top + 13:.1f}" text-anchor="{anchor}">{escape(mark.name)}</text>'
        )
    return tags
