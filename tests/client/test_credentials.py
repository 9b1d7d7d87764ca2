"""Which hub, and as whom."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from suture.credentials import Credentials, forget, read_private, resolve, store, write_private
from suture_contract.errors import SutureError

HERE, THERE = "https://here.example", "https://there.example"


def test_arguments_come_before_the_environment_before_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "stored"))
    assert resolve() == Credentials(HERE, "stored")
    monkeypatch.setenv("SUTURE_TOKEN", "environment")
    assert resolve() == Credentials(HERE, "environment")
    monkeypatch.setenv("SUTURE_HUB", THERE)
    assert resolve() == Credentials(THERE, "environment")
    assert resolve(HERE + "/", "argument") == Credentials(HERE, "argument")


def test_a_stored_token_goes_to_no_other_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "stored"))
    assert resolve(THERE).token is None
    monkeypatch.setenv("SUTURE_HUB", THERE)
    assert resolve().token is None
    assert resolve(HERE).token == "stored"


def test_no_hub_anywhere_says_what_to_do() -> None:
    with pytest.raises(SutureError, match="suture login") as caught:
        resolve()
    assert caught.value.code == "hub.unknown"


def test_a_login_is_readable_by_its_owner_alone_and_can_be_forgotten() -> None:
    path = store(Credentials(HERE, "stored"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "stored" not in repr(resolve())
    assert forget()
    assert not forget()
    assert not path.exists()


def test_an_exposed_or_damaged_login_is_refused() -> None:
    path = store(Credentials(HERE, "stored"))
    path.chmod(0o644)
    with pytest.raises(SutureError) as exposed:
        resolve()
    assert exposed.value.code == "secret.exposed"
    path.chmod(0o600)
    path.write_text('{"hub": 3}')
    with pytest.raises(SutureError) as damaged:
        resolve()
    assert damaged.value.code == "login.damaged"


def test_a_secret_is_replaced_whole(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    write_private(secret, "one\n")
    write_private(secret, "two\n")
    assert read_private(secret) == "two"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["token"]
