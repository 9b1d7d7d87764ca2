"""A lineage as a drawing: what came before to the left, what came of it to the right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from suture_service.keys.schemas import LineageModel, LineageOut

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 190, 44, 56, 18, 6
#: What fits into a box, in characters.
_FITS = 24


@dataclass(frozen=True)
class Box:
    """A model in the drawing; `x` and `y` are those of its upper left corner."""

    model: LineageModel
    x: int
    y: int
    own: bool

    @property
    def name(self) -> str:
        """What stands in the box."""
        name = self.model.repo or "not shared with you"
        return name if len(name) <= _FITS else f"{name[: _FITS - 1]}…"

    @property
    def state(self) -> str:
        """What is wrong with the model itself, nothing where nothing is."""
        return ", ".join(flag.replace("_", " ") for flag in self.model.flags)


@dataclass(frozen=True)
class Drawing:
    """Boxes and the curves between them, in a picture of `width` and `height`."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    curves: tuple[str, ...]
    before: tuple[Box, ...]
    after: tuple[Box, ...]


def draw(lineage: LineageOut) -> Drawing | None:
    """Return the drawing; None where nothing is known but the model itself."""
    if len(lineage.models) < 2:
        return None
    depth = _depths(lineage)
    columns: dict[int, list[int]] = {}
    for index in range(len(lineage.models)):
        columns.setdefault(depth[index], []).append(index)
    first, tallest = min(columns), max(map(len, columns.values()))
    boxes: dict[int, Box] = {}
    for column, indices in columns.items():
        space = (tallest - len(indices)) * (HEIGHT + DOWN) // 2
        for row, index in enumerate(indices):
            x = MARGIN + (column - first) * (WIDTH + ACROSS)
            boxes[index] = Box(lineage.models[index], x, MARGIN + space + row * (HEIGHT + DOWN), index == 0)
    curves = [_curve(boxes[link.member], boxes[link.model]) for link in lineage.links]
    return Drawing(
        width=2 * MARGIN + len(columns) * (WIDTH + ACROSS) - ACROSS,
        height=2 * MARGIN + tallest * (HEIGHT + DOWN) - DOWN,
        boxes=tuple(boxes.values()),
        curves=tuple(curves),
        before=tuple(boxes[index] for index in boxes if depth[index] < 0),
        after=tuple(boxes[index] for index in boxes if depth[index] > 0),
    )


def _depths(lineage: LineageOut) -> dict[int, int]:
    """Return each model's column: the model itself at 0, each other one as near to it as its links allow."""
    depths = {0: 0}
    members: dict[int, list[int]] = {}
    made: dict[int, list[int]] = {}
    for link in lineage.links:
        members.setdefault(link.model, []).append(link.member)
        made.setdefault(link.member, []).append(link.model)
    for neighbours, step in ((members, -1), (made, 1)):
        _spread(depths, neighbours, step)
    return {index: depths.get(index, 0) for index in range(len(lineage.models))}


def _spread(depths: dict[int, int], neighbours: dict[int, list[int]], step: int) -> None:
    reached: Iterable[int] = [0]
    while reached:
        new = {
            other: depths[index] + step
            for index in reached
            for other in neighbours.get(index, ())
            if other not in depths
        }
        depths.update(new)
        reached = list(new)


def _curve(start: Box, end: Box) -> str:
    x1, y1 = start.x + WIDTH, start.y + HEIGHT // 2
    x2, y2 = end.x, end.y + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"
