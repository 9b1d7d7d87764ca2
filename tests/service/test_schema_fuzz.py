"""Whatever comes in, the hub answers with a refusal that says what is wrong, never with a failure of its own."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import suppress
from itertools import cycle, islice
from urllib.parse import unquote

import anyio
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from tests.service.conftest import hub_app
from tests.service.every_route import routes

from suture_service.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, when it is imported
    import schemathesis

ROLES = ("admin", "operator", "publisher", "requester", "steward", "auditor")
#: The same at every run, and as many as a quick test may take.
QUICK = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
#: What a database may refuse, or read as something else: no text, what a statement is made of, a number, too long.
FOR_DATABASES = ("a%00b", "%ED%A0%80%F0%9F%AB%80'%20OR%201=1--%25", "9" * 40, "a" * 5000)
#: What a path, a number or a header may become, before any database is asked.
FOR_PATHS = (
    "..",
    ".",
    "-1",
    "1e999",
    "%00",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cx",
    "%ff%fe%c0%ae~1%e2%80%ae",
    "%0d%0aX-Evil:%201",
    "%252e%252e",
)
STRANGE = FOR_DATABASES + FOR_PATHS
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from([unquote(s) for s in STRANGE])
HEADERS = (
    "accept",
    "authorization",
    "content-length",
    "content-type",
    "content-encoding",
    "cookie",
    "expect",
    "if-none-match",
    "if-range",
    "range",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-http-method-override",
    "x-request-id",
)
VALUES = st.binary(max_size=60).filter(lambda value: not re.search(rb"[\r\n\0]", value)) | st.sampled_from(
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer \xff\xfe",
        b"Basic YTpi",
        b"bytes=0-0,5-2",
        b"bytes=-",
        b"bytes=99999999999999999999999-",
        b"bytes=5-1",
        b"-5",
        b"99999999999999999999999",
        b"application/json; charset=utf-99",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"gzip",
        b"chunked",
        b"100-continue",
        b'W/"x"',
        b"a" * 20_000,
    ]
)


#: What is made up here is no ID token, so that nobody is asked about it.
PROVIDER = {"oidc_issuer": "https://id.example", "oidc_client_id": "suture"}


@pytest.fixture
def world(start):
    made = start(requests_per_minute=10**7, wrong_tokens=10**7, max_request_bytes=2**20, **PROVIDER)
    made.north = made.actor("north", *ROLES)
    made.job = made.ask().json()["id"]
    made.task = made.sites["north"].lease()
    return made


async def answer_of(app, method, path, headers, body=b""):
    """Send exactly these bytes as path and headers; return status, headers and body."""
    path, _, query = path.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("hub", 80),
    }
    got = []
    parts = [{"type": "http.request", "body": body}]

    async def receive():
        if parts:
            return parts.pop()
        return {"type": "http.disconnect"}

    async def note(message):
        got.append(message)

    with anyio.fail_after(30):
        await app(scope, receive, note)
    content = b"".join(message.get("body", b"") for message in got[1:])
    return got[0]["status"], dict(got[0]["headers"]), content


def send(world, requests):
    """Send them one after the other and check each answer."""

    async def run():
        for sent in requests:
            status, headers, content = await answer_of(world.client.app, *sent)
            check(status, headers, content, sent)

    world.client.portal.call(run)


def check(status, headers, content, sent):
    # 501 is a part of the official client's protocol that this hub leaves out.
    assert status < 500 or status == 501, (status, content, sent)
    assert b"x-evil" not in headers
    if status >= 400 and content and headers.get(b"content-type", b"").startswith(b"application/json"):
        assert {"error", "errors"} & set(json.loads(content)), (content, sent)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Requests that the description of the API allows, and such that it does not: schemathesis makes them, once."""
    place = tmp_path_factory.mktemp("described")
    hub = Settings(database_url=f"sqlite:///{place / 'hub.db'}", store=str(place), **PROVIDER)
    cases = []

    def keep(strategy, allowed):
        @settings(max_examples=5, **QUICK)
        @given(case=strategy)
        def run(case):
            if case.path.endswith("/lease"):
                case.body = {"wait": 0} if isinstance(case.body, dict) and "wait" in case.body else case.body
            wanted = requests.Request(**case.as_transport_kwargs(base_url="http://hub")).prepare()
            body = wanted.body.encode() if isinstance(wanted.body, str) else wanted.body or b""
            cases.append((allowed, case.path, wanted.method, wanted.path_url.encode(), dict(wanted.headers), body))

        with suppress(Unsatisfiable):  # a request without any value cannot be wrong
            run()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_dict(hub_app(hub).openapi())
        operations = [result.ok() for result in schema.get_all_operations()]
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                keep(operation.as_strategy(generation_mode=mode), mode is schemathesis.GenerationMode.POSITIVE)
    assert len(operations) > 40
    assert len(cases) > 500
    return cases


def test_the_described_api_has_no_failure_in_it(world, described):
    """What the description does not allow is refused before any database is asked: it comes once."""
    everything = world.settings.database_url.startswith("sqlite")
    requests = []
    for allowed, route, method, path, wanted, body in described:
        if not (allowed or everything):
            continue
        actor = world.sites["north"] if route.startswith("/v1/tasks") else world.north
        headers = {name.lower(): value for name, value in {**wanted, **actor.headers}.items()}
        requests.append((method, path, [(_bytes(name), _bytes(value)) for name, value in headers.items()], body))
    send(world, requests)


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def test_strange_words_in_every_path(world):
    """What a path becomes is settled before any database is asked, for all routes by the same means: those words come
    once, some at each place.
    """
    everything = world.settings.database_url.startswith("sqlite")
    others = cycle(FOR_PATHS)
    auth = [(b"authorization", world.north.headers["Authorization"].encode()), (b"content-type", b"application/json")]
    requests = []
    for route, path in routes(world.client.app).items():
        names = re.findall(r"{\w+(?::path)?}", path)
        for place in names:
            for word in (*FOR_DATABASES, *(islice(others, 4) if everything else ())):
                filled = path
                for name in names:
                    filled = filled.replace(name, word if name == place else "north")
                requests.append((route.partition(" ")[0], filled.encode(), auth, b"{}"))
    assert len(requests) > (800 if everything else 400)
    send(world, requests)


