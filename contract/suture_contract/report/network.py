"""A network drawn block by block as plain SVG, with its stitch points marked (pure; coordinates in pixels).

Blocks stand below each other in the order in which they run. What a block reads from the one above it is a line
between them; what it reads from further up is an arc on the left, so that skips are seen as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol

from suture_contract.model.graph import INPUT, TENSOR, Graph, references

MOST_BLOCKS = 48
_WIDTH, _ROW, _HEIGHT, _TOP = 300, 46, 30, 56
_LANE, _LETTER = 13, 7.2
_STYLE = """
.ground { fill: #fff; }
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1b2733; }
.soft { fill: #536270; font-size: 11.5px; } .title { font-size: 16px; font-weight: 650; }
.block { fill: #fff; stroke: #d9dfe4; stroke-width: 1.5; } .end { fill: #f4f6f7; }
.flow { fill: none; stroke: #536270; stroke-width: 1.5; } .skip { fill: none; stroke: #8a5a00; stroke-width: 1.5; }
.clean { fill: #0a6c74; } .bypassed { fill: #fff; stroke: #0a6c74; stroke-width: 2; }
@media screen and (prefers-color-scheme: dark) {
  text { fill: #e4eaee; } .soft { fill: #a7b4be; } .block { fill: #1a2229; stroke: #33414b; } .end { fill: #12181d; }
  .flow { stroke: #a7b4be; } .skip { stroke: #e2b25e; } .clean { fill: #6cc7ce; } .ground { fill: #1a2229; }
  .bypassed { fill: #1a2229; stroke: #6cc7ce; }
}
"""


class Point(Protocol):
    """What is drawn of a stitch point."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def clean(self) -> bool: ...  # noqa: D102
    @property
    def bypassed(self) -> tuple[str, ...]: ...  # noqa: D102


@dataclass
class Block:
    """Nodes of one module that run one after the other; `sources` are the blocks they read from."""

    title: str
    nodes: list[int] = field(default_factory=list)
    sources: set[int] = field(default_factory=set)


def blocks(graph: Graph) -> list[Block]:
    """Return the graph as at most `MOST_BLOCKS` blocks where modules allow it, cut as deep in the modules as that."""
    deepest = max(node.module.count(".") for node in graph.nodes) + 1
    grouped = _at_depth(graph, 1)
    for depth in range(2, deepest + 1):
        finer = _at_depth(graph, depth)
        if len(finer) > MOST_BLOCKS:
            break
        grouped = finer
    return grouped


def _at_depth(graph: Graph, depth: int) -> list[Block]:
    """Group nodes that follow each other by the first `depth` parts of their module's path, without their weights."""
    blocks: list[Block] = []
    block_of: dict[int, int] = {}
    needs: list[set[int]] = []
    for index, node in enumerate(graph.nodes):
        before = set().union(*(needs[source] for source in references(node)))
        needs.append({index} if node.op == INPUT else before)
        if node.op == TENSOR or not needs[index]:
            continue
        title = f"input {node.args[0]}" if node.op == INPUT else ".".join(node.module.split(".")[:depth])
        if not blocks or title != blocks[-1].title:
            blocks.append(Block(title))
        own = len(blocks) - 1
        blocks[own].nodes.append(index)
        block_of[index] = own
        blocks[own].sources |= {block_of[source] for source in references(node) if source in block_of} - {own}
    return blocks


def draw(graph: Graph, points: Sequence[Point], *, title: str) -> str:
    """Return the SVG document of `graph` with its stitch `points`."""
    rows = blocks(graph)
    longest = max((row - source for row, block in enumerate(rows) for source in block.sources), default=1)
    left = 40 + _LANE * min(longest, 16)
    marks = {
        row: [p for p in points if int(p.name[1:].partition(".")[0]) in set(b.nodes)] for row, b in enumerate(rows)
    }
    height = _TOP + _ROW * len(rows) + (50 if points else 0)
    width = left + _WIDTH + (360 if points else 40)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{_STYLE}</style>",
        '<rect class="ground" width="100%" height="100%"/>',
        # A letter of it takes 10 pixels at most, as a mean: what does not fit would be cut off.
        f'<text class="title" x="{left}" y="28">{escape(_short(title, (width - left) // 10))}</text>',
    ]
    for row, block in enumerate(rows):
        parts += [_edge(source, row, left) for source in sorted(block.sources)]
    for row, block in enumerate(rows):
        y = _TOP + _ROW * row
        end = " end" if block.title.startswith("input ") else ""
        parts.append(f'<rect class="block{end}" x="{left}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{left + 10}" y="{y + 20}">{escape(_short(block.title or "(model)", 30))}</text>')
        count = f"{len(block.nodes)} operation{'s' * (len(block.nodes) != 1)}" if not end else ""
        parts.append(f'<text class="soft" x="{left + _WIDTH - 8}" y="{y + 20}" text-anchor="end">{count}</text>')
        parts += _marks(marks[row], left + _WIDTH, y)
    if points:
        parts += _legend(left, height - 22)
    return "\n".join([*parts, "</svg>\n"])


def page(svg: str, *, title: str) -> str:
    """Return an HTML page that shows `svg`; it needs no script and loads nothing."""
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return f"{head}</head>\n<body>\n{svg}</body></html>\n"


def _legend(left: int, y: int) -> list[str]:
    return [
        f'<circle class="clean" cx="{left + 6}" cy="{y - 4}" r="5"/>',
        f'<text class="soft" x="{left + 18}" y="{y}">stitch point, clean cut</text>',
        f'<circle class="bypassed" cx="{left + 166}" cy="{y - 4}" r="5"/>',
        f'<text class="soft" x="{left + 178}" y="{y}">stitch point with skips around it</text>',
    ]


def _edge(source: int, row: int, left: int) -> str:
    if source == row - 1:
        x, y = left + _WIDTH / 2, _TOP + _ROW * row
        return f'<path class="flow" d="M{x} {y - _ROW + _HEIGHT}V{y}"/>'
    from_y, to_y = _TOP + _ROW * source + _HEIGHT / 2 + 5, _TOP + _ROW * row + _HEIGHT / 2 - 5
    out = left - 14 - _LANE * min(row - source, 16)
    return f'<path class="skip" d="M{left} {from_y}C{out} {from_y} {out} {to_y} {left} {to_y}"/>'


def _marks(points: Sequence[Point], x: int, y: int) -> list[str]:
    """Draw a block's stitch points to its right: all as circles, the last one with its name and shape."""
    drawn = []
    for index, point in enumerate(points[-6:]):
        kind = "clean" if point.clean else "bypassed"
        label = f"{point.name} {point.shape}" + ("" if point.clean else f", {len(point.bypassed)} skips around it")
        at = x + 16 + 15 * index
        drawn.append(f'<circle class="{kind}" cx="{at}" cy="{y + 15}" r="5"><title>{escape(label)}</title></circle>')
    if points:
        at = x + 16 + 15 * min(len(points), 6)
        more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
        label = f"{points[-1].name}  {' x '.join(map(str, points[-1].shape))}{more}"
        drawn.append(f'<text class="soft" x="{at}" y="{y + 20}">{escape(label)}</text>')
    return drawn


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[-most + 1 :]
