"""What a machine does to the client: disks, homes, accounts, languages. No traceback, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests import machines
from tests.machines import suture

from suture_contract.console.unforeseen import unforeseen
from suture_contract.errors import SutureError
from suture_contract.files import replacing
from suture_contract.model.metadata import ModelMetadata

if TYPE_CHECKING:
    from tests.client.conftest import LiveHub

MODULE = """
import torch
torch.manual_seed(0)
def trained():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
def broken(*_, **__):
    raise ZeroDivisionError("suture_north_c2VjcmV0c2VjcmV0 is my token")
"""
EXPORT = ("--shape", "1,4,4", "--labels", "nüchtern,gefüllt", "--license", "CC0-1.0", "--description", "Gefäße")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "networks.py").write_text(MODULE, encoding="utf-8")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "networks.py").write_text(MODULE, encoding="utf-8")
    ended = machines.run(
        under_027(suture("export", "networks:trained", "out", *EXPORT)), folder=folder, environment=of(folder)
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return folder / "out"


@pytest.fixture
def model(home: Path, exported: Path) -> Path:
    """A folder with a model whose words are not all ASCII."""
    return Path(shutil.copytree(exported, home.parent / "out"))


@pytest.fixture
def published(live_hub: LiveHub, model: Path) -> dict[str, str]:
    """The environment of a party whose model is at the hub."""
    live_hub.client("north").publish_file(model, "north/vessels", visibility="all")
    return {"SUTURE_HUB": live_hub.url, "SUTURE_TOKEN": live_hub.token("north")}


def under_027(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` where the group may read what is written, and others nothing."""
    return ["sh", "-c", 'umask 027; exec "$@"', "sh", *command]


def of(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "LC_ALL": "C.UTF-8"}


def refused(command: Sequence[str], environment: Mapping[str, str], *, status: int = 5, **options: object) -> str:
    """Run a command that is to be refused in so many words, and return them."""
    ended = machines.run(command, environment=environment, **options)  # type: ignore[arg-type]
    said = ended.stderr.decode()
    assert "Traceback" not in said
    assert ended.returncode == status, said
    assert "\nnext:  " in said
    return said


# Disks


@pytest.mark.parametrize("limited", [True, False], ids=["a limit for files", "a small disk"])
def test_a_pull_onto_a_full_disk_leaves_nothing(home: Path, published: dict[str, str], limited: bool) -> None:
    target = home.parent / "pulled"
    target.mkdir()
    command = suture("pull", "north/vessels", target)
    # What is left on the small disk is looked at from within.
    script = "import os, sys, subprocess as s; e = s.call(sys.argv[1:]); print(os.listdir('pulled')); exit(e)"
    command = [command[0], "-c", script, *command]
    if not limited:
        command = machines.small_disk(target, 4, command)
    ended = machines.run(
        command, environment={**of(home), **published}, folder=home.parent, largest_file=500 if limited else None
    )
    said = ended.stderr.decode()
    assert ended.returncode == 5, said
    assert "Traceback" not in said
    assert "full" in said
    left = ended.stdout.decode().strip().splitlines()[-1]
    assert "part" not in left
    assert "model.safetensors" not in left


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "full"])
def test_a_report_where_none_can_be_written(home: Path, report: Path, read_only: bool) -> None:
    place = home.parent / "disk"
    place.mkdir()
    command = suture("report", report, "--html", place / "report.html")
    said = refused(machines.small_disk(place, 4, command, read_only=read_only), of(home))
    assert ("read-only" if read_only else "full") in said
    assert str(place / "report.html") in said


