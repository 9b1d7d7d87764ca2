"""Groups of commands. A command's module is imported when that command is called: help and completion need none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from suture_contract.errors import SutureError


class Lazy(NamedTuple):
    """A command that is not imported yet: `where` is `module:function`, `help` the first sentence of its docstring."""

    where: str
    help: str


class Commands(TyperGroup):
    """A group of commands that ends with a message and the right exit code when one of them fails."""

    table: Mapping[str, Lazy | typer.Typer] = {}

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for name, entry in self.table.items():
            self.add_command(_stub(name, entry.help) if isinstance(entry, Lazy) else _made(name, entry), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(str(name)) if name is not None else command, rest

    def load(self, name: str) -> Any:
        """Return the command of that name, imported."""
        entry = self.table.get(name)
        return _made(name, _found(entry.where)) if isinstance(entry, Lazy) else self.commands[name]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SutureError as error:
            from suture_contract.console.terminal import Format, show_error

            show_error(error, Format(ctx.meta.get("suture.format", Format.text)))
            raise typer.Exit(error.exit_code) from None


def group(
    text: str, commands: Mapping[str, Lazy | typer.Typer] | None = None, *, completion: bool = False
) -> typer.Typer:
    """Return a group of `commands` with the help `text`; with `completion` it can be installed for the shell."""

    class Group(Commands):
        table = commands or {}

    return typer.Typer(
        cls=Group,
        help=text,
        no_args_is_help=True,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # their tables of local variables would show tokens
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def walk(command: Any, path: tuple[str, ...] = (), told: str = "") -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield every command below `command`, imported, with its path and what its group's help tells of it."""
    yield path, told, command
    for name, stub in getattr(command, "commands", {}).items():
        yield from walk(command.load(name), (*path, name), stub.help or "")


def _stub(name: str, text: str) -> TyperCommand:
    return TyperCommand(name=name, help=text)


def _found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _made(name: str, found: Any) -> Any:
    """Return the command of a function, or the group of a `typer.Typer`."""
    around = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        around.command(name)(found)
    return get_group(around).commands[name]
