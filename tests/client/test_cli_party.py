"""A party's commands: publish, list, pull, tokens, errors and logins."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.client.commands import suture

from suture_contract.exit_codes import ExitCode
from suture_service import operate
from suture_service.settings import Settings

if TYPE_CHECKING:
    from tests.client.conftest import LiveHub


MODULE = """
import torch
torch.manual_seed(0)
def trained():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
number = 3
"""


@pytest.fixture
def signed_in(live_hub: LiveHub, monkeypatch: pytest.MonkeyPatch) -> str:
    token = live_hub.token("north")
    monkeypatch.setenv("SUTURE_HUB", live_hub.url)
    monkeypatch.setenv("SUTURE_TOKEN", token)
    return token


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's own module in it."""
    (tmp_path / "animals.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def exported(folder: Path) -> Path:
    ended = suture(
        "export", "animals:trained", "out", "--shape", "1,4,4", "--labels", "cat, dog", "--license", "CC0-1.0"
    )
    sys.modules.pop("animals")
    assert ended.exit_code == 0, ended.output
    return folder / "out"


def test_export_publish_list_and_pull(signed_in: str, folder: Path) -> None:
    out = exported(folder)
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "suture.json", "README.md"}
    published = suture("publish", out, "north/animals", "--yes", "--format", "json")
    assert published.exit_code == 0, published.output
    revision = json.loads(published.stdout)
    assert "leaves this machine" in published.stderr
    listed = suture("models", "animals", "--format", "json")
    assert [(model["id"], model["revision"]) for model in json.loads(listed.stdout)] == [
        ("north/animals", revision["id"])
    ]
    assert "north/animals" in suture("models").stdout
    assert "no models" in suture("models", "nothing-like-this").stderr
    label = json.loads(listed.stdout)[0]["metadata"]["labels"][0]
    narrowed = ("models", "--label", label.upper(), "--input", "image", "--channels", "1", "--dims", "2")
    assert "north/animals" in suture(*narrowed, "--sort", "newest", "--limit", "200").stdout
    assert "no models" in suture(*narrowed, "--modality", "nothing-like-this").stderr
    assert "no models" in suture("models", "animals", "--min-n", "1000000").stderr
    pulled = suture("pull", "north/animals", "here")
    assert pulled.exit_code == 0, pulled.output
    assert (folder / "here" / "suture.json").read_bytes() == (out / "suture.json").read_bytes()
    assert json.loads(suture("pull", "north/animals", "here", "--format", "json").stdout)["folder"] == "here"


