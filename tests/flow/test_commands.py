"""`suture demo` and `suture up` as a newcomer runs them; and that nothing they started outlives them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest
from tests.browser import launched
from tests.flow.conftest import LONGEST
from tests.flow.first_run import walk
from typer.testing import CliRunner

from suture.cli.app import app
from suture.hub import Hub
from suture_contract.documents import Report
from suture_contract.model.metadata import ModelMetadata
from suture_local import digits, heart
from suture_local.shipped import as_used
from suture_local.training import accuracy
from suture_stitching.portable.runtime import load
from suture_worker.compute.forkserver import NAME

if TYPE_CHECKING:
    from tests.flow.conftest import Command

pytestmark = [pytest.mark.flow, pytest.mark.timeout(1800)]
README = Path(__file__).parents[2] / "README.md"
#: The fit is cut short: that its result is good is the demo's test.
QUICK: dict[str, Any] = {"refine_steps": 20, "max_matches": 1}


@pytest.fixture(scope="module")
def played(suture: type[Command], tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path]:
    """A demo, played to its end."""
    folder = tmp_path_factory.mktemp("demo")
    command = suture("demo", "--root", str(folder / "root"), home=folder)
    command.wait()
    return command, folder / "root"


def test_the_demo_reaches_its_targets_and_stops_everything(played: tuple[Command, Path]) -> None:
    command, root = played
    output = command.output.read_text()
    assert command.process.returncode == 0, output
    assert len(command.family) > 5, "hub, two sites, each with agent, worker and Redis"
    assert command.left_running() == []
    for part in ("own model", "plain ensemble", "verdict", "a prediction"):
        assert part in output
    assert "not declared" not in output
    report = Report.model_validate_json((root / "report.json").read_bytes())
    assert report.schema_ == "suture.report/1"
    assert len(re.findall(r"^met ", output, re.MULTILINE)) == len(re.findall(r", wanted ", output)) == 5
    told = re.search(r"on north's 269 test images: ([0-9.]+)% right", output)
    assert told is not None
    assert float(told[1]) == pytest.approx(100 * pulled_accuracy(root), abs=0.05)
    shown = re.search(
        r"This is the end of the output of a `suture demo`.*?```\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert shown is not None
    assert words(output).endswith(words(shown[1]))


def words(output: str) -> str:
    """Return what a demo says, less figures, digests and paths, and less what is chosen: processors differ in that."""
    text = re.sub(r"(?s)^Chosen for .*?(?=^party report)|^verdict .*?$", "", output, flags=re.MULTILINE)
    text = re.sub(r"(?<![0-9a-z])[0-9a-f]{16}|(?<![/\w])\S+(?=/report\.html)|\d[\d,.:]*", "#", text)
    return " ".join(text.split())


def test_the_demo_leaves_a_model_that_works_and_a_page_that_needs_nothing(played: tuple[Command, Path]) -> None:
    _, root = played
    accuracy = pulled_accuracy(root)
    report = json.loads((root / "report.json").read_text())
    chosen = next(candidate for candidate in report["candidates"] if candidate["id"] == report["chosen"])
    assert accuracy == pytest.approx(chosen["metrics"]["north"], abs=0.005)
    page = (root / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", page)
    assert "north" in page


def test_the_demo_keeps_the_parties_data_apart(played: tuple[Command, Path]) -> None:
    _, root = played
    for party, other in (("north", "south"), ("south", "north")):
        configuration = (root / party / "site" / "site.toml").read_text()
        assert str(root / party / "data") in configuration
        assert others_files(configuration, root / other) == {"key.pub"}, "whom it trusts, and nothing else"
    assert not list((root / "hub").rglob("*.npz"))


def test_four_hospitals_play_with_tables_that_are_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs in this process, which has imported torch: what it starts are processes as ever."""
    root = tmp_path / "root"
    for name in ("CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    ended = CliRunner().invoke(app, ["demo", "--story", "heart", "--root", str(root)])
    output = ended.output
    assert ended.exit_code == 0, output
    assert psutil.wait_procs(list(named(root)), timeout=60)[1] == []
    assert "cleveland asks for a stitch" in output
    assert "hungarian, switzerland and va evaluate, too" in output
    assert len(re.findall(r"^met .*, wanted ", output, re.MULTILINE)) == 3
    assert len(re.findall(r"^shown .*, no target$", output, re.MULTILINE)) == 3
    report = Report.model_validate_json((root / "report.json").read_bytes())
    assert set(report.parties) == set(heart.PARTIES)
    assert not report.missing
    assert "not declared" not in output
    told = re.search(r"on cleveland's 91 test patients: ([0-9.]+)% right", output)
    assert told is not None
    parties, metadata = heart.parties(0), ModelMetadata.read(root / "ensemble" / "suture.json")
    learnt = {party: data.of("train")[1] for party, data in parties.items()}
    pulled = as_used(load(root / "ensemble" / "model.safetensors"), metadata, learnt)
    for party, data in parties.items():
        found = accuracy(pulled[party], *data.of("test"))
        assert found == pytest.approx(report.parties[party].rows["chosen"].value, abs=0.005)
        if party == "cleveland":
            assert float(told[1]) == pytest.approx(100 * found, abs=0.05)
        configuration = (root / party / "site" / "site.toml").read_text()
        for other in set(heart.PARTIES) - {party}:
            assert others_files(configuration, root / other) == {"key.pub"}, "whom it trusts, and nothing else"
    assert not list((root / "hub").rglob("*.csv"))


def test_an_interrupted_demo_leaves_no_process(suture: type[Command], tmp_path: Path) -> None:
    """While its processes start; `suture up`, below, is interrupted in the middle of a job."""
    command = suture("demo", "--root", str(tmp_path / "root"), home=tmp_path)
    command.wait_for("a hub, and at each party a site")
    command.wait_until(lambda: len(command.family) >= 4)
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output.read_text()
    assert command.left_running() == []


@pytest.fixture(scope="module")
def up(suture: type[Command], tmp_path_factory: pytest.TempPathFactory) -> tuple[Command, Path, str]:
    """`suture up`, its root, and what it printed; the last test interrupts it."""
    home = tmp_path_factory.mktemp("up")
    command = suture("up", "--root", str(home / "root"), home=home)
    return command, home / "root", command.wait_for("Ctrl-C stops")


def test_a_stranger_comes_from_the_address_to_the_report(up: tuple[Command, Path, str]) -> None:
    (address,) = re.findall(r"^  (http://127\.0\.0\.1:\d+/#\S+)$", up[2], re.MULTILINE)
    with launched() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
        context.set_default_timeout(1000 * LONGEST)
        hosts: set[str] = set()
        context.on("request", lambda sent: hosts.add(str(urlsplit(sent.url).hostname)))
        walk(context, address)
        assert hosts == {"127.0.0.1"}
        # The link is used up.
        other = browser.new_context().new_page()
        other.goto(address)
        other.get_by_role("alert").wait_for()


def test_what_up_tells_to_type_works_and_a_second_up_goes_on(
    suture: type[Command], up: tuple[Command, Path, str], tmp_path: Path
) -> None:
    command, root, told = up
    token = (root / "north" / "token").read_text().strip()
    assert token not in told
    typed = re.findall(r"^  (\S.*suture.*)$", told.partition("in another terminal")[2], re.MULTILINE)
    assert len(typed) == 3
    for line in typed:
        quick = "".join(f" --option {name}={value}" for name, value in QUICK.items()) * (" stitch " in line)
        ended = run(line + quick, tmp_path)
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    report = json.loads(run("suture report north/stitched --format json", tmp_path).stdout)
    assert report["requester"] == "north"
    job = hub_of(told, token).stitch(["north/first", "north/second"], "digits", publish_as="again", **QUICK)
    command.wait_until(lambda: at_work(command))
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130, command.output.read_text()
    assert command.left_running() == []

    again = suture("up", "--root", str(root), home=tmp_path)
    told = again.wait_for("Ctrl-C stops")
    assert token not in told
    assert run(re.findall(r"^  (.*login.*)$", told, re.MULTILINE)[0], tmp_path).returncode == 0
    assert hub_of(told, token).job(job.id).wait(240, progress=False).state == "complete"
    models = json.loads(run("suture models --format json", tmp_path).stdout)
    assert {model["id"] for model in models} >= {f"north/{name}" for name in ("first", "second", "stitched", "again")}
    again.process.send_signal(signal.SIGTERM)
    assert again.wait() == 143
    assert again.left_running() == []


def hub_of(told: str, token: str) -> Hub:
    """Return the hub that `suture up` says to sign in at."""
    address = re.search(r"--hub (http://\S+)", told)
    assert address is not None
    return Hub(address[1], token)


def at_work(command: Command) -> bool:
    """Whether a task's process runs below the command."""
    for process in command.family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == NAME:
                return True
    return False


def named(folder: Path) -> Iterator[psutil.Process]:
    """Yield the processes that were started with a file of the folder: sites, agents, workers and Redis."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                yield process


def others_files(configuration: str, folder: Path) -> set[str]:
    """Return what a site's configuration names of another party's folder."""
    return set(re.findall(rf"{re.escape(str(folder))}/([^\"]+)", configuration))


def pulled_accuracy(root: Path) -> float:
    """Return what part of north's test images the file in the demo's folder names rightly."""
    return accuracy(load(root / "ensemble" / "model.safetensors"), *digits.parties(0)["north"].of("test"))


def run(line: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Type a line into another terminal."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CONFIG_HOME": str(home / "config")}
    environment |= {"XDG_CACHE_HOME": str(home / "cache")}
    return subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
