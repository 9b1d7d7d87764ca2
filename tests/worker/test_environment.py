"""What a machine does to a site: its disk, its locks, and a token that holds no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests import machines
from tests.machines import suture
from tests.worker.conftest import write_site

from suture_contract.errors import SutureError
from suture_worker.config import SiteConfig, load_site
from suture_worker.room import SPARE, check_room, needed_for
from suture_worker.supervise import LAST_WORDS, last_words


def refused(command: Sequence[str]) -> str:
    ended = machines.run(command)
    said = ended.stderr.decode()
    assert "Traceback" not in said
    assert ended.returncode == 5, said
    return said


def said_until(command: Sequence[str], found: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    """Run a site's process until it logs what is looked for; then it has to end when it is told to."""
    with subprocess.Popen(
        list(command), stderr=subprocess.PIPE, encoding="utf-8", env=os.environ | {"LC_ALL": "C"}
    ) as run:
        assert run.stderr is not None
        try:
            for line in run.stderr:
                assert not line.startswith("Traceback")
                if line.startswith("{") and found(json.loads(line)):
                    run.send_signal(signal.SIGTERM)
                    run.stderr.read()
                    assert run.wait(120) == 0
                    return json.loads(line)
        finally:
            run.kill()
    raise AssertionError("it ended before")


def test_a_site_on_a_full_disk_says_so_and_leases_nothing(site: SiteConfig) -> None:
    check = machines.small_disk(site.state, 256, suture("site", "check", site.path, "--format", "json"))
    ended = machines.run(check)
    state = next(item for item in json.loads(ended.stdout) if item["name"] == "state")
    assert ended.returncode == 5
    assert state["status"] == "fail"
    assert "64 MiB are needed" in state["detail"]
    agent = machines.small_disk(site.state, 256, suture("site", "agent", site.path))
    said = said_until(agent, lambda line: line.get("code") == "site.disk_full")
    assert said["event"] == "no task is leased"


def test_a_state_that_is_read_only(site: SiteConfig) -> None:
    for part in ("run", "agent"):
        said = refused(machines.small_disk(site.state, 0, suture("site", part, site.path), read_only=True))
        assert "read-only" in said
        assert str(site.state) in said


def test_a_state_that_cannot_be_locked(site: SiteConfig) -> None:
    for part in ("run", "agent", "worker"):
        said = refused(machines.without_locks(suture("site", part, site.path)))
        assert "does not lock files" in said
        assert "NFS" in said


def test_a_state_where_a_file_is(tmp_path: Path) -> None:
    path = write_site(tmp_path / "site")
    (tmp_path / "site" / "state").touch()
    assert "site.state" in refused(suture("site", "run", path))


def test_a_token_that_was_revoked_is_told_by_the_site_itself(tmp_path: Path, live_hub: object) -> None:
    path = write_site(tmp_path / "site", url=live_hub.url, token="suture_north_revoked0000")  # type: ignore[attr-defined]
    said = said_until(
        suture("site", "run", path), lambda line: line.get("part") == "agent" and "ended" in str(line["event"])
    )
    assert said["code"] == "auth.invalid"
    assert "operator for a new token" in str(said["next"])
    assert "revoked0000" not in str(said)
    assert not load_site(path).broker


def test_room_is_twice_the_files_and_a_spare(tmp_path: Path) -> None:
    assert needed_for(10) == 20 + SPARE
    check_room(tmp_path)
    with pytest.raises(SutureError) as caught:
        check_room(tmp_path, 2**62)
    assert caught.value.code == "site.disk_full"


def test_last_words_are_those_of_the_last_run(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    reason = {"event": LAST_WORDS, "code": "auth.invalid", "message": "it is revoked", "where": None, "hint": "ask"}
    log.write_text(json.dumps(reason) + "\n", encoding="utf-8")
    assert last_words(log, 0) == {"code": "auth.invalid", "problem": "it is revoked", "next": "ask"}
    before = log.stat().st_size
    with log.open("a", encoding="utf-8") as more:
        more.write("{broken\nSegmentation fault\n\n")
    assert last_words(log, before) == {"last_line": "Segmentation fault"}
    assert last_words(tmp_path / "nothing", 0) == {}
