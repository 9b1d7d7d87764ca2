"""Listings of what a hub answers: lists that show themselves in a notebook and become tables of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from markupsafe import Markup

from suture_contract.extras import needs

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows that a notebook shows; the rest is counted.
SHOWN = 100


class Tabular(Protocol):
    """What can be a line of a table."""

    def row(self) -> Mapping[str, Any]:
        """Return its cells by column."""


T = TypeVar("T", bound=Tabular)


class Listing(list[T], Generic[T]):
    """A list of models, jobs, parties and the like; `to_dataframe` needs pandas (the extra `tables`)."""

    def to_dataframe(self) -> DataFrame:
        """Return a `pandas.DataFrame`, a line for each; raises `SutureError` `suture.not_installed` without pandas."""
        return frame([item.row() for item in self])

    def _repr_html_(self) -> str:
        return html_table([item.row() for item in self[:SHOWN]], more=len(self) - SHOWN)


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Return rows as a `pandas.DataFrame`."""
    with needs("tables"):
        from pandas import DataFrame

    return DataFrame(list(rows))


def html_table(rows: Sequence[Mapping[str, Any]], *, more: int = 0) -> str:
    """Return an HTML table of rows, every cell escaped; `more` rows are not shown."""
    if not rows:
        return "<p>nothing</p>"
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in rows[0])
    lines = [
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td>{}</td>").format(_text(row[column])) for column in row)
        )
        for row in rows
    ]
    note = Markup("<p>and {} more</p>").format(more) if more > 0 else ""
    return str(
        Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}").format(
            head, Markup("").join(lines), note
        )
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(_text, value))
    return str(value)
