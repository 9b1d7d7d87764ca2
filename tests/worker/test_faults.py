"""A failure's id finds what happened, at the site alone."""

from __future__ import annotations

from pathlib import Path

import pytest
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


def test_an_id_of_elsewhere_is_not_found(site: Path) -> None:
    found = CliRunner().invoke(app, ["site", "failure", "0" * 16, "--config", str(site)])
    assert found.exit_code == ExitCode.REFUSED
    assert "site.no_failure" in found.stderr
    assert "suture jobs show" in found.stderr
