"""A walk over every route of the hub: as another party, as nobody, and with tokens that are over.

What exists and is another's must answer as what does not exist does, byte for byte. The routes are the app's own: one
without an entry in `CALLS` fails the test. The log that the walk leaves holds nothing of what was sent.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass, field
from string import Template
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
import structlog
from fastapi.routing import iter_route_contexts
from sqlalchemy import select

from suture_contract.console.logs import configure_logging
from suture_service.auth import digest
from suture_service.database import Base
from suture_service.hf import missing
from suture_service.tables import Token

#: Words that are sent in the walk and must not come back to strangers, nor be in the log.
CANARY = "canary4711"
ROLES = ("admin", "publisher", "requester", "steward", "auditor")
HF, XET = "/api/models/{namespace}/{name}", "/xet/{epoch}"
V1, REPO = "/v1/models/{party}/{name}", "/{namespace}/{name}"
ADMIN = "POST /-/admin/{party}"
COMMIT = (
    b'{"key": "header", "value": {"summary": "canary4711"}}\n'
    b'{"key": "file", "value": {"path": "notes.txt", "content": "Y2FuYXJ5NDcxMQ=="}}\n'
)


@dataclass(frozen=True)
class Call:
    """How a route is called. `absent` is what is put in place of the parts of path and body where nothing is there."""

    #: Who may call it at all: a party, a site, the holder of an address for uploads, everyone.
    by: Literal["party", "site", "xet", "address", "all"] = "party"
    body: Any = None
    content: bytes | None = None
    kind: str = "application/json"
    query: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ("name",)
    #: Of a page's form; texts are made as those of a body are.
    form: dict[str, str] | None = None
    #: What parties show to each other: others see it, and see that something else is not there.
    shown: bool = False
    #: It answers with a page all the same, which says that there is nothing.
    empty: bool = False
    #: Parts of the path that are called otherwise on this route.
    parts: dict[str, str] = field(default_factory=dict)
    accept: str = "*/*"


def task(**body: Any) -> Call:
    return Call(by="site", body={"fence": 1, **body}, absent=("task_id",))


def page(*absent: str, shown: bool = False, **parts: str) -> Call:
    return Call(absent=absent, shown=shown, parts=parts, accept="text/html")


def form(by: Literal["party", "all"] = "party", absent: tuple[str, ...] = (), **fields: str) -> Call:
    kind = "application/x-www-form-urlencoded"
    return Call(by=by, form=fields, kind=kind, absent=absent, accept="text/html")


NOTHING: tuple[str, ...] = ()
OPEN = Call(by="all", absent=NOTHING)
#: Where people are sent to sign in, and come back: this hub's provider is away, and nobody was sent there.
AT_PROVIDER = {"GET /-/sign-in/provider": 503, "GET /-/sign-in/back": 403}
LIST = Call(absent=NOTHING)
READ = Call()
JOB = Call(absent=("job_id",))
JOB_FILE = Call(absent=("job_id",), parts={"name": "stitches.safetensors"})
REASON = {"reason": CANARY}
SITE = Call(absent=("site",))
#: In the order in which the owner takes them at the end: what ends something comes last.
CALLS: dict[str, Call] = {
    "GET /openapi.json": OPEN,
    "HEAD /openapi.json": OPEN,
    "GET /docs": OPEN,
    "GET /-/static/{file}": Call(by="all", absent=NOTHING, parts={"file": "site.css"}),
    "GET /-/sign-in": OPEN,
    "POST /-/sign-in": form(by="all", token=CANARY, absent=NOTHING),
    **dict.fromkeys(AT_PROVIDER, OPEN),
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": OPEN,
    "GET /api/agent-harnesses": OPEN,
    "POST /api/validate-yaml": Call(by="all", body={"content": f"---\nlicense: {CANARY}\n---\n"}, absent=NOTHING),
    "GET /v1/login": OPEN,
    "POST /v1/login": Call(by="all", body={"id_token": CANARY}, absent=NOTHING),
    "POST /v1/telemetry": Call(by="all", body={"x": CANARY}, absent=NOTHING),
    "GET /v1/whoami": LIST,
    "GET /api/whoami-v2": LIST,
    "GET /v1/parties": LIST,
    "GET /v1/models": Call(query={"search": CANARY}, absent=NOTHING),
    "GET /api/models": Call(query={"search": CANARY}, absent=NOTHING),
    "GET /v1/jobs": LIST,
    "GET /v1/access": LIST,
    "GET /v1/audit": LIST,
    "GET /v1/audit/verify": LIST,
    "GET /v1/datasets": LIST,
    "PUT /v1/site/datasets": Call(by="site", body={"datasets": None}, absent=NOTHING),
    "POST /v1/tasks/lease": Call(by="site", body={"wait": 0}, absent=NOTHING),
    "GET /v1/parties/{party}": Call(absent=("party",), shown=True),
    "GET /v1/parties/{party}/keys": Call(absent=("party",), shown=True),
    "GET /v1/parties/{party}/tokens": Call(absent=("party",)),
    "GET /v1/parties/{party}/quota": Call(absent=("party",)),
    "GET /v1/parties/{party}/people": Call(absent=("party",)),
    f"GET {V1}": READ,
    f"GET {V1}/revisions": READ,
    f"GET {V1}/revisions/{{revision}}": READ,
    f"GET {V1}/revisions/{{revision}}/files/{{file}}": READ,
    f"HEAD {V1}/revisions/{{revision}}/files/{{file}}": READ,
    f"GET {V1}/revisions/{{revision}}/lineage": READ,
    f"GET {V1}/access": READ,
    f"GET {HF}": READ,
    f"GET {HF}/revision/{{revision}}": READ,
    f"GET {HF}/auth-check": READ,
    f"GET {HF}/auth-check/write": READ,
    f"GET {HF}/refs": READ,
    f"GET {HF}/tree/{{revision}}": READ,
    f"GET {HF}/tree/{{revision}}/{{path:path}}": Call(parts={"path": ""}),
    f"GET {HF}/commits/{{revision}}": READ,
    f"GET {HF}/xet-write-token/{{revision}}": READ,
    f"POST {HF}/paths-info/{{revision}}": Call(content=b"paths=suture.json", kind="application/x-www-form-urlencoded"),
    "GET /{namespace}/{name}/resolve/{revision}/{path:path}": READ,
    "HEAD /{namespace}/{name}/resolve/{revision}/{path:path}": READ,
    f"GET {HF}/lfs-files": READ,
    f"GET {HF}/user-access-request/{{status}}": Call(parts={"status": "pending"}),
    f"POST {HF}/user-access-request/handle": Call(body={"user": "south", "status": "accepted"}),
    f"POST {HF}/user-access-request/grant": Call(body={"user": "south"}),
    "POST /{namespace}/{name}/ask-access": Call(content=b"reason=canary4711", kind="application/x-www-form-urlencoded"),
    **{f"GET {path}": page() for path in ("/", "/-/parties", "/-/account", "/-/access", "/-/audit", "/-/jobs")},
    "GET /-/audit/export": page(),
    "GET /-/audit/verify": page(),
    "GET /-/measured/{namespace}/{name}": page("name"),
    "GET /-/jobs/new": page(),
    "GET /-/compare": Call(
        query={"of": "$party/$name $job_id"}, absent=("name", "job_id"), empty=True, accept="text/html"
    ),
    "GET /{namespace}": page("namespace", shown=True),
    "GET /-/admin/{party}": page("party"),
    f"GET {REPO}": page("name"),
    f"GET {REPO}/tree/{{revision}}": page("name"),
    f"GET {REPO}/tree/{{revision}}/{{path:path}}": page("name", path=""),
    f"GET {REPO}/blob/{{revision}}/{{path:path}}": page("name"),
    f"GET {REPO}/download/{{revision}}/{{path:path}}": page("name"),
    f"GET {REPO}/commits/{{revision}}": page("name"),
    f"GET {REPO}/commit/{{revision}}": page("name"),
    f"GET {REPO}/network/{{revision}}": page("name"),
    "GET /-/jobs/{job_id}": page("job_id"),
    "GET /-/jobs/{job_id}/live": page("job_id"),
    "GET /-/jobs/{job_id}/report": page("job_id"),
    "GET /v1/jobs/{job_id}": JOB,
    "GET /v1/jobs/{job_id}/events": JOB,
    "GET /v1/jobs/{job_id}/report": JOB,
    "HEAD /v1/jobs/{job_id}/report": JOB,
    "GET /v1/jobs/{job_id}/files/{name}": JOB_FILE,
    "HEAD /v1/jobs/{job_id}/files/{name}": JOB_FILE,
    "POST /v1/tasks/{task_id}/heartbeat": task(),
    "POST /v1/tasks/{task_id}/progress": task(step="moments", done=1, total=2),
    "POST /v1/tasks/{task_id}/wait": task(waits_for="approval"),
    "PUT /v1/tasks/{task_id}/files/{name}": Call(
        by="site", content=b"{}", query={"fence": 1}, absent=("task_id",), parts={"name": "candidates.json"}
    ),
    "POST /v1/tasks/{task_id}/result": task(document={"n": 412}),
    "POST /-/sign-out": form(),
    "POST /-/parties": form(name="newcomer2"),
    f"{ADMIN}/tokens": form(roles="reader", name=CANARY, absent=("party",)),
    f"{ADMIN}/sites": form(name="third", absent=("party",)),
    f"{ADMIN}/people": form(name="c.dahl", subject=CANARY * 3, absent=("party",)),
    f"{ADMIN}/people/{{person}}": form(roles="requester", absent=("person",)),
    f"{ADMIN}/people/{{person}}/remove": Call(
        form={}, kind="application/x-www-form-urlencoded", absent=("person",), parts={"person": "c.dahl"}
    ),
    f"{ADMIN}/keys/{{fingerprint}}/revoke": form(reason=CANARY, absent=("fingerprint",)),
    # It says what is wrong, as a part of another page does: see `test_pages`.
    "POST /-/jobs/check": form(models="$party/$name south/digits", dataset="digits"),
    "POST /-/jobs/models": form(model="$party/$name", search="$party"),
    "POST /-/jobs/new": form(models="$party/$name south/digits", dataset="digits", absent=("name",)),
    f"POST /-/request-access{REPO}": form(reason="why", absent=("name",)),
    f"POST /-/sharing{REPO}": form(visibility="private", gated="open", absent=("name",)),
    "POST /-/access/{party}/{name}/{asker}": form(state="refused", answer=CANARY, absent=("name",)),
    "POST /v1/parties": Call(body={"name": "newcomer"}, absent=NOTHING),
    "POST /v1/parties/{party}/tokens": Call(body={"roles": ["reader"], "name": CANARY}, absent=("party",)),
    "POST /v1/parties/{party}/people": Call(
        body={"name": "another", "subject": CANARY, "roles": []}, absent=("party",)
    ),
    "PATCH /v1/parties/{party}/people/{person}": Call(body={"roles": ["auditor"]}, absent=("person",)),
    "DELETE /v1/parties/{party}/people/{person}": Call(absent=("person",)),
    "POST /v1/parties/{party}/sites": Call(body={"name": "second"}, absent=("party",)),
    "POST /v1/parties/{party}/keys": Call(
        body={"name": "second", "public_key": f"-----BEGIN {CANARY}-----"}, absent=("party",)
    ),
    "POST /v1/parties/{party}/keys/{fingerprint}/revoke": Call(body=REASON, absent=("fingerprint",)),
    "POST /v1/jobs": Call(
        body={"models": [{"repo": "$party/$name"}, {"repo": "south/digits"}], "dataset": CANARY}, absent=("name",)
    ),
    f"PUT {V1}/revisions": Call(content=b"--B--", kind="multipart/form-data; boundary=B", query={"visibility": "all"}),
    f"PATCH {V1}": Call(body={"visibility": "private"}),
    f"POST {V1}/access": Call(body=REASON),
    f"PUT {V1}/access/{{asker}}": Call(body={"state": "refused", "answer": CANARY}),
    f"PUT {V1}/revisions/{{revision}}/signature": Call(content=b"{}"),
    f"POST {HF}/preupload/{{revision}}": Call(body={"files": [{"path": f"{CANARY}.txt", "size": 3, "sample": "YQ=="}]}),
    "POST /{namespace}/{name}.git/info/lfs/objects/batch": Call(
        body={"operation": "upload", "objects": [{"oid": "$sha256", "size": 3}]}
    ),
    "PUT /api/lfs/{permission}": Call(by="address", content=b"abc", absent=("permission",)),
    "POST /xet/{epoch}/v1/xorbs/default/{hash}": Call(by="xet", content=b"abc", absent=("epoch",)),
    "POST /xet/{epoch}/v1/shards": Call(by="xet", content=b"abc", absent=("epoch",)),
    "POST /xet/{epoch}/shards": Call(by="xet", content=b"abc", absent=("epoch",)),
    "POST /xet/{epoch}/v2/shards": Call(by="xet", content=b"abc", absent=("epoch",)),
    f"POST {HF}/branch/{{branch}}": Call(body={}, parts={"branch": "another"}),
    f"POST {HF}/tag/{{revision}}": Call(body={"tag": "v2", "message": CANARY}),
    f"POST {HF}/commit/{{revision}}": Call(content=COMMIT),
    f"PUT {HF}/settings": Call(body={"private": True}),
    "POST /api/repos/create": Call(body={"name": "$name", "organization": "$party"}),
    "POST /v1/tasks/{task_id}/decline": task(code="policy.denied"),
    "POST /v1/tasks/{task_id}/fail": task(code="child.killed"),
    "POST /v1/jobs/{job_id}/cancel": JOB,
    "POST /v1/jobs/{job_id}/retry": JOB,
    "POST /-/jobs/{job_id}/cancel": form(absent=("job_id",)),
    "POST /-/jobs/{job_id}/retry": form(absent=("job_id",)),
    f"POST {V1}/revisions/{{revision}}/withdraw": Call(body=REASON),
    f"POST {HF}/super-squash/{{branch}}": Call(body={"message": CANARY}),
    f"POST {HF}/lfs-files/batch": Call(body={"deletions": {"sha": ["$sha256"], "rewriteHistory": True}}),
    f"POST {V1}/purge": Call(body={**REASON, "path": "suture.json", "dry_run": True}),
    f"DELETE {HF}/tag/{{tag}}": READ,
    f"DELETE {HF}/branch/{{branch}}": READ,
    # Refused, while the job that this walk has asked for goes on: the next call finds it still.
    "POST /api/repos/move": Call(body={"fromRepo": "$party/$name", "toRepo": "$party/moved1"}),
    "DELETE /api/repos/delete": Call(body={"name": "$name", "organization": "$party"}),
    f"{ADMIN}/tokens/{{token_id}}/revoke": form(absent=("token_id",)),
    "DELETE /v1/tokens/{token_id}": Call(absent=("token_id",)),
    "PUT /v1/parties/{party}/quota": Call(body={"max_bytes": None, "max_jobs": None}, absent=("party",)),
    f"{ADMIN}/quota": form(max_jobs="3", absent=("party",)),
    "POST /v1/parties/{party}/sites/{site}/suspend": SITE,
    "POST /v1/parties/{party}/sites/{site}/resume": SITE,
    "POST /v1/parties/{party}/sites/{site}/rename": Call(body={"name": "north-site-2"}, absent=("site",)),
    # Not confirmed, so that the party itself is there for the next one; renaming it waits for its jobs.
    "DELETE /v1/parties/{party}/sites/{site}": Call(query={"confirm": "x"}, absent=("site",)),
    "DELETE /v1/parties/{party}": Call(query={"confirm": "x"}, absent=("party",)),
    "POST /v1/parties/{party}/rename": Call(body={"name": "north"}, absent=("party",)),
    "POST /v1/parties/{party}/resume": Call(absent=("party",)),
    "POST /v1/parties/{party}/suspend": Call(absent=("party",)),
}
#: Refused to the owner too, for what this walk sends is no model, signature or Xet; but not as something unknown.
REFUSED = {400, 409, 422}
#: What is no token is none for its owner either.
NO_TOKEN = "POST /-/sign-in"
#: These the owner misses too: its own party asks for nothing, there is no report yet and no key.
MISSED = (
    "POST /v1/parties/{party}/keys/{fingerprint}/revoke",
    f"GET {V1}/access",
    f"PUT {V1}/access/{{asker}}",
    f"POST {HF}/user-access-request/handle",
    "POST /-/access/{party}/{name}/{asker}",
    f"{ADMIN}/keys/{{fingerprint}}/revoke",
    "GET /-/jobs/{job_id}/report",
    "GET /v1/jobs/{job_id}/report",
    "HEAD /v1/jobs/{job_id}/report",
)


def routes(app: Any) -> dict[str, str]:
    """Every route, as `METHOD /path`, with its path; but those that say to everybody what is not here."""
    found = {}
    for route in iter_route_contexts(app.routes):
        for method in (route.methods or ()) if route.path not in {*missing.PATHS, *missing.GIT} else ():
            found[f"{method} {route.path}"] = route.path
    return found


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
