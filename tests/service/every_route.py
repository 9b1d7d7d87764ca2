"""How every route of the hub is called, by whom, and what stands for something that is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi.routing import iter_route_contexts

from suture_service.hf import missing

#: Words that are sent in the walk and must not come back to strangers, nor be in the log.
CANARY = "canary4711"
HF = "/api/models/{namespace}/{name}"
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
