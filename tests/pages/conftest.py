"""One hub with something on it for all tests of pages that only look."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.pages.browsing import Browser
from tests.pages.played import play
from tests.service.conftest import Actor, World, hub_app

from suture_service import operate
from suture_service.settings import Settings


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> tuple[Settings, dict]:
    """The settings of a hub that was filled, and what is on it; each user copies the folder."""
    folder = tmp_path_factory.mktemp("filled")
    settings = Settings(database_url=f"sqlite:///{folder / 'hub.db'}", store=str(folder / "store"), sweep_seconds=3600)
    shutil.copy(migrated, folder / "hub.db")
    app = hub_app(settings)
    with TestClient(app) as client:
        played = play(World(settings, client, app.state.hub))
    return settings, played


@pytest.fixture(scope="module")
def hub(filled: tuple[Settings, dict], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A filled hub of this module's own."""
    settings, played = filled
    folder = tmp_path_factory.mktemp("hub")
    source = Path(settings.store).parent
    shutil.copytree(source, folder, dirs_exist_ok=True)
    own = settings.model_copy(update={"database_url": f"sqlite:///{folder / 'hub.db'}", "store": str(folder / "store")})
    app = hub_app(own)
    with TestClient(app, follow_redirects=False) as client:
        people = {name: Actor(client, actor.token) for name, actor in played["people"].items()}
        shown = {**played, "people": people}
        yield SimpleNamespace(app=app, client=client, settings=own, context=app.state.hub, **shown)


@pytest.fixture(scope="module")
def north(hub: SimpleNamespace) -> Browser:
    """A browser in which north is signed in."""
    return Browser(hub.client, hub.people["north"].token)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows."""
    path = tmp_path_factory.mktemp("template") / "hub.db"
    operate.migrate(Settings(database_url=f"sqlite:///{path}"))
    return path


@pytest.fixture
def start(tmp_path: Path, migrated: Path) -> Iterator[Callable[..., World]]:
    """Start an own hub, on SQLite, with some settings changed."""
    with ExitStack() as stack:

        def run(**changes: Any) -> World:
            settings = Settings(database_url=f"sqlite:///{tmp_path / 'hub.db'}", store=str(tmp_path / "store"))
            shutil.copy(migrated, tmp_path / "hub.db")
            app = hub_app(settings.model_copy(update={"sweep_seconds": 3600, **changes}))
            client = stack.enter_context(TestClient(app))
            return World(app.state.hub.settings, client, app.state.hub)

        yield run
