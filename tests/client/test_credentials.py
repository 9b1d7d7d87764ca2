"""Which hub, and as whom."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from suture.credentials import (
    Credentials,
    choosing,
    forget,
    in_use,
    read_private,
    resolve,
    store,
    stored,
    write_private,
)
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


def test_a_profile_names_a_hub_and_whose_token(monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "ours", "north"))
    store(Credentials(THERE, "theirs", "north"), "there")
    store(Credentials(HERE, "second", "south"), "south")
    assert list(stored()) == ["default", "south", "there"]
    assert [login.party for login in stored().values()] == ["north", "south", "north"]
    assert resolve() == Credentials(HERE, "ours")
    assert resolve("there") == Credentials(THERE, "theirs")
    assert resolve(HERE) == Credentials(HERE, "ours")
    assert resolve(THERE) == Credentials(THERE, "theirs")
    with choosing("south"):
        assert resolve() == Credentials(HERE, "second")
        assert resolve("there") == Credentials(THERE, "theirs")
    with choosing("https://third.example"):
        assert resolve() == Credentials("https://third.example", None)
    assert in_use() == "default"
    monkeypatch.setenv("SUTURE_PROFILE", "there")
    assert resolve() == Credentials(THERE, "theirs")
    assert in_use() == "there"
    with choosing("south"):
        assert resolve() == Credentials(HERE, "second")


def test_the_token_of_the_environment_never_goes_to_a_hub_that_a_profile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(THERE, "theirs"), "there")
    monkeypatch.setenv("SUTURE_TOKEN", "environment")
    assert resolve("there") == Credentials(THERE, "theirs")
    with choosing("there"):
        assert resolve() == Credentials(THERE, "theirs")
    monkeypatch.setenv("SUTURE_PROFILE", "there")
    for name in ("SUTURE_TOKEN", "SUTURE_HUB"):
        monkeypatch.delenv("SUTURE_TOKEN", raising=False)
        monkeypatch.setenv(name, "https://elsewhere.example")
        with pytest.raises(SutureError, match=name) as caught:
            resolve()
        assert caught.value.code == "hub.ambiguous"


def test_an_unknown_profile_says_which_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "ours"), "clinic")
    store(Credentials(THERE, "theirs"), "there")
    for name in ("clinik", "elsewhere"):
        with pytest.raises(SutureError, match="clinic") as caught:
            resolve(name)
        assert caught.value.code == "profile.unknown"
    with pytest.raises(SutureError, match="suture --hub clinic") as unnamed:
        resolve()
    assert unnamed.value.code == "hub.unknown"
    monkeypatch.setenv("SUTURE_PROFILE", "clinik")
    with pytest.raises(SutureError, match="did you mean 'clinic'"):
        resolve()
    with pytest.raises(SutureError) as address:
        resolve("hub.example")
    assert address.value.code == "hub.url"
    with pytest.raises(SutureError) as impossible:
        store(Credentials(HERE, "ours"), "https://here.example")
    assert impossible.value.code == "profile.name"


def test_of_two_logins_for_an_address_one_must_be_named() -> None:
    store(Credentials(HERE, "ours"), "north")
    store(Credentials(HERE, "theirs"), "south")
    with pytest.raises(SutureError, match="--hub north") as caught:
        resolve(HERE)
    assert caught.value.code == "hub.ambiguous"
    assert resolve(HERE, "passed") == Credentials(HERE, "passed")


def test_a_login_of_an_earlier_version_is_the_default_one() -> None:
    path = store(Credentials(HERE, "stored"))
    path.write_text('{"hub": "https://here.example", "token": "earlier"}')
    assert resolve() == Credentials(HERE, "earlier")
    store(Credentials(THERE, "theirs"), "there")
    assert resolve() == Credentials(HERE, "earlier")
    assert resolve("there") == Credentials(THERE, "theirs")


def test_one_profile_is_forgotten_and_the_others_stay() -> None:
    path = store(Credentials(HERE, "stored"))
    store(Credentials(THERE, "theirs"), "there")
    assert not forget("elsewhere")
    assert forget()
    assert not forget()
    assert list(stored()) == ["there"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert forget("there")
    assert not path.exists()


def test_a_damaged_login_is_replaced_by_the_next() -> None:
    path = store(Credentials(HERE, "stored"))
    path.write_text('{"profiles": [1]}')
    with pytest.raises(SutureError) as damaged:
        resolve()
    assert damaged.value.code == "login.damaged"
    store(Credentials(HERE, "again"))
    assert resolve() == Credentials(HERE, "again")


def test_a_secret_is_replaced_whole(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    write_private(secret, "one\n")
    write_private(secret, "two\n")
    assert read_private(secret) == "two"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["token"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SUTURE_TOKN", "SUTURE_TOKEN"),
        ("SUTURE_HUB_URL", "SUTURE_HUB"),
        ("SUTURE_HUB_TOKEN", "SUTURE_TOKEN"),
        ("SUTURE_PROFIL", "SUTURE_PROFILE"),
    ],
)
def test_a_misspelt_variable_is_not_passed_over(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "of another party"))
    monkeypatch.setenv(name, "secret")
    with pytest.raises(SutureError, match=f"did you mean .*'{meant}'") as caught:
        resolve()
    assert (caught.value.code, caught.value.where) == ("environment.unknown", name)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["SUTURE_HUB_STORE", "SUTURE_HUB_PROXIES", "SUTURE_HUB_LOG_LEVEL", "SUTURE_BENCHMARK"])
def test_variables_of_the_hub_and_of_others_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store(Credentials(HERE, "stored"))
    monkeypatch.setenv(name, "x")
    assert resolve().token == "stored"
