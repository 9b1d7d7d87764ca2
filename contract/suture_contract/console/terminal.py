"""What all commands share: how errors and results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, TypeAdapter
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table

from suture_contract.console.tables import layout
from suture_contract.console.tokens import without_tokens
from suture_contract.errors import Cancelled, SutureError

#: For people; results for machines go to standard output. No line is broken: names, ids and dates can be copied.
console = Console(highlight=False, markup=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


Command = TypeVar("Command", bound=Callable[..., None])


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
        print(without_tokens(json.dumps({"error": error.as_dict()})), file=sys.stderr)
        return
    notes.print(f"error: {without_tokens(error.message)}", style="red")
    if error.where:
        notes.print(f"where: {without_tokens(error.where)}")
    hint = error.hint or error.usual_hint
    if hint:
        notes.print(f"next:  {without_tokens(hint)}")
    notes.print(f"code:  {error.code}", style="dim")


def prints(document: Any) -> Callable[[Command], Command]:
    """Say of a command what its `--format json` prints: a type that pydantic knows, or `module:name` of one.

    docs/reference/cli-json.md describes it.
    """

    def declared(command: Command) -> Command:
        command.prints = document  # type: ignore[attr-defined]
        return command

    return declared


def print_json(value: object) -> None:
    """Print a document of the type that the command `prints`; where the output takes no UTF-8, ASCII stands for it."""
    takes_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(_plain(value), indent=2, ensure_ascii=not takes_all))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    prose: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print rows under headings, or the line `empty` when there are none; `prose` and `spare` as in `layout`."""
    if not rows:
        notes.print(empty)
        return
    width = console.width if console.is_terminal else None
    table = layout(columns, rows, width=width, prose=prose, spare=spare)
    for line in table.heading:
        console.print(line, style="bold")
    for line in table.lines:
        console.print(line)
    if table.left_out:
        notes.print(f"left out: {', '.join(table.left_out)}; a wider terminal or --format json shows them", style="dim")


def confirm(question: str, *, yes: bool, what: str) -> None:
    """Ask before something is done that cannot be undone, unless the answer is given: `yes`.

    Raises `Cancelled`, with `what` is still so, for another answer, and `SutureError` (`command.unconfirmed`) where
    nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise SutureError(
            "command.unconfirmed",
            f"{what}: it needs a yes, and there is no terminal to ask at",
            where="--yes",
            hint="read what is said above, then give --yes",
        )
    if not typer.confirm(question, default=False, err=True):
        raise Cancelled(what)


def print_wide(table: Table | Group, on: Console = console) -> None:
    """Print a table that is styled, and what stands around it; in a pipe as wide as it is."""
    if on.is_terminal:
        on.print(table, soft_wrap=False, crop=False)
        return
    wanted = Measurement.get(on, on.options.update(width=10_000), table).maximum
    Console(file=on.file, width=wanted, highlight=False).print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return TypeAdapter(type(value)).dump_python(value, mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