@pytest.fixture
def report(home: Path) -> Path:
    from tests.stitching.reports import report as made

    path = home.parent / "report.json"
    path.write_text(made().model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    return path


def test_an_export_onto_a_full_disk(home: Path) -> None:
    command = suture("export", "networks:trained", "out", *EXPORT)
    said = refused(command, of(home), folder=home.parent, largest_file=200)
    assert "full" in said
    assert not (home.parent / "out").exists()


def test_an_answer_onto_a_full_disk(home: Path, report: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            suture("report", report), stdout=full, stderr=subprocess.PIPE, env={**os.environ, **of(home)}, check=False
        )
    assert b"Traceback" not in ended.stderr
    assert b"full" in ended.stderr
    assert ended.returncode == 5


def test_a_device_is_written_to_and_not_replaced(home: Path, report: Path) -> None:
    ended = machines.run(suture("report", report, "--html", "/dev/stdout"), environment=of(home))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.lstrip().startswith(b"<!")
    assert Path("/dev/stdout").is_symlink()


def test_files_that_cannot_be_locked(home: Path, published: dict[str, str]) -> None:
    """The cache's own library would wait for a lock for ever."""
    command = machines.without_locks(suture("pull", "north/vessels", "pulled"))
    ended = machines.run(command, environment={**of(home), **published}, folder=home.parent, seconds=120)
    assert ended.returncode == 0, ended.stderr.decode()
    assert (home.parent / "pulled" / "model.safetensors").is_file()


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o022])
def test_what_is_shared_follows_the_umask_and_a_secret_never_does(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for private, mode in ((False, 0o666 & ~umask), (True, 0o600)):
            with replacing(tmp_path / "file", private=private) as temporary:
                temporary.write_bytes(b"x")
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_all_files_of_a_pull_and_an_export_follow_the_umask(
    home: Path, published: dict[str, str], exported: Path
) -> None:
    command = under_027(suture("pull", "north/vessels", "pulled"))
    ended = machines.run(command, environment={**of(home), **published}, folder=home.parent)
    assert ended.returncode == 0, ended.stderr.decode()
    # Where no bar can be drawn, nothing is left of it, not even an empty line.
    assert all(ended.stderr.splitlines()), ended.stderr
    for folder in (home.parent / "pulled", exported):
        files = list(folder.iterdir())
        assert {path.stat().st_mode & 0o777 for path in files} == {0o640}, folder
        assert len(files) == 3


# Homes and accounts


def test_an_account_without_name_and_home(home: Path, published: dict[str, str], model: Path) -> None:
    command = machines.as_nobody(suture("pull", "north/vessels", "pulled"))
    said = refused(command, published, folder=home.parent)
    assert "home.unknown" in said
    assert "set HOME" in said
    ended = machines.run(command, environment={**published, "HOME": str(home)}, folder=home.parent)
    assert ended.returncode == 0, ended.stderr.decode()
    # The network's own library asks for the account's name, too.
    script = "import sys, torch; from suture_stitching.portable.runtime import load; load(sys.argv[1])"
    ended = machines.run(machines.as_nobody([suture()[0], "-c", script, str(model / "model.safetensors")]))
    assert ended.returncode == 0, ended.stderr.decode()


@pytest.mark.parametrize(
    ("command", "variable"),
    [(("pull", "north/vessels", "pulled"), "XDG_CACHE_HOME"), (("login",), "XDG_CONFIG_HOME")],
)
def test_a_home_that_cannot_be_written_to(
    home: Path, published: dict[str, str], command: tuple[str, ...], variable: str
) -> None:
    environment = {**published, "HOME": "/dev/null"}
    if command == ("login",):
        (home.parent / "token").write_text(environment.pop("SUTURE_TOKEN"), encoding="utf-8")
        (home.parent / "token").chmod(0o600)
        command = ("login", "--token-file", "token")
    said = refused(suture(*command), environment, folder=home.parent)
    assert variable in said
    assert "/dev/null" in said


# Languages


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The language settings of a German machine of 1998."""
    folder = tmp_path_factory.mktemp("locales")
    try:
        command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
        made = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs localedef")
    if not (folder / "de_DE.ISO-8859-1").is_dir():
        pytest.skip(f"needs the definitions of languages: {made.stderr.decode(errors='replace')}")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_files_are_utf8_on_a_machine_that_is_not(home: Path, latin: dict[str, str]) -> None:
    arguments = [part.encode("latin-1") for part in suture("export", "networks:trained", "out", *EXPORT)]
    ended = subprocess.run(
        arguments, capture_output=True, cwd=home.parent, env={**os.environ, "HOME": str(home), **latin}, check=False
    )
    assert ended.returncode == 0, ended.stderr
    metadata = ModelMetadata.read(home.parent / "out" / "suture.json")
    assert (metadata.description, metadata.labels) == ("Gefäße", ("nüchtern", "gefüllt"))
    assert "Gefäße" in (home.parent / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["latin", "ascii"])
def test_umlauts_are_shown_as_well_as_the_terminal_can(
    request: pytest.FixtureRequest, home: Path, model: Path, published: dict[str, str], kind: str
) -> None:
    language = request.getfixturevalue("latin") if kind == "latin" else ASCII
    environment = {**published, "HOME": str(home), **language}
    shown = machines.run(suture("inspect", model), environment=environment)
    assert shown.returncode == 0, shown.stderr
    encoding, word = ("latin-1", "nüchtern") if kind == "latin" else ("ascii", "n?chtern")
    assert word in shown.stdout.decode(encoding)
    ended = machines.run(suture("models", "vessels", "--format", "json"), environment=environment)
    assert ended.returncode == 0, ended.stderr
    assert "nüchtern" in json.dumps(json.loads(ended.stdout), ensure_ascii=False)


def test_a_card_goes_to_the_hub_and_comes_back_as_it_was(home: Path, model: Path, published: dict[str, str]) -> None:
    """Where anything but ASCII, read or written in the machine's own encoding, would be an error."""
    environment = {**published, "HOME": str(home), **ASCII}
    ended = machines.run(suture("publish", model, "north/again", "--yes"), environment=environment)
    assert ended.returncode == 0, ended.stderr
    ended = machines.run(suture("pull", "north/again", "again"), environment=environment, folder=home.parent)
    assert ended.returncode == 0, ended.stderr
    assert "Gefäße" in (home.parent / "again" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_a_document_that_another_program_saved(model: Path, encoding: str) -> None:
    path = model / "suture.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    if encoding == "utf-8-sig":
        assert ModelMetadata.read(path).description == "Gefäße"
        return
    with pytest.raises(SutureError) as caught:
        ModelMetadata.read(path)
    assert (caught.value.code, caught.value.where) == ("metadata.encoding", str(path))
    assert "UTF-8" in str(caught.value.hint)
    assert ("UTF-16" in caught.value.message) is (encoding == "utf-16")


# What nobody foresaw


def test_what_nobody_foresaw_is_told_in_a_line_and_kept_in_a_file(home: Path) -> None:
    # A part of the program is replaced by one that fails as nobody foresaw.
    script = (
        "import suture.bundle, networks\n"
        "suture.bundle.export_model = networks.broken\n"
        "from suture.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, *suture("export", "networks:trained", "out", *EXPORT)[3:]]
    said = refused(command, of(home), folder=home.parent, status=1)
    where = re.search(r"^where: (.+)$", said, re.MULTILINE)
    assert where is not None
    path = Path(where[1])
    assert path.is_relative_to(home)
    assert path.stem in said.partition("where:")[0]
    kept = path.read_text(encoding="utf-8")
    assert "ZeroDivisionError" in kept
    assert "networks.py" in kept
    assert "c2VjcmV0" not in kept + said
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_persons_own_code_raises_is_told_without_tokens(home: Path) -> None:
    said = refused(suture("export", "networks:broken", "out", *EXPORT), of(home), folder=home.parent)
    assert "ZeroDivisionError" in said
    assert "networks.py" in said
    assert "c2VjcmV0" not in said


def test_without_a_home_it_is_kept_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # asked for anew
    where = unforeseen(ZeroDivisionError("none")).where
    assert where is not None
    assert where.startswith(f"{tmp_path}/error-")
    assert "ZeroDivisionError" in Path(where).read_text(encoding="utf-8")
