"""The hub and its database are killed at the worst moments: nothing half visible, nothing lost, no hand needed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import inspect
from tests.fault import forked
from tests.fault.forked import migrate
from tests.fault.postgres import killable
from tests.service.conftest import metadata_of, model_bytes
from tests.until import until
from tests.web import web

from suture_local.ports import free_port
from suture_service import operate
from suture_service.audit import chain
from suture_service.database import Base, open_engine
from suture_service.maintenance.reconciling import reconcile
from suture_service.settings import Settings


class Process:
    """A hub in a process of its own."""

    def __init__(self, settings):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = forked.hub(settings.model_copy(update={"sweep_seconds": 0.2}), port)

    def __enter__(self):
        until(self.ready, 90)
        return self

    def __exit__(self, *_error):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.join(120)

    def ready(self):
        assert self.process.is_alive()
        try:
            return web.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def publish(self, headers, name):
        files = {
            "model": ("m", model_bytes(seed=len(name), side=40)),
            "metadata": ("s", json.dumps(metadata_of(side=40, description=name)).encode()),
        }
        url = f"{self.url}/v1/models/north/{name}/revisions"
        return web.put(url, files=files, headers=headers, params={"visibility": "all"}, timeout=60)


@pytest.fixture(scope="module")
def server():
    with killable() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request, tmp_path):
    store = str(tmp_path / "store")
    if request.param == "sqlite":
        made = Settings(database_url=f"sqlite:///{tmp_path / 'hub.db'}", store=store)
    else:
        made = Settings(database_url=request.getfixturevalue("server").empty(), store=store)
    operate.migrate(made)
    operate.add_party(made, "north")
    return made


@pytest.fixture
def headers(settings):
    return {"Authorization": f"Bearer {operate.create_token(settings, 'north', ['publisher'])[1]}"}


class Publishing:
    """Publishes one model after another; notes which were promised, and which were only begun."""

    def __init__(self, headers):
        self.headers, self.promised, self.begun = headers, set(), set()
        self.refused = []

    def round(self, hub, worker, stop):
        number = 0
        while not stop.is_set():
            name = f"m{worker}-{len(self.begun)}-{number}"
            number += 1
            self.begun.add(f"north/{name}")
            try:
                answer = hub.publish(self.headers, name)
            except httpx.TransportError:
                if not hub.process.is_alive():
                    return
                continue
            if answer.status_code == 201:
                self.promised.add(f"north/{name}")
            else:
                self.refused.append(answer.status_code)
                time.sleep(0.05)

    def during(self, hub, what):
        """Publish with four at once while `what` is done."""
        stop = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            rounds = [pool.submit(self.round, hub, worker, stop) for worker in range(4)]
            try:
                what()
            finally:
                stop.set()
            for done in rounds:
                done.result(120)

    def check(self, hub):
        """All that was promised is there, whole; what is there beyond it was begun, and is whole as well."""
        seen, cursor = set(), None
        while True:
            params = {"limit": 200} | ({"cursor": cursor} if cursor else {})
            page = web.get(f"{hub.url}/v1/models", headers=self.headers, params=params, timeout=60).json()
            for item in page["items"]:
                base = f"{hub.url}/v1/models/{item['id']}/revisions/latest"
                files = web.get(base, headers=self.headers, timeout=60).json()["files"]
                assert {file["name"] for file in files} == {"model.safetensors", "suture.json"}
                for file in files:
                    content = web.get(f"{base}/files/{file['name']}", headers=self.headers, timeout=60)
                    assert (content.status_code, len(content.content)) == (200, file["size"])
                seen.add(item["id"])
            if (cursor := page["next"]) is None:
                break
        assert self.promised <= seen <= self.begun


def test_killed_while_many_commit(settings, headers):
    work = Publishing(headers)
    for round_ in range(2):
        with Process(settings) as hub:
            before = len(work.promised)

            def kill(hub=hub, before=before, round_=round_):
                until(lambda: len(work.promised) >= before + 3 + round_)
                os.kill(hub.process.pid, signal.SIGKILL)

            work.during(hub, kill)
    with Process(settings) as hub:
        work.check(hub)
        assert hub.publish(headers, "after").status_code == 201
    assert not [path for path in Path(settings.store).rglob("*") if path.is_file() and path.parent.name == "tmp"]
    assert reconcile(settings, deep=True).sound
    assert entries(settings) >= len(work.promised)


def entries(settings):
    """How many entries the log of who did what has; it is whole."""
    with operate.reading(settings) as session:
        return chain.verify(session).id


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_killed_during_a_migration(request, tmp_path, share, migration_statements, empty):
    """The next start migrates from wherever it was, and a hub that was not migrated does not serve."""
    name, url = empty
    at = max(2, int(migration_statements[name] * share))
    assert migrate(url, killed_at=at) == (-signal.SIGKILL, None)
    settings = Settings(database_url=url, store=str(tmp_path / "store"))
    operate.migrate(settings)
    engine = open_engine(url)
    try:
        expected = {table.name for table in Base.metadata.sorted_tables}
        assert set(inspect(engine).get_table_names()) == {*expected, "alembic_version"}
        operate.check_migrated(engine)
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def migration_statements(tmp_path_factory, postgres):
    """How many statements a whole migration sends, by kind of database."""
    urls = {"sqlite": f"sqlite:///{tmp_path_factory.mktemp('counted') / 'hub.db'}", "postgresql": postgres.empty()}
    found = {}
    for name, url in urls.items():
        status, found[name] = migrate(url)
        assert status == 0
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    if request.param == "sqlite":
        return "sqlite", f"sqlite:///{tmp_path / 'empty.db'}"
    return "postgresql", request.getfixturevalue("postgres").empty()


def test_the_database_is_killed_while_many_commit(server, tmp_path):
    """The hub stays up, says that it is not ready, loses nothing that it promised, and goes on by itself."""
    settings = Settings(database_url=server.empty(), store=str(tmp_path / "store"))
    operate.migrate(settings)
    operate.add_party(settings, "north")
    headers = {"Authorization": f"Bearer {operate.create_token(settings, 'north', ['publisher'])[1]}"}
    work = Publishing(headers)
    with Process(settings) as hub:

        def restart():
            until(lambda: len(work.promised) >= 3)
            server.kill()
            answer = web.get(f"{hub.url}/readyz", timeout=60)
            assert (answer.status_code, answer.json()["error"]["where"]) == (503, "database")
            assert web.get(f"{hub.url}/healthz", timeout=60).status_code == 200
            until(lambda: len(work.refused) >= 3)
            server.start()
            until(hub.ready)
            before = len(work.promised)
            until(lambda: len(work.promised) >= before + 3)

        work.during(hub, restart)
        assert set(work.refused) == {503}
        work.check(hub)
        assert hub.process.is_alive()
    assert reconcile(settings, deep=True).sound
    assert entries(settings) >= len(work.promised)
