"""Text of others in Markdown: shown as it is, never a heading, a link, HTML or the end of a table."""

from __future__ import annotations

import re

#: What means something anywhere in a line. A pipe is escaped as an entity: a backslash before it in a table is read
#: differently from one renderer to the next.
_ANYWHERE = str.maketrans({**{sign: f"\\{sign}" for sign in "\\`*_[]<>#~&$"}, "|": "&#124;"})
#: What means something at the start of a line: lists, rules, underlined headings, the second row of a table.
_AT_START = re.compile(r"^(?:(?=[-+=:])|([0-9]{1,9})(?=[.)]))")


def line(text: str) -> str:
    """Return Markdown that shows `text` in one line, runs of white space as one space."""
    return _AT_START.sub(r"\1\\", " ".join(text.split()).translate(_ANYWHERE))


def paragraphs(text: str) -> str:
    """Return Markdown that shows `text` with its lines and, where lines are empty, its paragraphs."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(line, text.splitlines()))).strip("\n")


def table(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table; the first of `rows` is its head. The cells are Markdown of one line each."""
    head, *body = rows
    return [_row(head), "|" + "---|" * len(head), *map(_row, body)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
