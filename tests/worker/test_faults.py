"""A failure's id finds what happened, at the site alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.security.test_logs import ACTING
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.exit_codes import ExitCode
from suture_worker import faults


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's configuration whose log holds two failures."""
    (tmp_path / "state" / "logs").mkdir(parents=True)
    for task, id, text in (("task_1", "0123456789abcdef", "disk [full] at /x"), ("task_2", "f" * 16, "another")):
        faults.note(tmp_path / "state", task=task, code="work.failed", correlation_id=id, text=text)
    config = tmp_path / "site.toml"
    config.write_text('[hub]\nurl = "http://127.0.0.1:1"\n\n[site]\nstate = "state"\n', encoding="utf-8")
    return config


@pytest.mark.parametrize("id", ["0123456789abcdef", "task_1"])
def test_the_id_finds_its_line(site: Path, id: str) -> None:
    found = CliRunner().invoke(app, ["site", "failure", id, "--config", str(site)])
    assert found.exit_code == 0, found.output
    assert "disk [full] at /x" in found.stdout
    assert "work.failed" in found.stdout
    assert "another" not in found.stdout
    named = CliRunner().invoke(app, ["site", "failure", id, str(site)])
    assert named.stdout == found.stdout


def test_an_id_of_elsewhere_is_not_found(site: Path) -> None:
    found = CliRunner().invoke(app, ["site", "failure", "0" * 16, "--config", str(site)])
    assert found.exit_code == ExitCode.REFUSED
    assert "site.no_failure" in found.stderr
    assert "suture jobs show" in found.stderr


@pytest.mark.parametrize("text", ACTING)
def test_what_a_strangers_file_says_acts_on_no_terminal(site: Path, text: str) -> None:
    faults.note(site.parent / "state", task="task_3", code="model.operator", correlation_id="a" * 16, text=text)
    kept = (site.parent / "state" / "logs" / "failures.log").read_bytes()
    assert kept.isascii()
    assert kept.count(b"\n") == 3
    shown = CliRunner().invoke(app, ["site", "failure", "a" * 16, "--config", str(site)])
    assert shown.exit_code == 0, shown.output
    assert all(line.replace("\t", "").isprintable() for line in shown.stdout.split("\n"))
