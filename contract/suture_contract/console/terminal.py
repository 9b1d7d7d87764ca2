"""What all commands share: how errors and results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suture_contract.errors import SutureError

#: For people; results for machines go to standard output.
console = Console(highlight=False, markup=False)
notes = Console(stderr=True, highlight=False, markup=False)


_UNFOLDED = 240  # so that in a file or a pipe each row is one line


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


def _remember(context: typer.Context, value: Format) -> Format:
    context.meta["suture.format"] = value
    return value


FormatOption = Annotated[
    Format, typer.Option("--format", callback=_remember, is_eager=True, help="text for people, json for machines")
]


def show_error(error: SutureError, form: Format = Format.text) -> None:
    """Print what is wrong, where, and what to do next, on standard error."""
    if form is Format.json:
        print(json.dumps({"error": error.as_dict()}), file=sys.stderr)
        return
    notes.print(f"error: {error.message}", style="red", soft_wrap=True)
    if error.where:
        notes.print(f"where: {error.where}", soft_wrap=True)
    hint = error.hint or error.usual_hint
    if hint:
        notes.print(f"next:  {hint}", soft_wrap=True)
    notes.print(f"code:  {error.code}", style="dim")


def print_json(value: BaseModel | Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a document on standard output."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under headings, or the line `empty` when there are none."""
    if not rows:
        notes.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # as Text: no markup from names is interpreted
    console.print(table, width=None if console.is_terminal else _UNFOLDED)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
