"""Groups of commands. A command's module is imported when that command is called: help and completion need none."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from suture_contract.errors import SutureError
from suture_contract.extras import needs, not_installed
from suture_contract.files import trouble

ENTRY_POINTS = "suture.commands"
#: Under which name a command's context has the package whose logs are shown.
_LOGS = "suture.logs"


class Lazy(NamedTuple):
    """A command that is not imported yet: `where` is `module:function`, `help` the first sentence of its docstring."""

    where: str
    help: str

    @property
    def extra(self) -> str | None:
        """What brings what it may import; None for a command of a `Joined` group, which knows."""
        return "torch" if self.where.startswith("suture.") else None


class Joined(NamedTuple):
    """A command of another package, which names it in its entry points; `extra` installs it."""

    help: str
    extra: str


Entry = Lazy | Joined | typer.Typer


class Command(TyperCommand):
    """A command that shows the logs of what it operates."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; help needs no logs, and so nothing that makes them is imported for it."""
        if logs := ctx.meta.get(_LOGS):
            from suture_contract.console.logs import configure_logging

            configure_logging("warning", logs)
        return super().invoke(ctx)


class Commands(TyperGroup):
    """A group of commands that ends with a message and the right exit code when one of them fails."""

    table: Mapping[str, Entry] = {}
    #: The package whose logs its commands show on standard error; None where there are none.
    logs: str | None = None

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in self.table.items():
            self.add_command(_made(name, entry) if isinstance(entry, typer.Typer) else _stub(name, entry.help), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is named, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            try:
                command = self.load(str(name))
            except SutureError:
                if not ctx.resilient_parsing:  # the shell asks what could follow: nothing does
                    raise
        return name, command, rest

    def load(self, name: str) -> Any:
        """Return the command of that name, imported."""
        entry = self.table.get(name)
        if not isinstance(entry, Lazy | Joined):
            return self.commands[name]
        with needs(entry.extra, f"suture {name}") if entry.extra else nullcontext():
            return _made(name, _imported(entry.where) if isinstance(entry, Lazy) else _joined(name, entry))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with self._what_is_missing_named(ctx):
                if self.logs is not None:
                    ctx.meta[_LOGS] = self.logs
                return super().invoke(ctx)
        except SutureError as error:
            raise _exit_for(error, ctx) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read our output has gone
                raise
            raise _exit_for(trouble(error), ctx) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):  # a wrong command line, or its end
                raise
            if isinstance(error, ModuleNotFoundError) and ctx.parent is not None:  # the group around it names it
                raise
            from suture_contract.console.unforeseen import unforeseen

            raise _exit_for(unforeseen(error), ctx) from None

    @contextmanager
    def _what_is_missing_named(self, ctx: Any) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            entry = self.table.get(ctx.invoked_subcommand or "")
            if not isinstance(entry, Lazy | Joined) or entry.extra is None:
                raise
            with needs(entry.extra, f"suture {ctx.invoked_subcommand}"):
                raise error


def _exit_for(error: SutureError, context: Any) -> typer.Exit:
    """Print what is wrong, and return what ends the command."""
    from suture_contract.console.terminal import Format, show_error

    show_error(error, Format(context.meta.get("suture.format", Format.text)))
    return typer.Exit(error.exit_code)


def group(
    text: str, commands: Mapping[str, Entry] | None = None, *, completion: bool = False, shows: str | None = None
) -> typer.Typer:
    """Return a group of `commands` with the help `text`; with `completion` it can be installed for the shell.

    What the package `shows` logs as a warning is shown on standard error.
    """

    class CommandGroup(Commands):
        table = commands or {}
        logs = shows

    return typer.Typer(
        cls=CommandGroup,
        help=text,
        no_args_is_help=True,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # their tables of local variables would show tokens
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def walk(command: Any, path: tuple[str, ...] = (), summary: str = "") -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield every command below `command`, imported, with its path and what its group's help tells of it."""
    yield path, summary, command
    for name, stub in getattr(command, "commands", {}).items():
        yield from walk(command.load(name), (*path, name), stub.help or "")


def _stub(name: str, text: str) -> TyperCommand:
    return TyperCommand(name=name, help=text)


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _joined(name: str, entry: Joined) -> Any:
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    raise not_installed("what this command belongs to", entry.extra, f"suture {name}")


def _made(name: str, target: Any) -> Any:
    """Return the command of a function, or the group of a `typer.Typer`."""
    around = typer.Typer(rich_markup_mode=None)
    if isinstance(target, typer.Typer):
        around.add_typer(target, name=name)
    else:
        around.command(name, cls=Command)(target)
    return get_group(around).commands[name]
