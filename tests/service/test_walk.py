"""A walk over every route of the hub: as another party, as nobody, and with tokens that are over.

What exists and is another's must answer as what does not exist does, byte for byte. The routes are the app's own: one
without an entry in `CALLS` fails the test. The log that the walk leaves holds nothing of what was sent.
"""

from __future__ import annotations

import io
import json
import logging
from string import Template
from typing import Any
from urllib.parse import urlencode

import pytest
import structlog
from sqlalchemy import select
from tests.service.every_route import AT_PROVIDER, CALLS, CANARY, MISSED, NO_TOKEN, REFUSED, Call, routes

from suture_contract.console.logs import configure_logging
from suture_service.auth import digest
from suture_service.database import Base
from suture_service.tables import Token

ROLES = ("admin", "publisher", "requester", "steward", "auditor")


class Walk:
    """A world in which `north` has one of everything, all private, and `east` comes by with every role."""

    def __init__(self, world: Any) -> None:
        self.world, self.client = world, world.client
        self.owner = world.actor("north", *ROLES, "operator")
        self.stranger = world.actor("east", *ROLES)
        self.over = world.actor("north", *ROLES)
        assert self.owner("DELETE", f"/v1/tokens/{self._id(self.over)}").status_code == 204
        content, card = world.metadata(description=CANARY, labels=["a", CANARY]), f"# {CANARY}\n".encode()
        answer = self.owner.publish("north/secret", metadata=content, card=card, visibility="private")
        assert answer.status_code == 201, answer.text
        assert self.stranger.publish("east/own", visibility="private").status_code == 201
        base = "/api/models/north/secret"
        for path, body in ((f"{base}/branch/side", {}), (f"{base}/tag/main", {"tag": "v1"})):
            assert self.owner.post(path, body).status_code == 200
        person = {"name": "a.berg", "subject": CANARY * 2, "roles": []}
        assert self.owner.post("/v1/parties/north/people", person).status_code == 201
        job = world.ask().json()
        world.fit()
        leased = world.sites["north"].lease()
        assert (leased["kind"], leased["fence"]) == ("evaluate", 1)
        self.xet = {name: self._xet(actor, repo) for name, actor, repo in self._senders()}
        batch = {"operation": "upload", "objects": [{"oid": _ABC, "size": 3}]}
        answer = self.owner.post("/north/secret.git/info/lfs/objects/batch", batch).json()
        spare = world.actor("north", "publisher")
        token = spare.post("/north/secret.git/info/lfs/objects/batch", batch).json()
        assert self.owner("DELETE", f"/v1/tokens/{self._id(spare)}").status_code == 204
        self.ended_address = token["objects"][0]["actions"]["upload"]["href"].rpartition("/")[2]
        self.parts = {
            "party": "north",
            "namespace": "north",
            "name": "secret",
            "revision": "main",
            "branch": "side",
            "tag": "v1",
            "file": "suture.json",
            "path": "suture.json",
            "job_id": job["id"],
            "task_id": leased["id"],
            "token_id": self._id(world.north),
            "person": "a.berg",
            "site": "north-site",
            "fingerprint": "a" * 64,
            "asker": "south",
            "epoch": self.xet["owner"][0],
            "hash": "b" * 64,
            "permission": answer["objects"][0]["actions"]["upload"]["href"].rpartition("/")[2],
            "sha256": _ABC,
        }
        self.absent = {
            "party": "nobdy",
            "namespace": "nobdy",
            "name": "absent",
            "job_id": _other(job["id"]),
            "task_id": _other(leased["id"]),
            "token_id": _other(self.parts["token_id"]),
            "person": "n.bdy",
            "site": "absnt-site",
            "fingerprint": "0" * 64,
            "epoch": _other(self.parts["epoch"]),
            "permission": _other(self.ended_address),
        }

    def _senders(self) -> Any:
        return (("owner", self.owner, "north/secret"), ("stranger", self.stranger, "east/own"))

    def _xet(self, actor: Any, repo: str) -> tuple[str, str]:
        answer = actor.get(f"/api/models/{repo}/xet-write-token/main").json()
        return answer["casUrl"].rpartition("/")[2], answer["accessToken"]

    def _id(self, actor: Any) -> str:
        with self.world.hub.database.reading() as session:
            return str(session.scalars(select(Token.id).where(Token.secret_sha256 == digest(actor.token))).one())

    def call(self, route: str, token: str | None, *, absent: bool = False, **parts: str) -> Any:
        """Call a route for what is there, or for what is not."""
        call = CALLS[route]
        values = {**self.parts, **call.parts, **parts}
        if "/v1/models/" in route:
            values["revision"] = "latest"
        if absent:
            values |= {name: self.absent[name] for name in call.absent}
        method, _, path = route.partition(" ")
        path = path.replace(":path}", "}").format_map(values)
        query = {key: Template(str(value)).substitute(values) for key, value in call.query.items()}
        options: dict[str, Any] = {"params": query}
        if call.content is not None:
            options["content"] = call.content
        elif call.form is not None:
            options["content"] = urlencode({key: Template(text).substitute(values) for key, text in call.form.items()})
        elif method in ("POST", "PUT", "PATCH", "DELETE"):
            text = Template(json.dumps(call.body if call.body is not None else {})).substitute(values)
            options["content"] = text.encode()
        headers = {"Content-Type": call.kind, "Accept": call.accept}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.client.request(method, path, headers=headers, **options, follow_redirects=False)

    def shown(self, answer: Any, **parts: str) -> tuple[Any, ...]:
        """What an answer says, but for the ids that were asked for."""
        headers = {name: value for name, value in answer.headers.items() if name not in _VARYING}
        text = json.dumps(headers, sort_keys=True) + answer.text
        for name, value in [*self.absent.items(), *parts.items(), *((n, self.parts[n]) for n in self.absent)]:
            text = text.replace(value, f"<{name}>")
        return answer.status_code, text

    def token(self, call: Call, who: str) -> str:
        if call.by == "site":
            return str(self.world.sites["north" if who == "owner" else "east"].token)
        if call.by == "xet":
            return self.xet[who][1]
        return str((self.owner if who == "owner" else self.stranger).token)


