"""A hub on SQLite and on PostgreSQL, each test on a database of its own, and short ways to act as a party or a site."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, Table, select
from sqlalchemy.orm import Session
from starlette.routing import BaseRoute
from starlette.testclient import TestClient
from tests.identity_provider import Provider

from suture_contract.model.format import graph_to_json
from suture_contract.model.graph import Graph, Input, Node, Ref
from suture_service import database, operate
from suture_service.database import Base, open_engine
from suture_service.hub import HubContext
from suture_service.jobs.lifecycle import sweep_once
from suture_service.main import create_app
from suture_service.parties import service as parties
from suture_service.settings import Settings
from suture_service.sites import service as sites
from suture_service.tables import Party

SIDE = 4
#: What makes floats small, of their last bytes.
_SMALL = bytes(byte & 0x3F for byte in range(256))


def model_bytes(classes: int = 2, *, channels: int = 1, side: int = SIDE, seed: int = 0) -> bytes:
    """A portable model, written by hand: flatten, then one linear layer with weights that depend on the seed."""
    features = channels * side * side
    graph = Graph(
        inputs=(Input((None, channels, side, side), "float32"),),
        nodes=(
            Node("input", (0,)),
            Node("tensor", ("w",)),
            Node("tensor", ("b",)),
            Node("aten.flatten.using_ints", (Ref(0), 1)),
            Node("aten.linear.default", (Ref(3), Ref(1), Ref(2))),
        ),
        output=Ref(4),
        outputs=(Input((None, classes), "float32"),),
    )
    weight = bytearray(hashlib.shake_256(f"{seed}".encode()).digest(4 * classes * features))
    weight[3::4] = weight[3::4].translate(_SMALL)
    bias = bytes(4 * classes)
    header = {
        "__metadata__": {"format": "suture.portable", "version": "1", "graph": graph_to_json(graph), "torch": "2.13"},
        "b": {"dtype": "F32", "shape": [classes], "data_offsets": [0, len(bias)]},
        "w": {"dtype": "F32", "shape": [classes, features], "data_offsets": [len(bias), len(bias) + len(weight)]},
    }
    return safetensors_bytes(header, bias + bytes(weight))


def safetensors_bytes(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def metadata_of(classes: int = 2, *, channels: int = 1, side: int = SIDE, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"image": {"format": "image", "num_channels": channels, "spatial_shape": [side, side]}},
        "outputs": {"digit": {"format": "logits", "num_channels": classes}},
        "labels": [str(index) for index in range(classes)],
        "license": "Apache-2.0",
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


STITCHES = safetensors_bytes(
    {
        "s0.w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "s0.b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    },
    bytes(24),
)


def _refs(task: Any) -> list[dict[str, str]]:
    return [{key: member[key] for key in ("repo", "revision", "sha256")} for member in task["spec"]["members"]]


def candidates_of(task: Any, **changes: Any) -> dict[str, Any]:
    """The candidates of a fit of two members."""
    stitch = {"source": 1, "target": 0, "weight": "s0.w", "bias": "s0.b"}
    match = {"points": {"0": "n4", "1": "n4"}, "alpha": 0.5, "stitches": [stitch]}
    return {
        "schema": "suture.candidates/1",
        "task": "classification",
        "members": _refs(task),
        "labels": ["0", "1"],
        "n": 412,
        "seed": 0,
        "candidates": [
            {"id": "c00", "kind": "single", "members": [0]},
            {"id": "c01", "kind": "single", "members": [1]},
            {"id": "c02", "kind": "ensemble", "members": [0, 1]},
            {"id": "c03", "kind": "stitched", "members": [0, 1], "matches": [match]},
        ],
        **changes,
    }


def evaluation_of(task: Any, **changes: Any) -> dict[str, Any]:
    """The evaluation of those candidates."""
    score = {"value": 0.9, "low": 0.8, "high": 0.95}
    split = {"n": 100, "scores": dict.fromkeys(("c00", "c01", "c02", "c03"), score)}
    content = {"metric": "accuracy", "own": task["spec"]["own"], "splits": {"validation": split, "test": split}}
    return {"schema": "suture.evaluation/1", **content, **changes}


def composed_of(
    task: Any,
    *,
    lineage: Any = None,
    report: Any = None,
    model: bytes | None = None,
    card: bytes | None = None,
    **metadata: Any,
) -> dict[str, bytes]:
    """The files of a composed model; the arguments change what its documents say."""
    spec, members = task["spec"], _refs(task)
    interval = {"value": 0.9, "low": 0.8, "high": 0.95}
    rows = {"metric": "accuracy", "n": 100, "rows": {"stitched": interval}, "verdict": "adopt"}
    origin = {"job": spec["job"], "requester": task["job"]["requester"], "members": members, "candidate": "c03"}
    content = metadata_of(**{"lineage": {**origin, **(lineage or {})}, **metadata})
    document = {
        "schema": "suture.report/1",
        "requester": task["job"]["requester"],
        "parties": dict.fromkeys(spec["evaluations"], rows),
        "chosen": "c03",
        "candidates": [
            {"id": f"c0{i}", "kind": kind, "label": kind, "metrics": {}, "front": True}
            for i, kind in enumerate(("single", "single", "ensemble", "stitched"))
        ],
        "lineage": {"job": spec["job"], "members": members},
        "missing": spec["missing"],
        "version": spec["version"],
        "revised": spec["revised"],
        **(report or {}),
    }
    return {
        "model.safetensors": model_bytes(seed=99) if model is None else model,
        "suture.json": json.dumps(content).encode(),
        "report.json": json.dumps(document).encode(),
        **({"README.md": card} if card is not None else {}),
    }


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "hub.db"
    operate.migrate(Settings(database_url=f"sqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return request.getfixturevalue("postgres").empty()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a migrated database."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("migrated_sqlite")
        path = template.with_name("test.db")
        url = f"sqlite:///{path}"
        _forget_connections(url)
        for old in template.parent.glob("test.db*"):
            old.unlink()
        shutil.copy(template, path)
        return url
    url = request.getfixturevalue("postgres").fresh()
    _forget_connections(url)
    return str(url)


#: What an engine has compiled, statements into SQL, is kept for the next test: doing it anew for each takes longer than
#: most of the tests themselves. Connections are not kept.
_ENGINES: dict[str, Engine] = {}


def _forget_connections(url: str) -> None:
    if url in _ENGINES:
        _ENGINES[url].dispose()


@pytest.fixture(scope="session", autouse=True)
def _kept_engines() -> Iterator[None]:
    def kept(url: str) -> Engine:
        if url not in _ENGINES:
            _ENGINES[url] = open_engine(url)
        return _ENGINES[url]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "open_engine", kept)
        yield
    for engine in _ENGINES.values():
        engine.dispose()


#: FastAPI works out what each path takes when an application gets its first request, which takes as long as a whole
#: test. It is the same for every hub: they share it.
_ROUTES: dict[int, BaseRoute] = {}


def hub_app(settings: Settings) -> FastAPI:
    """A hub of its own, which shares with the others what they know of their paths."""
    app = create_app(settings)
    for index, route in enumerate(app.router.routes):
        if (router := getattr(route, "original_router", None)) is not None:
            app.router.routes[index] = _ROUTES.setdefault(id(router), route)
    return app


class Actor:
    """A party or a site with its token."""

    def __init__(self, client: TestClient, token: str) -> None:
        self.client, self.token = client, token
        self.headers = {"Authorization": f"Bearer {token}"}

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = {**self.headers, **options.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self("POST", path, json=body if body is not None else {}, **options)

    def publish(
        self,
        repo: str,
        *,
        model: bytes | None = None,
        metadata: Any = None,
        card: bytes | None = None,
        visibility: str | None = "all",
    ) -> Any:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata or metadata_of()).encode()
        files = {"model": ("m", model_bytes() if model is None else model), "metadata": ("s", text)}
        if card is not None:
            files["card"] = ("c", card)
        params = {"visibility": visibility} if visibility else {}
        return self("PUT", f"/v1/models/{repo}/revisions", files=files, params=params)

    def lease(self, wait: float = 0) -> Any:
        answer = self.post("/v1/tasks/lease", {"wait": wait})
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    def put(self, task: Any, name: str, content: bytes, *, fence: int | None = None) -> Any:
        params = {"fence": task["fence"] if fence is None else fence}
        return self("PUT", f"/v1/tasks/{task['id']}/files/{name}", content=content, params=params)

    def tell(self, task: Any, what: str, **body: Any) -> Any:
        return self.post(f"/v1/tasks/{task['id']}/{what}", {"fence": task["fence"], **body})


PARTIES = ("north", "south", "east")
#: What a hub with these parties has in its tables, and the tokens by whose they are: see `World`.
_ROWS: dict[Table, list[dict[str, Any]]] = {}
_TOKENS: dict[str, str] = {}


class World:
    """A hub, a clock that tests can turn on, parties `north`, `south` and `east`, each with a site."""

    model = staticmethod(model_bytes)
    metadata = staticmethod(metadata_of)
    safetensors = staticmethod(safetensors_bytes)
    candidates_of = staticmethod(candidates_of)
    evaluation_of = staticmethod(evaluation_of)
    STITCHES = STITCHES

    def __init__(self, settings: Settings, client: TestClient, hub: HubContext) -> None:
        self.settings, self.client, self.hub = settings, client, hub
        self._moment = datetime.now(UTC)
        self._published: set[str] = set()
        hub.now = self.now
        self._fill()
        self.sites = {name: Actor(client, _TOKENS[f"{name}-site"]) for name in PARTIES}
        self.operator, self.north, self.south, self.east = (
            Actor(client, _TOKENS[name]) for name in ("operators", *PARTIES)
        )

    def now(self) -> datetime:
        """The moment that tests have come to: what a machine takes meanwhile does not count. No two are the same."""
        self._moment += timedelta(microseconds=1)
        return self._moment

    def _fill(self) -> None:
        """Add the parties, sites and tokens: the hub's own way for the first hub, and the same rows for the others."""
        if not _ROWS:
            with self.hub.database.writing() as session:
                self._add(session, "operators", "operator")
                for name in PARTIES:
                    party = self._add(session, name, "publisher", "requester")
                    site = sites.add_site(session, party, f"{name}-site", self.now())
                    _TOKENS[f"{name}-site"] = parties.add_site_token(session, site, self.now())[1]
            with self.hub.database.reading() as session:
                for table in map(Base.metadata.tables.__getitem__, ("parties", "sites", "tokens", "audit")):
                    # Numbers that the database counts are left to it, which counts in the same order.
                    columns = [column for column in table.columns if column is not table.autoincrement_column]
                    rows = session.execute(select(*columns).order_by(*table.primary_key)).mappings()
                    _ROWS[table] = list(map(dict, rows))
            return
        with self.hub.database.writing() as session:
            for table, rows in _ROWS.items():
                session.execute(table.insert(), rows)

    def _add(self, session: Session, name: str, *roles: Any) -> Party:
        party = parties.add_party(session, name, self.now())
        _TOKENS[name] = parties.add_token(session, party, roles, self.now())[1]
        return party

    def actor(self, party: str, *roles: Any) -> Actor:
        with self.hub.database.writing() as session:
            return Actor(
                self.client, parties.add_token(session, parties.get_party(session, party), roles, self.now())[1]
            )

    def later(self, seconds: float) -> None:
        """Let time pass, and let the hub notice."""
        self._moment += timedelta(seconds=seconds)
        sweep_once(self.hub)

    def ask(self, *, models: Any = ("north/digits", "south/digits"), **changes: Any) -> Any:
        """Publish two models, if need be, and post a job by `north`."""
        for party in {"north", "south"} - self._published:
            getattr(self, party).publish(f"{party}/digits", model=self.model(seed=ord(party[0])))
            self._published.add(party)
        body = {"models": [{"repo": repo} for repo in models], "dataset": "digits", "evaluate_at": ["south"]}
        return self.north.post("/v1/jobs", {**body, **changes})

    def job(self, job: Any) -> Any:
        answer = self.north.get(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fit(self, **changes: Any) -> Any:
        """Lease the fit of `north` and finish it; return the task."""
        site = self.sites["north"]
        task = site.lease()
        assert task["kind"] == "fit"
        assert site.put(task, "candidates.json", json.dumps(candidates_of(task, **changes)).encode()).status_code == 200
        assert site.put(task, "stitches.safetensors", STITCHES).status_code == 200
        answer = site.tell(task, "result", document={"n": 412})
        assert answer.status_code == 200, answer.text
        return task

    def evaluate(self, party: str) -> Any:
        """Lease the evaluation of a party and finish it; return the task."""
        task = self.sites[party].lease()
        assert task["kind"] == "evaluate"
        answer = self.sites[party].tell(task, "result", document=evaluation_of(task))
        assert answer.status_code == 200, answer.text
        return task

    def put_composed(self, task: Any, **changes: Any) -> None:
        for name, content in composed_of(task, **changes).items():
            answer = self.sites["north"].put(task, name, content)
            assert answer.status_code == 200, answer.text

    def compose(self) -> Any:
        """Lease the composition of `north` and finish it; return the task."""
        site = self.sites["north"]
        task = site.lease()
        assert task["kind"] == "compose"
        self.put_composed(task)
        answer = site.tell(task, "result", document={"chosen": "c03"})
        assert answer.status_code == 200, answer.text
        return task

    def blobs(self) -> list[str]:
        folder = Path(self.settings.store)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def handmade() -> type[World]:
    """`.model(…)` and `.metadata(…)` alone."""
    return World


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    # The sweeper rests: tests let time pass, and sweep, by `World.later`.
    return Settings(database_url=database_url, store=str(tmp_path / "store"), sweep_seconds=3600)


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., World]]:
    """Start a hub with some settings changed."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def run(**changes: Any) -> World:
            chosen = settings.model_copy(update=changes)
            app = hub_app(chosen)
            client = stack.enter_context(TestClient(app))
            return World(chosen, client, app.state.hub)

        yield run


@pytest.fixture
def world(start: Callable[..., World]) -> World:
    return start()


@pytest.fixture
def leased(world: World) -> tuple[Any, Any]:
    """A job whose fit `north` has leased, and that task."""
    job = world.ask().json()
    return job, world.sites["north"].lease()


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An identity provider, which signs whatever a test wants."""
    with Provider() as running:
        yield running
