"""Rows under headings as lines of text. Names, ids and dates are never broken or cut off.

In a pipe each row is one line, in which a long text is followed by the next column at once. At a terminal that is too
narrow, prose is wrapped at spaces, then columns that can be spared are left out, and at last each row becomes a block
of lines `heading  cell`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from suture_contract.console.plain import one_line

_GAP = "  "
_PROSE = 24  # columns below which wrapped prose is no longer readable
_ALIGNED = 40  # columns above which a pipe's rows are not filled up to the longest


@dataclass(frozen=True)
class TableLayout:
    """The lines of the heading, none where each row is a block, those below it, and which columns were left out.

    `rows` says for each line which row it belongs to.
    """

    heading: list[str]
    lines: list[str]
    rows: list[int]
    left_out: tuple[str, ...]


def layout(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    width: int | None,
    prose: Collection[str] = (),
    spare: Sequence[str] = (),
) -> TableLayout:
    """Return the table in `width` columns of text; with None in as many as it takes, as a pipe has it.

    Headings may be wrapped at spaces, and so may columns in `prose`. Those in `spare` may be left out, in this order.
    """
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    if width is None:
        return _unwrapped(columns, cells, prose)
    for count in range(len(spare) + 1):
        kept = [index for index, name in enumerate(columns) if name not in spare[:count]]
        names = [columns[index] for index in kept]
        picked = [[row[index] for index in kept] for row in cells]
        widths = _widths(names, picked, width, [name in prose for name in names])
        if widths is not None:
            lines = [(index, line) for index, row in enumerate(picked) for line in _wrapped(row, widths)]
            return _laid(_wrapped(names, widths), lines, spare[:count])
    return _laid([], _blocks(columns, cells), ())


def _laid(heading: list[str], lines: Sequence[tuple[int, str]], left_out: Sequence[str]) -> TableLayout:
    return TableLayout(heading, [line for _, line in lines], [index for index, _ in lines], tuple(left_out))


def _unwrapped(columns: Sequence[str], rows: Sequence[Sequence[str]], prose: Collection[str]) -> TableLayout:
    """Return a line for each row, in which short columns stand below each other."""
    natural = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    widths = [
        0 if name in prose or length > _ALIGNED else length for name, length in zip(columns, natural, strict=True)
    ]
    heading, *lines = (_joined(row, widths) for row in (columns, *rows))
    return _laid([heading], list(enumerate(lines)), ())


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]], width: int, prose: Sequence[bool]) -> list[int] | None:
    """Return how wide each column is, None if they do not fit."""
    texts = [[row[index] for row in rows] for index in range(len(names))]
    natural = [max(map(cell_len, [name, *column])) for name, column in zip(names, texts, strict=True)]
    least = [
        max(_longest_word(name), *(_least(text) if wraps else cell_len(text) for text in column))
        for name, column, wraps in zip(names, texts, prose, strict=True)
    ]
    room = width - len(_GAP) * (len(names) - 1) - sum(least)
    if room < 0:
        return None
    for index, full in enumerate(natural):
        more = min(full - least[index], room)
        least[index] += more
        room -= more
    return least


def _least(text: str) -> int:
    """Return the least width in which prose is readable."""
    return min(cell_len(text), max(_longest_word(text), _PROSE))


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    parts = [
        [text] if cell_len(text) <= width else _folded(text, width) for text, width in zip(row, widths, strict=True)
    ]
    height = max(map(len, parts))
    padded = [column + [""] * (height - len(column)) for column in parts]
    return [_joined(line, widths) for line in zip(*padded, strict=True)]


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(text + " " * (width - cell_len(text)) for text, width in zip(cells, widths, strict=True)).rstrip()


def _folded(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    width = max(map(cell_len, columns))
    lines: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        lines += [(index, "")] if lines else []
        lines += [
            (index, f"{name}{' ' * (width - cell_len(name))}{_GAP}{text}")
            for name, text in zip(columns, row, strict=True)
            if text
        ]
    return lines
