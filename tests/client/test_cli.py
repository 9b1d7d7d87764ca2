"""The command line: help, results for people and machines, errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tests import cli_json
from tests.client.commands import suture
from typer.main import get_command

from suture.cli.app import app
from suture.errors import AuthError, NotFound, Refused, Unavailable
from suture.job import JobFailed
from suture_contract.console import tree
from suture_contract.console.tree import walk
from suture_contract.errors import Cancelled, Interrupted, SutureError
from suture_contract.exit_codes import EXIT_CODES, ExitCode


def commands() -> list[tuple[str, ...]]:
    return [path for path, _, _ in walk(get_command(app))]


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    ended = suture(*path, "--help")
    assert ended.exit_code == 0
    if path not in (("jobs",), ("hub", "party"), ("hub", "token"), ("hub", "site")):
        assert "Example" in ended.output


def test_the_exit_codes_are_documented_and_kept() -> None:
    numbered = {int(line.split()[0]) for line in EXIT_CODES.splitlines() if line.strip()[:1].isdigit()}
    assert numbered == {int(code) for code in ExitCode}
    for error, code in (
        (AuthError("a", "b"), 3),
        (NotFound("a", "b"), 4),
        (Refused("a", "b"), 5),
        (SutureError("a", "b"), 5),
        (Unavailable("a", "b"), 6),
        (JobFailed("a", "b"), 7),
        (Cancelled(), 7),
        (Interrupted("stopped"), 130),
    ):
        assert error.exit_code == code
    assert suture("publish").exit_code == 2
    assert suture("no-such-command").exit_code == 2


HEAVY = ["torch", "numpy", "pydantic", "httpx", "rich", "jinja2", "sqlalchemy", "fastapi", "celery", "alembic"]
HELPS = [["--version"], ["--help"], ["jobs", "--help"], ["hub", "-h"], ["hub", "token", "-h"], ["site", "inbox", "-h"]]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_help_and_version_import_none_of_what_commands_work_with(arguments: list[str]) -> None:
    code = (
        "import sys\nsys.argv[0] = 'suture'\nfrom suture.cli import main\n"
        f"try: main()\nfinally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) > 1
    of_typer = ["pydantic"] if len(arguments) > 1 else []  # it converts the values of a group's options with it
    assert lines[-1] in ("[]", str(of_typer))


def test_pytorch_s_compiled_part_writes_nothing_between_our_lines() -> None:
    """It warns of a kernel of even size under padding="same", on standard error and past Python's own warnings."""
    code = (
        "import sys\nsys.argv = ['suture', '--version']\nfrom suture.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "import torch\nconv = torch.ops.aten.conv2d.padding\n"
        "conv(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 4, 4), None, [1, 1], 'same', [1, 1], 1)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert ended.stderr == ""


ROOT = Path(__file__).parents[2]


def test_the_commands_of_other_packages_are_named_in_the_metadata() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][tree.ENTRY_POINTS]
    root = get_command(app)
    joined = {name for name, entry in root.table.items() if isinstance(entry, tree.Joined)}  # type: ignore[attr-defined]
    assert joined == set(points) == {"hub", "site", "demo", "up", "simulate"}
    installed = {point.name: point.value for point in entry_points(group=tree.ENTRY_POINTS)}
    assert installed == points, (
        "pip install -e . again: the metadata of this checkout are older than its pyproject.toml"
    )


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("sqlalchemy", ["hub", "migrate"], "service"),
        ("pydantic_settings", ["hub", "party", "list"], "service"),
        ("suture_service", ["hub", "serve"], "service"),
        ("suture_worker", ["site", "check"], "worker"),
        ("sklearn", ["up", "--root", "here"], "service,worker,demo"),
    ],
)
def test_a_missing_extra_is_named(missing: str, arguments: list[str], extra: str, tmp_path: Path) -> None:
    code = f"import sys\nsys.modules[{missing!r}] = None\nsys.argv[0] = 'suture'\nfrom suture.cli import main\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    settings = {"SUTURE_HUB_DATABASE_URL": f"sqlite:///{tmp_path / 'hub.db'}", "SUTURE_HUB_STORE": str(tmp_path)}
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, **settings}
    )
    assert ended.returncode == ExitCode.REFUSED, ended.stderr
    assert f"{missing} is not installed" in ended.stderr
    assert f"pip install '.[{extra}]'" in " ".join(ended.stderr.split())
    assert "suture.not_installed" in ended.stderr


def test_a_package_that_is_not_there_at_all_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "entry_points", lambda **_: ())
    ended = suture("hub", "migrate")
    assert ended.exit_code == ExitCode.REFUSED
    assert "pip install '.[service]'" in " ".join(ended.stderr.split())
    assert "hub " in suture("--help").output


def test_help_tells_of_a_command_what_the_command_tells_of_itself() -> None:
    for path, told, command in walk(get_command(app)):
        words = " ".join((command.help or "").split())
        assert words.startswith(" ".join(told.split()).removesuffix(".")), path


SHELLS = {
    "bash": {"COMP_WORDS": "suture jobs ", "COMP_CWORD": "2"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "suture jobs "},
    "fish": {"_TYPER_COMPLETE_ARGS": "suture jobs ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_completes_commands(shell: str, tmp_path: Path) -> None:
    def run(*arguments: str, **environment: str) -> str:
        told = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **environment}
        command = [sys.executable, "-m", "suture", *arguments]
        return subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout

    completed = run(_SUTURE_COMPLETE=f"complete_{shell}", **SHELLS[shell])
    assert all(name in completed for name in ("list", "show", "wait", "cancel", "retry"))
    assert "publish" not in completed
    assert f"{shell} completion installed" in run("--install-completion", shell)
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "_SUTURE_COMPLETE" in written


def test_the_page_of_json_documents_is_what_the_commands_say() -> None:
    assert all(kind is not None for _, kind in cli_json.printed())
    again = "it is not what the code says: make reference"
    assert cli_json.PAGE.read_text(encoding="utf-8") == cli_json.page(), again


def test_every_command_that_lists_or_shows_has_json() -> None:
    telling = {"list", "show", "models", "hubs", "report", "inspect", "verify", "check", "explain", "standing"}
    for path, _, _ in walk(get_command(app)):
        if path and path[-1] in telling:
            assert cli_json.prints_json(path), path


# An operator's commands
