"""How cells that are no plain numbers write numbers: what is to be corrected is said by its kind, not by a value."""

from __future__ import annotations

import re
from collections.abc import Collection

_NUMBER = r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?"
_PLAIN = re.compile(_NUMBER.replace("[.,]", r"\."))
#: What a cell is by its form, and what to do, the surest first.
_KINDS = (
    (
        "dates or times",
        r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?:[ T].*)?|\d{1,2}:\d{2}(?::\d{2})?",
        "compute a number from it, an age say, or leave it out of features",
    ),
    (
        "shares in %",
        rf"{_NUMBER}\s*%",
        "write the numbers alone, as the models were trained, or leave it out of features",
    ),
    (
        "bounds, a sign such as < before a number",
        rf"[<>≤≥~]=?\s*{_NUMBER}",
        "write a number for each bound, as the models were trained; or leave these cells empty; or leave it out of "
        "features",
    ),
    (
        "thousands that are set apart",
        r"[+-]?\d{1,3}([ \u00a0\u202f\u2009'’,.])\d{3}(?:\1\d{3})*(?:[.,]\d+)?",
        "write them without a sign for thousands, 1234, or leave the column out of features",
    ),
    (
        "decimal commas",
        r"[+-]?\d+,\d+",
        "write decimal points; or part the cells by semicolons, then decimal commas are read",
    ),
    (
        "units behind its numbers",
        rf"{_NUMBER}\s*[A-Za-zµμ°/‰*²³^][\w\s./‰*²³^µμ°-]*",
        "write the numbers alone, all in one unit, and name the unit in the header; or leave it out of features",
    ),
)
_FORMS = tuple((what, re.compile(form), how) for what, form, how in _KINDS)


def is_plain(cell: str) -> bool:
    """Whether a cell is a number with a decimal point or none."""
    return _PLAIN.fullmatch(cell.strip()) is not None


def written_as(cells: Collection[str]) -> tuple[str, str] | None:
    """Return what cells, none of them a plain number, all hold, and what to do; None if it is several things."""
    for what, form, how in _FORMS:
        if cells and all(form.fullmatch(cell.strip()) for cell in cells):
            return what, how
    return None


__all__ = ["is_plain", "written_as"]