def test_strange_headers(world):
    paths = [
        ("GET", b"/v1/models"),
        ("GET", b"/v1/models/north/digits/revisions/latest/files/model.safetensors"),
        ("GET", b"/north/digits/resolve/main/model.safetensors"),
        ("PUT", b"/v1/models/north/digits/revisions"),
        ("POST", b"/api/models/north/digits/commit/main"),
        ("POST", b"/v1/jobs"),
        ("PUT", b"/api/lfs/x.y"),
        ("POST", b"/xet/0/v1/shards"),
        ("PUT", f"/v1/tasks/{world.task['id']}/files/candidates.json?fence=1".encode()),
    ]

    @settings(max_examples=100, **QUICK)
    @given(
        where=st.sampled_from(paths),
        strange=st.dictionaries(st.sampled_from(HEADERS), VALUES, max_size=4),
        known=st.sampled_from([world.north, world.sites["north"]]),
        body=st.sampled_from([b"", b"{}", b"\xff", b"--x\r\n\r\n", b"[" * 3000]),
    )
    def run(where, strange, known, body):
        headers = {"authorization": known.headers["Authorization"].encode(), **strange}
        sent = (*where, [(name.encode(), value) for name, value in headers.items()], body)
        send(world, [sent])

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "path": TEXT | JSON,
        "content": TEXT | st.sampled_from(["YWJj", "!!!!", "YQ"]) | JSON,
        "encoding": st.sampled_from(["base64", "utf-8", "rot13"]),
        "oid": st.sampled_from(["0" * 64, "x", "A" * 64]) | JSON,
        "size": st.integers() | JSON,
        "algo": TEXT,
        "summary": TEXT | JSON,
        "description": TEXT,
        "parentCommit": st.sampled_from(["0" * 40, "zz", "0" * 7]) | JSON,
    },
)
KEYS = st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder"]) | TEXT
LINES = st.one_of(
    st.builds(lambda key, value: json.dumps({"key": key, "value": value}).encode(), KEYS, FIELDS | JSON),
    st.just(b'{"key": "header", "value": {"summary": "x"}}'),
    st.binary(max_size=50),
    st.sampled_from([b"", b"null", b"[" * 2000, b'{"key":', b"\xef\xbb\xbf{}", b'{"key": "file"}', b"1e999"]),
)


def test_strange_commits(world):
    headers = [
        (b"authorization", world.north.headers["Authorization"].encode()),
        (b"content-type", b"application/x-ndjson"),
    ]

    @settings(max_examples=100, **QUICK)
    @given(lines=st.lists(LINES, max_size=4), headed=st.booleans())
    def run(lines, headed):
        first = [b'{"key": "header", "value": {"summary": "x"}}'] if headed else []
        sent = ("POST", b"/api/models/north/digits/commit/main", headers, b"\n".join([*first, *lines]))
        send(world, [sent])

    run()
    names = [entry["rfilename"] for entry in world.north.get("/api/models/north/digits").json()["siblings"]]
    assert not [name for name in names if {"..", ".", ""} & set(name.split("/")) or "\0" in name or "\\" in name]


def test_strange_documents_of_the_official_client(world):
    """Bodies that the API's description leaves out."""
    base = "/api/models/north/digits"
    fields = st.dictionaries(
        st.sampled_from(
            [
                "name",
                "organization",
                "type",
                "private",
                "visibility",
                "fromRepo",
                "toRepo",
                "gated",
                "startingPoint",
                "tag",
                "content",
                "paths",
                "expand",
                "files",
                "gitIgnore",
                "operation",
                "objects",
                "transfers",
                "hash_algo",
                "hashAlgo",
            ]
        ),
        JSON | st.sampled_from(["north/digits", "digits", "north", "upload"]),
        max_size=5,
    )
    places = [
        ("POST", "/api/repos/create"),
        ("DELETE", "/api/repos/delete"),
        ("POST", "/api/repos/move"),
        ("PUT", f"{base}/settings"),
        ("POST", f"{base}/branch/x"),
        ("POST", f"{base}/tag/main"),
        ("POST", f"{base}/paths-info/main"),
        ("POST", f"{base}/preupload/main"),
        ("POST", "/north/digits.git/info/lfs/objects/batch"),
        ("POST", "/api/validate-yaml"),
    ]
    headers = [
        (b"authorization", world.north.headers["Authorization"].encode()),
        (b"content-type", b"application/json"),
    ]

    @settings(max_examples=100, **QUICK)
    @given(place=st.sampled_from(places), body=fields | JSON)
    def run(place, body):
        sent = (place[0], place[1].encode(), headers, json.dumps(body).encode())
        send(world, [sent])

    run()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_strange_cards(world):
    contents = ["&a [*a, *a]", "a: &a [" + "x," * 5 + "]", "!!python/object/apply:os.system [x]"]
    bodies = [json.dumps({"content": f"---\n{content}\n---\n"}).encode() for content in contents]
    headers = [(b"content-type", b"application/json")]
    send(world, [("POST", b"/api/validate-yaml", headers, body) for body in bodies])