def test_an_admin_lists_and_revokes_tokens_from_afar(
    signed_in: str, live_hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert suture("tokens", "list").exit_code == ExitCode.AUTH  # no admin
    lost = operate.create_token(live_hub.settings, "north", ["publisher"], name="lost-laptop")[0]
    monkeypatch.setenv("SUTURE_TOKEN", live_hub.token("north", "admin"))
    assert "lost-laptop" in suture("tokens", "list").stdout
    assert suture("tokens", "revoke", lost).exit_code == 0
    assert "lost-laptop" not in suture("tokens", "list").stdout
    (token,) = (
        each for each in json.loads(suture("tokens", "list", "--all", "--format", "json").stdout) if each["id"] == lost
    )
    assert token["revoked_at"] is not None
    assert suture("tokens", "revoke", "tok_none").exit_code == ExitCode.NOT_FOUND


def test_a_purge_is_asked_about_and_takes_the_revision_away(signed_in: str, folder: Path) -> None:
    out = exported(folder)
    published = json.loads(suture("publish", out, "north/wrong", "--yes", "--format", "json").stdout)
    wrong = ("purge", "north/wrong", "--revision", published["id"][:12], "--reason", "trained on wrong rows")
    asked = suture(*wrong)
    assert asked.exit_code == ExitCode.REFUSED
    assert "these revisions go for good" in asked.stderr
    assert published["id"] in asked.stderr
    assert suture("pull", "north/wrong", "still").exit_code == 0
    done = json.loads(suture(*wrong, "--yes", "--format", "json").stdout)
    assert (done["done"], done["revisions"]) == (True, [{"repo": "north/wrong", "revision": published["id"]}])
    assert suture("pull", "north/wrong", "gone").exit_code == ExitCode.NOT_FOUND
    again = suture(*wrong)
    assert (again.exit_code, done["id"] in again.stdout) == (0, True)
    assert "say what is to go" in suture("purge", "north/wrong", "--reason", "x").stderr


def test_a_dry_run_says_what_would_be_published_and_sends_nothing(signed_in: str, folder: Path) -> None:
    out = exported(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    dry = ("publish", out, "north/dry", "--dry-run")
    said = suture(*dry)
    assert said.exit_code == 0, said.output
    assert "north/dry" in said.stderr
    assert os.environ["SUTURE_HUB"] in said.stderr
    assert "your party alone" in said.stderr
    told = json.loads(suture(*dry, "--format", "json").stdout)
    assert (told["repo"], told["hub"], told["visibility"]) == ("north/dry", os.environ["SUTURE_HUB"], "private")
    for file in told["files"]:
        assert file["sha256"] in said.stdout
        assert f"{file['size']:,}" in said.stdout
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert suture("pull", "north/dry").exit_code == ExitCode.NOT_FOUND
    published = json.loads(suture("publish", out, "north/dry", "--yes", "--format", "json").stdout)
    assert told["files"] == [
        {name: file[name] for name in ("name", "size", "sha256")}
        for told_file in told["files"]
        for file in published["files"]
        if file["name"] == told_file["name"]
    ]


def test_a_dry_run_needs_no_hub_that_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_HUB", "http://127.0.0.1:9")
    assert suture("publish", exported(folder), "north/dry", "--dry-run").exit_code == 0


def test_without_a_terminal_nothing_is_published_unless_told_to(signed_in: str, folder: Path) -> None:
    out = exported(folder)
    refused = suture("publish", out, "north/unasked", given="y\n")
    assert refused.exit_code == ExitCode.REFUSED
    assert "publish.unconfirmed" in refused.stderr
    assert "--yes" in refused.stderr
    assert suture("pull", "north/unasked").exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(("answer", "code"), [("n", ExitCode.JOB), ("y", ExitCode.OK)])
def test_at_a_terminal_it_is_asked(signed_in: str, folder: Path, answer: str, code: ExitCode) -> None:
    out = exported(folder)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "suture", "publish", str(out), f"north/asked-{answer}"]
    ended = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == code, ended.stderr
    assert "leaves this machine" in ended.stderr
    assert "send it?" in ended.stderr
    pulled = suture("pull", f"north/asked-{answer}", "pulled").exit_code
    assert pulled == (ExitCode.OK if answer == "y" else ExitCode.NOT_FOUND)


def test_a_report_that_is_no_file_is_missing(folder: Path) -> None:
    ended = suture("report", folder / "report.json")
    assert ended.exit_code == ExitCode.REFUSED
    assert "no such file" in ended.stderr


def test_a_published_model_has_no_report(signed_in: str, folder: Path) -> None:
    suture("publish", exported(folder), "north/animals", "--yes")
    ended = suture("report", "north/animals")
    assert ended.exit_code == ExitCode.REFUSED
    assert "published, not stitched" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("animals:nothing",), "nothing"),
        (("nowhere:trained",), "nowhere"),
        (("animals:number",), "int"),
    ],
)
def test_a_module_that_cannot_be_had_is_named(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    ended = suture("export", *arguments, "out", "--shape", "1,4,4", "--labels", "a,b", "--license", "CC0-1.0")
    sys.modules.pop("animals", None)
    assert ended.exit_code == ExitCode.REFUSED
    assert problem in ended.stderr
    assert not (folder / "out").exists()


def test_errors_say_what_where_and_what_next(signed_in: str, folder: Path) -> None:
    ended = suture("pull", "north/unknown")
    assert ended.exit_code == ExitCode.NOT_FOUND
    assert ended.stdout == ""
    assert "error:" in ended.stderr
    assert "where:" in ended.stderr
    machine = suture("pull", "north/unknown", "--format", "json")
    assert json.loads(machine.stderr.splitlines()[-1])["error"]["code"] == "not_found"
    (folder / "model.safetensors").write_bytes(b"not one")
    (folder / "suture.json").write_text("{}")
    refused = suture("publish", folder, "north/animals", "--yes")
    assert refused.exit_code == ExitCode.REFUSED
    assert "suture.json" in refused.stderr


def test_a_wrong_token_and_an_absent_hub_have_their_codes(signed_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_TOKEN", "suture_north_wrong")
    ended = suture("models")
    assert ended.exit_code == ExitCode.AUTH
    assert "suture_north_wrong" not in ended.output
    monkeypatch.setattr("suture.http.ATTEMPTS", 1)
    monkeypatch.setattr("suture.http.pause", lambda *_: 0.0)
    monkeypatch.setenv("SUTURE_HUB", "http://127.0.0.1:9")
    assert suture("models").exit_code == ExitCode.UNAVAILABLE


def test_without_a_hub_the_next_command_is_named() -> None:
    ended = suture("models")
    assert ended.exit_code == ExitCode.REFUSED
    assert "suture login" in ended.stderr


def test_login_keeps_a_token_that_works_and_no_other(live_hub: LiveHub, tmp_path: Path) -> None:
    token = live_hub.token("south", "requester")
    wrong = suture("login", "--hub", live_hub.url, given="suture_south_wrong\n")
    assert wrong.exit_code == ExitCode.AUTH
    assert suture("models").exit_code == ExitCode.REFUSED
    ended = suture("login", "--hub", live_hub.url, given=token + "\n")
    assert ended.exit_code == 0
    assert "south" in ended.stdout
    assert token not in ended.output
    assert suture("models").exit_code == 0
    assert suture("login", "--forget").exit_code == 0
    assert suture("models").exit_code == ExitCode.REFUSED
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o644)
    exposed = suture("login", "--hub", live_hub.url, "--token-file", tmp_path / "token")
    assert exposed.exit_code == ExitCode.REFUSED
    assert "chmod 600" in exposed.stderr
    (tmp_path / "token").chmod(0o600)
    assert suture("login", "--hub", live_hub.url, "--token-file", tmp_path / "token").exit_code == 0


def test_several_hubs_are_named_profiles(live_hub: LiveHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hub here, and two parties at it: what differs is who is asked for."""
    tokens = {party: live_hub.token(party, "requester") for party in ("north", "south")}
    for party, token in tokens.items():
        ended = suture("login", "--hub", live_hub.url, "--profile", party, given=token + "\n")
        assert ended.exit_code == 0, ended.output
        assert f"suture --hub {party}" in ended.stderr
    unnamed = suture("keys", "list")
    assert unnamed.exit_code == ExitCode.REFUSED
    assert "suture --hub north" in unnamed.stderr
    for party in tokens:
        assert suture("--hub", party, "keys", "list").exit_code == 0
    assert suture("--hub", "nort", "models").exit_code == ExitCode.REFUSED
    assert suture("--hub", live_hub.url, "models").exit_code == ExitCode.REFUSED
    monkeypatch.setenv("SUTURE_PROFILE", "south")
    assert suture("models").exit_code == 0
    listed = suture("hubs", "--format", "json")
    assert json.loads(listed.stdout) == [
        {"profile": party, "hub": live_hub.url, "party": party, "used": party == "south"} for party in tokens
    ]
    assert not any(token in suture("hubs").output + listed.output for token in tokens.values())
    assert suture("login", "--forget").exit_code == 0
    monkeypatch.delenv("SUTURE_PROFILE")
    assert suture("login", "--forget", "--profile", "north").stdout == "forgotten\n"
    assert "none" in suture("hubs").stderr


def test_a_job_can_be_asked_for_followed_and_cancelled(signed_in: str, folder: Path) -> None:
    out = exported(folder)
    for name in ("north/a1", "north/a2"):
        suture("publish", out, name, "--everyone", "--yes")
    asked = suture(
        *("stitch", "north/a1", "north/a2", "--dataset", "animals", "--evaluate-at", "south", "--no-wait"),
        *("--option", "seed=3", "--format", "json"),
    )
    assert asked.exit_code == 0, asked.output
    job = json.loads(asked.stdout)["id"]
    assert job in suture("jobs", "list").stdout
    assert job in [found["id"] for found in json.loads(suture("jobs", "list", "--format", "json").stdout)]
    shown = suture("jobs", "show", job)
    assert "fit" in shown.stdout
    assert "north/a1" in shown.stdout
    waited = suture("jobs", "wait", job, "--timeout", "0.2")
    assert waited.exit_code == ExitCode.REFUSED
    assert f"suture jobs wait {job}" in waited.stderr
    assert suture("jobs", "cancel", job).exit_code == 0
    assert suture("jobs", "wait", job).exit_code == ExitCode.JOB
    assert suture("jobs", "show", "job_0000000000000000").exit_code == ExitCode.NOT_FOUND
    assert suture("stitch", "north/a1", "north/a2", "--dataset", "x", "--option", "seed").exit_code == ExitCode.USAGE


def test_an_operator_sets_up_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", f"sqlite:///{tmp_path / 'hub.db'}")
    monkeypatch.setenv("SUTURE_HUB_STORE", str(tmp_path / "models"))
    assert suture("hub", "migrate").exit_code == 0
    assert suture("hub", "migrate").exit_code == 0
    assert suture("hub", "party", "add", "west").exit_code == 0
    again = suture("hub", "party", "add", "west")
    assert again.exit_code == ExitCode.REFUSED
    assert "west" in again.stderr
    made = suture("hub", "token", "create", "west", "--role", "publisher", "--name", "laptop")
    assert made.stdout.strip().startswith("suture_")
    assert len(made.stdout.split()) == 1
    (listed,) = json.loads(suture("hub", "token", "list", "west", "--format", "json").stdout)
    assert "publisher" in listed["roles"]
    assert "laptop" in suture("hub", "token", "list", "west").stdout
    assert suture("hub", "token", "revoke", listed["id"]).exit_code == 0
    assert suture("hub", "token", "revoke", "unknown").exit_code != 0
    assert suture("hub", "token", "create", "west", "--role", "king").exit_code == ExitCode.REFUSED
    assert suture("hub", "site", "add", "west", "main").stdout.strip().startswith("suture_")
    assert json.loads(suture("hub", "site", "list", "--format", "json").stdout) == [
        {"party": "west", "site": "main", "online": False, "suspended": False, "last_seen_at": None, "version": None}
    ]
    assert "main (offline)" in suture("hub", "party", "list").stdout
    assert json.loads(suture("hub", "party", "list", "--format", "json").stdout)[0]["name"] == "west"
    assert [row.name for row in operate.list_parties(Settings())] == ["west"]


def test_a_wrong_setting_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUTURE_HUB_MAX_ATTEMPTS", "many")
    ended = suture("hub", "migrate")
    assert ended.exit_code == ExitCode.REFUSED
    assert "SUTURE_HUB_MAX_ATTEMPTS" in ended.stderr


def test_a_site_configuration_to_start_from_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suture_worker import load_site

    monkeypatch.chdir(tmp_path)
    assert suture("site", "init").exit_code == 0
    assert tomllib.loads((tmp_path / "site.toml").read_text())["policy"]["min_patients"] == 11
    assert list(load_site(tmp_path / "site.toml").datasets) == ["digits"]
    (tmp_path / "site.toml").write_text("mine")
    assert suture("site", "init", "site.toml").exit_code == ExitCode.REFUSED
    assert (tmp_path / "site.toml").read_text() == "mine"
    assert suture("site", "run", "nowhere.toml").exit_code == ExitCode.REFUSED
    assert suture("site", "init", "no/such/folder/site.toml").exit_code == ExitCode.REFUSED