_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
_COUNTING = ("ratelimit-remaining", "ratelimit-reset")
_VARYING = {"x-request-id", "date", *_COUNTING}


def size(answer: Any) -> int:
    """How many bytes an answer takes, but for what counts requests or the seconds of a minute."""
    headers = ((name, value) for name, value in answer.headers.items() if name not in ("date", *_COUNTING))
    return len(answer.content) + sum(len(name) + len(value) for name, value in headers)


def _other(text: str) -> str:
    """Another id of the same form."""
    return text[:-4] + ("0000" if text[-4:] != "0000" else "1111")


@pytest.fixture
def log(monkeypatch):
    """What the hub logs at the level `debug`."""
    root, written = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    configure_logging("debug", "suture_service", "uvicorn")
    # Standard error is another for each phase of a test.
    kept = logging.StreamHandler(written)
    kept.setFormatter(root.handlers[0].formatter)
    root.handlers = [kept]
    yield written
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def walk(start):
    # Nothing in this walk asks the identity provider.
    provider = {"oidc_issuer": "https://id.example", "oidc_client_id": "suture"}
    return Walk(start(wrong_tokens=10**6, requests_per_minute=10**6, **provider))


def rows(world):
    """All rows, without what a mere request leaves: when a token was used, and that a site asked for work."""
    noted = {"last_used_at", "last_seen_at"}
    with world.hub.database.reading() as session:
        return {
            table.name: sorted(map(repr, session.execute(select(*(c for c in table.c if c.name not in noted)))))
            for table in Base.metadata.sorted_tables
        }


def test_every_route_is_in_the_walk(walk):
    found = routes(walk.client.app)
    assert set(found) == set(CALLS)
    assert len(found) > 80


