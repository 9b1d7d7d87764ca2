"""Commands as a user types them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests import cli_json
from typer.testing import CliRunner

from suture.cli.app import app

if TYPE_CHECKING:
    from click.testing import Result


def suture(*arguments: str | Path, given: str | None = None) -> Result:
    words = [str(argument) for argument in arguments]
    ended = CliRunner().invoke(app, words, input=given)
    if "json" in words and ended.exit_code == 0:
        cli_json.checked(words, ended.stdout)
    return ended
