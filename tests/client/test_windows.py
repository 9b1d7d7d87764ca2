"""The client where Unix's own modules are missing, as on Windows: it works, and what does not run there says so.

No Windows is at hand here: its names and its missing modules are played, its file system is not.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests import machines

from suture.bundle import export_model
from suture.credentials import read_private
from suture_contract import windows
from suture_contract.errors import SutureError

if TYPE_CHECKING:
    from tests.client.conftest import LiveHub

#: Takes away what Windows does not have, and then runs one command line after another: each says with what it ended.
WITHOUT_UNIX = """
import json, os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
import subprocess
for name in ("fork", "killpg", "getpgid", "chown"):
    delattr(os, name)
del signal.SIGKILL
from suture.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        print(f"\\nended with {ended.code or 0}", file=sys.stderr, flush=True)
"""
EXPORT = ("--shape", "1,4,4", "--labels", "a,b", "--license", "CC0-1.0")
MODULE = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))\n"


#: What other packages use on Linux, and cannot be taken from them here; of `processes` only hub and sites have need.
UNIX = re.compile(
    r"os\.(getuid|geteuid|getgid|fchmod|fchown|statvfs|O_CLOEXEC|O_NOFOLLOW|O_DIRECTORY|mkfifo|pread|sched_getaffinity)"
)


def without_unix(folder: Path, *commands: tuple[str, ...], **environment: str) -> list[tuple[int, str]]:
    """Run the commands in one process; return for each with what it ended, and what it said of it."""
    command = [sys.executable, "-c", WITHOUT_UNIX, json.dumps(commands)]
    ended = machines.run(command, environment={"HOME": str(folder), **environment}, folder=folder)
    said = ended.stderr.decode()
    parts = re.split(r"\nended with (\d+)\n", said)
    assert len(parts) == 2 * len(commands) + 1, said
    return [(int(status), text) for text, status in zip(parts[::2], parts[1::2], strict=False)]


def test_all_that_a_party_does_needs_none_of_it(live_hub: LiveHub, tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(MODULE, encoding="utf-8")
    commands = (
        ("export", "networks:net", "out", *EXPORT),
        ("inspect", "out"),
        ("publish", "out", "north/windows", "--yes"),
        ("models", "windows"),
        ("pull", "north/windows", "pulled"),
    )
    ended = without_unix(tmp_path, *commands, SUTURE_HUB=live_hub.url, SUTURE_TOKEN=live_hub.token("north"))
    assert [status for status, _ in ended] == [0] * len(commands), ended
    assert (tmp_path / "pulled" / "suture.json").read_bytes() == (tmp_path / "out" / "suture.json").read_bytes()


def test_a_fit_needs_none_of_it_and_prints_what_a_windows_pipe_can_hold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = np.random.default_rng(0)
    inputs, labels = numbers.random((200, 1, 4, 4), np.float32), np.arange(200) % 2
    np.savez(tmp_path / "images.npz", inputs=inputs, labels=labels)
    for name in ("first", "second"):
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        path = tmp_path / name / "model.safetensors"
        path.parent.mkdir()
        metadata = export_model(module, torch.from_numpy(inputs[:2]), path, labels=("a", "b"), license="CC0-1.0")
        path.with_name("suture.json").write_text(metadata.to_json(), encoding="utf-8")
    words = ("fit", "first", "second", "--data", "images.npz", "--out", "joint", "--steps", "1")
    command = [sys.executable, "-c", WITHOUT_UNIX, json.dumps([words])]
    environment = {"HOME": str(tmp_path), "PYTHONIOENCODING": "cp1252"}
    ended = machines.run(command, environment=environment, folder=tmp_path)
    said = ended.stderr.decode("cp1252")
    assert said.endswith("\nended with 0\n"), said
    assert "Chosen for first" in ended.stdout.decode("cp1252")
    assert (tmp_path / "joint" / "report.html").exists()


@pytest.mark.parametrize("folder", ["client", "contract", "stitching"])
def test_nothing_that_only_unix_has_is_used(folder: str) -> None:
    paths = sorted((Path(__file__).parents[2] / folder).rglob("*.py"))
    assert len(paths) > 10
    lines = [(path.name, line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if UNIX.search(line) and "hasattr" not in line] == []


def test_what_does_not_run_there_says_so(tmp_path: Path) -> None:
    commands = (("site", "run"), ("hub", "migrate"), ("hub", "serve"), ("up",), ("demo",))
    for command, (status, said) in zip(commands, without_unix(tmp_path, *commands), strict=True):
        assert "Traceback" not in said, command
        assert status == 5, (command, said)
        assert "system.unsupported" in said
        assert "Linux" in said
        assert "pip install" not in said


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("model.safetensors", True),
        ("a folder/größe.txt", True),
        ("console/auxiliary.json", True),
        ("con", False),
        ("folder/NUL.txt", False),
        ("com1.safetensors", False),
        ("C:evil", False),
        ("suture.json:stream", False),
        ("..\\evil", False),
        ("trailing.", False),
        ("trailing ", False),
        ("what?", False),
    ],
)
def test_names_that_mean_something_else_there(monkeypatch: pytest.MonkeyPatch, path: str, plain: bool) -> None:
    assert windows.is_plain(path) is plain
    assert windows.check_path(path) == path
    monkeypatch.setattr(windows, "HERE", True)
    if plain:
        assert windows.check_path(path) == path
        return
    with pytest.raises(SutureError) as caught:
        windows.check_path(path)
    assert (caught.value.code, caught.value.where) == ("file.name", path)


def test_a_mode_says_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "token"
    secret.write_text("suture_north_1\n", encoding="utf-8")
    secret.chmod(0o666)
    with pytest.raises(SutureError):
        read_private(secret)
    monkeypatch.setattr("suture.credentials._MODES_COUNT", False)
    assert read_private(secret) == "suture_north_1"