def test_what_is_anothers_answers_as_what_is_not_there(walk):
    before, wrong = rows(walk.world), {}
    for route, call in CALLS.items():
        if call.by == "address":
            continue
        token = walk.token(call, "stranger")
        there = walk.call(route, token)
        failed = there.status_code >= 500 and there.status_code != AT_PROVIDER.get(route)
        if failed or (CANARY in there.text and call.by != "all"):
            wrong[route] = there.text
        if not call.absent:
            continue
        missing = walk.call(route, token, absent=True)
        expected = {200} if call.shown or call.empty else {403, 404}
        # Nor does the size tell: what there is and what there is not have names of the same length here.
        alike = call.shown or (walk.shown(there), size(there)) == (walk.shown(missing), size(missing))
        if there.status_code not in expected or not alike:
            wrong[route] = (there.status_code, there.text, missing.status_code, missing.text)
    assert wrong == {}
    after = rows(walk.world)
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nobody_and_tokens_that_are_over_learn_nothing(walk):
    before, failed = rows(walk.world), {}
    for route, call in CALLS.items():
        if call.by in ("all", "address"):
            continue
        answers = {
            (absent, token): walk.call(route, token, absent=absent)
            for absent in (False, True)
            for token in (None, walk.over.token, "suture_party_that_never_was")
        }
        refused = {401, 403} if call.by == "xet" else {401}
        nobody = {walk.shown(answer) for (_, token), answer in answers.items() if token is None}
        wrong = {walk.shown(answer) for (_, token), answer in answers.items() if token is not None}
        told = any(CANARY in answer.text for answer in answers.values())
        if told or {status for status, _ in nobody | wrong} - refused or (len(nobody), len(wrong)) != (1, 1):
            failed[route] = nobody | wrong
    assert failed == {}
    assert rows(walk.world) == before


def test_an_address_for_uploads_ends_with_its_token(walk):
    route = "PUT /api/lfs/{permission}"
    ended = walk.call(route, None, permission=walk.ended_address)
    forged = walk.call(route, None, absent=True)
    assert ended.status_code == forged.status_code == 403
    assert walk.shown(ended, permission=walk.ended_address) == walk.shown(forged)
    assert walk.call(route, None).status_code == 200


def test_an_address_for_uploads_ends_when_its_tokens_days_are_over(walk):
    made = walk.owner.post("/v1/parties/north/tokens", {"roles": ["publisher"], "days": 1}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    walk.world.later(86400 - 60)
    batch = {"operation": "upload", "objects": [{"oid": _ABC, "size": 3}]}
    answer = walk.client.post("/north/secret.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    address = answer["objects"][0]["actions"]["upload"]["href"]
    walk.world.later(120)
    assert walk.client.put(address, content=b"abc").status_code == 403


def test_the_owner_finds_what_others_do_not_and_the_log_holds_nothing_of_it(log, walk):
    """The calls of this walk are right: it is the stranger who is refused, not a mistake in them."""
    wrong = {}
    for route, call in CALLS.items():
        answer = walk.call(route, walk.token(call, "owner") if call.by not in ("all", "address") else None)
        missed = {NO_TOKEN: 401, **AT_PROVIDER, **dict.fromkeys(MISSED, 404)}.get(route)
        expected = answer.status_code == missed if missed else answer.status_code < 400
        if not expected and answer.status_code not in REFUSED:
            wrong[route] = (answer.status_code, answer.text)
    assert wrong == {}
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) >= len(CALLS)
    assert all(line["request_id"] for line in requests)
    # What describes the API to machines is no route of the hub's own.
    assert sum(line["route"] == "unknown" for line in requests) == 2
    for word in (
        CANARY,
        "suture_party_",
        "suture_site_",
        _ABC,
        walk.xet["owner"][1],
        walk.ended_address,
        "north/secret",
    ):
        assert word not in log.getvalue(), word
