"""Calibration curves, laid out for the page (pure; coordinates in pixels): on the diagonal, probabilities come true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from suture_contract.documents import CalibrationBin, PartyReport

#: The axes run from 0 to 1 between these.
LEFT, RIGHT, TOP, BOTTOM = 60, 330, 12, 282
WIDTH, HEIGHT = 344, 330
#: Which rows have a curve, and how their marks look.
_ROLES: Mapping[str, Literal["chosen", "single", "ensemble"]] = {
    "chosen": "chosen",
    "own": "single",
    "ensemble": "ensemble",
}


@dataclass(frozen=True)
class CurvePoint:
    """A bin of probability: where its mark is, and what to say when it is pointed at."""

    x: float
    y: float
    tooltip: str


@dataclass(frozen=True)
class Curve:
    """A model's curve; `path` leads through its points."""

    name: str
    role: str
    points: tuple[CurvePoint, ...]
    path: str


def curves(party_report: PartyReport, names: Mapping[str, str]) -> tuple[Curve, ...]:
    """Return the curves of a party's rows, the chosen model's last, so that nothing covers it."""
    drawn = [
        curve(names[row], role, party_report.curves[row])
        for row, role in _ROLES.items()
        if row in party_report.curves and row in names
    ]
    return tuple(reversed(drawn))


def curve(name: str, role: str, bins: tuple[CalibrationBin, ...]) -> Curve:
    """Return the curve of a model."""
    points = tuple(_point(name, part) for part in bins)
    return Curve(name, role, points, "M" + "L".join(f"{point.x} {point.y}" for point in points))


def _point(name: str, part: CalibrationBin) -> CurvePoint:
    share = part.events / part.n
    x, y = LEFT + part.predicted * (RIGHT - LEFT), BOTTOM - share * (BOTTOM - TOP)
    return CurvePoint(
        round(x, 2), round(y, 2), f"{name}: {part.predicted:.2f} was given, {share:.2f} came true, n {part.n:,}"
    )
