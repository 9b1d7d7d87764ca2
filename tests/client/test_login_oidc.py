"""`suture login --oidc`: the device flow against a provider on a socket, and a hub that believes it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.commands import suture
from tests.client.conftest import LiveHub
from tests.identity_provider import Provider

from suture import device_login
from suture.device_login import sign_in
from suture.errors import AuthError, Unavailable
from suture_contract.errors import SutureError
from suture_contract.exit_codes import ExitCode
from suture_service import operate
from suture_service.main import server
from suture_service.settings import Settings


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        running.device |= {"interval": 0.01}
        yield running


@dataclass
class Waits:
    """Sleeps for no time and notes for how long it should have."""

    seconds: list[float]

    def __call__(self, seconds: float) -> None:
        self.seconds.append(round(seconds, 2))


@pytest.fixture
def waits() -> Waits:
    return Waits([])


def attempt(provider: Provider, waits: Waits) -> str:
    return sign_in(provider.url, Provider.CLIENT, lambda _code: None, sleep=waits)


def test_the_code_is_shown_before_anybody_waits(provider: Provider, waits: Waits) -> None:
    provider.device |= {"interval": 7, "verification_uri_complete": f"{provider.url}/activate?user_code=WDJB-MJHT"}
    shown: list[Any] = []

    def show(code: Any) -> None:
        assert waits.seconds == []
        shown.append(code)

    assert sign_in(provider.url, Provider.CLIENT, show, sleep=waits).count(".") == 2
    (code,) = shown
    assert (code.text, code.address) == ("WDJB-MJHT", f"{provider.url}/activate")
    assert code.complete.endswith("?user_code=WDJB-MJHT")
    assert waits.seconds == [7]


def test_it_waits_as_long_as_it_is_told_and_longer_when_told_to_slow_down(provider: Provider, waits: Waits) -> None:
    provider.device |= {"interval": 2}
    provider.polls.extend(["authorization_pending", "slow_down", "authorization_pending", "slow_down"])
    attempt(provider, waits)
    assert waits.seconds == [2, 2, 7, 7, 12]


def test_without_an_interval_it_is_five_seconds(provider: Provider, waits: Waits) -> None:
    for strange in (None, 0, -1, "soon", float("nan"), 10**9):
        provider.device |= {"interval": strange}
        attempt(provider, waits)
    assert set(waits.seconds) == {5}


def test_a_failing_provider_is_asked_ever_less_often_and_not_for_ever(provider: Provider, waits: Waits) -> None:
    provider.device |= {"interval": 1, "expires_in": 60}

    def down(_code: Any) -> None:
        provider.down = True

    with pytest.raises(AuthError) as error:
        sign_in(provider.url, Provider.CLIENT, down, sleep=waits)
    assert error.value.code == "login.too_late"
    assert waits.seconds == [1, 2, 4, 8, 16]


def test_waiting_has_a_bound(provider: Provider, waits: Waits) -> None:
    provider.device |= {"interval": 60, "expires_in": 10**9}
    provider.polls.extend(["authorization_pending"] * 1000)
    with pytest.raises(AuthError) as error:
        attempt(provider, waits)
    assert error.value.code == "login.too_late"
    assert device_login.LONGEST - 61 <= sum(waits.seconds) <= device_login.LONGEST


@pytest.mark.parametrize(
    ("said", "code"),
    [("access_denied", "login.denied"), ("expired_token", "login.too_late"), ("invalid_client", "login.provider")],
)
def test_a_refusal_ends_it(provider: Provider, waits: Waits, said: str, code: str) -> None:
    provider.polls.append(said)
    with pytest.raises(SutureError) as error:
        attempt(provider, waits)
    assert error.value.code == code
    assert len(waits.seconds) == 1


@pytest.mark.parametrize(
    "told",
    [
        {"issuer": "https://id.example"},
        {"device_authorization_endpoint": None},
        {"token_endpoint": "http://id.example/token"},
        {"device_authorization_endpoint": "ftp://127.0.0.1/"},
        {"token_endpoint": "http://["},
    ],
)
def test_a_provider_that_is_another_or_not_encrypted_gets_nothing(
    provider: Provider, waits: Waits, told: dict[str, Any]
) -> None:
    provider.changes = told
    with pytest.raises(SutureError) as error:
        attempt(provider, waits)
    assert error.value.code == "login.provider"
    assert provider.asked == ["/.well-known/openid-configuration"]


def test_an_address_without_encryption_is_not_asked(waits: Waits) -> None:
    with pytest.raises(SutureError) as error:
        sign_in("http://id.example", "suture", lambda _code: None, sleep=waits)
    assert error.value.code == "login.provider"


def test_a_provider_that_is_not_there(provider: Provider, waits: Waits) -> None:
    with Provider() as gone:
        url = gone.url
    with pytest.raises(Unavailable) as error:
        sign_in(url, "suture", lambda _code: None, sleep=waits)
    assert error.value.code == "login.unavailable"


# With a hub


@dataclass
class Here:
    url: str
    settings: Settings


@pytest.fixture
def hub(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    given = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'hub.db'}",
        "STORE": str(tmp_path / "store"),
        "OIDC_ISSUER": provider.url,
        "OIDC_CLIENT_ID": Provider.CLIENT,
    }
    for name, value in given.items():
        monkeypatch.setenv(f"SUTURE_HUB_{name}", value)
    settings = Settings()
    operate.migrate(settings)
    for party in ("north", "south"):
        operate.add_party(settings, party)
    running = server(settings, port=0)
    thread = threading.Thread(target=running.run)
    thread.start()
    deadline = time.monotonic() + 120
    while not running.started:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.02)
    yield Here(f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}", settings)
    running.should_exit = True
    thread.join(120)
    assert not thread.is_alive()


def test_a_person_signs_in_from_the_terminal_until_removed(hub: Here, provider: Provider) -> None:
    person = ("hub", "person")
    added = suture(*person, "add", "north", "a.berg", "--email", "A.Berg@north.example", "--role", "publisher")
    assert added.exit_code == 0, added.output
    provider.claims = {"sub": "user-1", "email": "a.berg@north.example", "email_verified": True}
    provider.polls.extend(["authorization_pending", "authorization_pending"])
    ended = suture("login", "--hub", hub.url, "--oidc")
    assert ended.exit_code == 0, ended.output
    assert "you are north (publisher, reader)" in ended.stdout
    assert "WDJB-MJHT" in ended.stderr
    assert f"{provider.url}/activate" in ended.stderr
    assert "suture_party_" not in ended.output
    assert suture("models").exit_code == 0
    (row,) = operate.list_tokens(hub.settings, "north")
    assert row.name == "a.berg"
    listed = json.loads(suture(*person, "list", "north", "--format", "json").stdout)
    assert [(one["name"], one["subject"], one["roles"]) for one in listed] == [("a.berg", "user-1", ["publisher"])]
    assert "a.berg@north.example" in suture(*person, "list", "north").stdout
    assert suture(*person, "roles", "north", "a.berg", "--role", "requester").exit_code == 0
    assert suture("models").exit_code == ExitCode.AUTH
    assert "requester" in suture("login", "--hub", hub.url, "--oidc").stdout
    assert suture(*person, "remove", "north", "a.berg").exit_code == 0
    assert suture("models").exit_code == ExitCode.AUTH
    unknown = suture("login", "--hub", hub.url, "--oidc")
    assert unknown.exit_code == ExitCode.AUTH
    assert "ask your party's admin" in unknown.stderr


def test_a_person_of_two_parties_names_one(hub: Here) -> None:
    for party in ("north", "south"):
        assert suture("hub", "person", "add", party, "a.berg", "--subject", "user-1").exit_code == 0
    ended = suture("login", "--hub", hub.url, "--oidc")
    assert ended.exit_code == ExitCode.REFUSED
    assert "--party north" in ended.stderr
    assert "you are south" in suture("login", "--hub", hub.url, "--oidc", "--party", "south").stdout


def test_a_command_line_that_is_wrong_says_so(hub: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    add = ("hub", "person", "add", "north")
    for words, where in (
        ((*add, "a"), "--subject, --email"),
        ((*add, "a", "--email", "nobody"), "--email"),
        ((*add, "-x-", "--subject", "1"), None),
        ((*add, "a", "--subject", "1", "--role", "king"), "--role"),
        (("login", "--hub", hub.url, "--party", "north"), "--party"),
    ):
        ended = suture(*words)
        assert ended.exit_code in (ExitCode.REFUSED, ExitCode.USAGE), words
        assert where is None or where in ended.stderr
    assert suture("hub", "person", "remove", "north", "nobody").exit_code != 0
    for name in ("ISSUER", "CLIENT_ID"):
        monkeypatch.delenv(f"SUTURE_HUB_OIDC_{name}")
    ended = suture(*add, "a", "--subject", "1")
    assert "SUTURE_HUB_OIDC_ISSUER" in ended.stderr


def test_a_hub_without_a_provider_says_so(live_hub: LiveHub) -> None:
    assert httpx.get(f"{live_hub.url}/v1/login").status_code == 404
    ended = suture("login", "--hub", live_hub.url, "--oidc")
    assert ended.exit_code == ExitCode.REFUSED
    assert "no identity provider" in ended.stderr
