"""A real hub in a process of its own, with parties and their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from suture.hub import Hub
from suture_contract.model.signature import create_key
from suture_local.installation import Installation
from suture_service import operate
from suture_service.settings import Settings


@dataclass(frozen=True)
class LiveHub:
    url: str
    settings: Settings

    def token(self, party: str, *roles: str) -> str:
        return operate.create_token(self.settings, party, roles or ("publisher", "requester"))[1]

    def client(self, party: str, *roles: str) -> Hub:
        return Hub(self.url, self.token(party, *roles))


@pytest.fixture(scope="session")
def live_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveHub]:
    """A hub on SQLite with the parties north, south and east; north and south have a site, of which none runs."""
    with Installation(tmp_path_factory.mktemp("hub")) as here:
        here.start_hub()
        for party in ("north", "south", "east"):
            operate.add_party(here.settings, party)
        for party in ("north", "south"):
            operate.add_site(here.settings, party, "main")
        here.wait_until_ready()
        yield LiveHub(here.url, here.settings)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes this user's own login and cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for name in ("SUTURE_HUB", "SUTURE_TOKEN", "SUTURE_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs `north`, which `north` has registered, and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("north", "other"):
        private, public = create_key()
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_text(public.pem)
    return folder
