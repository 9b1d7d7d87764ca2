"""The connection to a hub, against a real server on a socket that misbehaves as told."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from suture import transfers
from suture.errors import AuthError, Conflict, Fenced, HubError, NotFound, Refused, Unavailable
from suture.http import Connection, check_token, check_url, pause
from suture.transfers import Incoming, Outgoing
from suture_contract.errors import SutureError

TOKEN = "suture_north_c2VjcmV0"
CONTENT = bytes(range(256)) * 4096 + bytes(range(255, 0, -1)) * 3000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Request(BaseHTTPRequestHandler):
    """One request, answered by the server's `answer`, the requests so far being in `server.seen`."""

    server: Scripted

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(self)
        self.server.answer(self)

    do_GET = do_POST = do_PUT = _handle

    def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def break_off(self) -> None:
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


class Scripted(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.seen: list[Request] = []
        self.answer: Callable[[Request], None] = lambda request: request.reply(200)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def hub(server: Scripted, pauses: list[float]) -> Iterator[Connection]:
    with Connection(f"http://127.0.0.1:{server.server_port}", TOKEN, sleep=pauses.append, timeout=60) as hub:
        yield hub


def in_turn(*answers: Callable[[Request], None]) -> Callable[[Request], None]:
    """Answer the first request with the first answer and so on; the last one is repeated."""
    waiting = list(answers)
    return lambda request: (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request)


def refusing(status: int, **error: str | None) -> Callable[[Request], None]:
    body = json.dumps({"error": {"code": "some.code", "message": "some message", **error}}).encode()
    return lambda request: request.reply(status, body)


def test_a_document_comes_back_and_the_token_travels_in_its_header_alone(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(200, b'{"party": "north"}')
    assert hub.get("/v1/whoami", limit=3, cursor=None) == {"party": "north"}
    assert server.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert server.seen[0].path == "/v1/whoami?limit=3"


def test_no_content_is_none(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(204, b"")
    assert hub.post("/v1/tasks/lease", {"wait": 0}) is None


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "x.y", Refused),
        (401, "auth.invalid", AuthError),
        (403, "auth.role", AuthError),
        (404, "not_found", NotFound),
        (409, "job.incompatible", Conflict),
        (409, "task.fenced", Fenced),
        (413, "model.too_large", Refused),
        (422, "metadata.invalid", Refused),
        (500, "internal", Unavailable),
    ],
)
def test_a_refusal_says_what_where_and_what_next(
    server: Scripted, hub: Connection, status: int, code: str, kind: type[HubError]
) -> None:
    server.answer = refusing(status, code=code, message="wrong", where="field", hint="do this")
    with pytest.raises(HubError) as caught:
        hub.post("/v1/jobs", {})
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.message, error.where, error.hint) == (code, "wrong", "field", "do this")
    assert error.status == status


def test_a_refusal_that_is_no_document_still_names_the_status(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(404, b"<html>a proxy's page</html>")
    with pytest.raises(NotFound) as caught:
        hub.get("/v1/models/north/digits")
    assert caught.value.code == "http.404"


def test_text_from_the_hub_cannot_steer_the_terminal(server: Scripted, hub: Connection) -> None:
    server.answer = refusing(400, message="\x1b[2Jcleared\nsecond line" + "x" * 5000)
    with pytest.raises(Refused) as caught:
        hub.get("/v1/models")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 2000


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_reading_is_repeated_until_the_hub_answers(
    server: Scripted, hub: Connection, pauses: list[float], status: int
) -> None:
    server.answer = in_turn(refusing(status), Request.break_off, lambda request: request.reply(200, b"[1]"))
    assert hub.get("/v1/models") == [1]
    assert len(server.seen) == 3
    assert len(pauses) == 2


def test_retries_have_an_end(server: Scripted, hub: Connection, pauses: list[float]) -> None:
    server.answer = refusing(503)
    with pytest.raises(Unavailable):
        hub.get("/v1/models")
    assert len(server.seen) == 5
    assert len(pauses) == 4


def test_writing_is_repeated_only_when_nothing_was_done_for_certain(server: Scripted, hub: Connection) -> None:
    server.answer = in_turn(refusing(503), refusing(429), lambda request: request.reply(201))
    hub.post("/v1/jobs", {"a": 1})
    assert [json.loads(request.body) for request in server.seen] == [{"a": 1}] * 3
    for answer in (Request.break_off, refusing(502), refusing(504)):
        server.seen.clear()
        server.answer = answer
        with pytest.raises(Unavailable):
            hub.post("/v1/jobs", {"a": 1})
        assert len(server.seen) == 1


def test_idempotent_writing_is_repeated(server: Scripted, hub: Connection) -> None:
    server.answer = in_turn(Request.break_off, lambda request: request.reply(200, b'{"ok": true}'))
    assert hub.post("/v1/tasks/t/result", {}, idempotent=True) == {"ok": True}


def test_refusals_are_not_repeated(server: Scripted, hub: Connection) -> None:
    server.answer = refusing(409)
    with pytest.raises(Conflict):
        hub.get("/v1/models")
    assert len(server.seen) == 1


def test_the_hub_is_given_the_time_it_asks_for(server: Scripted, hub: Connection, pauses: list[float]) -> None:
    busy = json.dumps({"error": {"code": "busy", "message": "busy"}}).encode()
    server.answer = in_turn(
        lambda request: request.reply(429, busy, Retry_After="7"),
        lambda request: request.reply(429, busy, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        lambda request: request.reply(429, busy, Retry_After="soon"),
        lambda request: request.reply(200),
    )
    hub.get("/v1/models")
    assert pauses[0] >= 7
    assert max(pauses[1:]) < 3


def test_pause_grows_is_bounded_and_honours_the_hub() -> None:
    assert [pause(n, jitter=lambda: 1.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert pause(50, jitter=lambda: 1.0) == 20.0
    assert pause(1, jitter=lambda: 0.0) == 0.0
    assert pause(1, 30.0) == 30.0
    assert pause(1, 1e9) == 120.0


def test_a_silent_hub_is_given_up_on(server: Scripted) -> None:
    release = threading.Event()
    server.answer = lambda request: release.wait(60) and None  # type: ignore[func-returns-value]
    with (
        Connection(f"http://127.0.0.1:{server.server_port}", timeout=0.1, attempts=1) as hub,
        pytest.raises(Unavailable) as caught,
    ):
        hub.get("/v1/models")
    release.set()
    assert caught.value.code == "hub.interrupted"


def test_a_hub_that_is_not_there_is_named(pauses: list[float]) -> None:
    with Scripted() as closed:
        port = closed.server_port
    with (
        Connection(f"http://127.0.0.1:{port}", TOKEN, sleep=pauses.append) as hub,
        pytest.raises(Unavailable) as caught,
    ):
        hub.post("/v1/jobs", {})
    assert caught.value.code == "hub.unreachable"
    assert str(port) in str(caught.value)
    assert len(pauses) == 4, "a connection that was never made may be tried again, also for writing"


def test_redirects_are_not_followed(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(302, Location="http://elsewhere.example/")
    with pytest.raises(HubError) as caught:
        hub.get("/v1/models")
    assert caught.value.status == 302
    assert len(server.seen) == 1


def test_http_for_https_names_the_address_to_give(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(308, Location="https://hub.example/v1/whoami")
    with pytest.raises(Refused) as caught:
        hub.get("/v1/whoami")
    assert caught.value.code == "hub.moved"
    assert "https://hub.example" in str(caught.value.hint)
    assert "/v1/whoami" not in str(caught.value.hint)
    assert len(server.seen) == 1


def test_http_to_a_server_that_speaks_tls_asks_for_https(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.break_off()
    with pytest.raises(Unavailable, match="https://"):
        hub.get("/v1/whoami")


def test_what_is_no_hub_is_said(server: Scripted, hub: Connection) -> None:
    server.answer = lambda request: request.reply(200, b"<html>welcome</html>")
    with pytest.raises(HubError, match="not JSON"):
        hub.get("/v1/models")


def test_the_token_is_shown_nowhere(server: Scripted, hub: Connection, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = refusing(401, code="auth.invalid")
    with pytest.raises(AuthError) as caught:
        hub.get("/v1/models")
    server.answer = Request.break_off
    with pytest.raises(Unavailable) as broken:
        hub.get("/v1/models")
    seen = caplog.text + repr(hub) + "".join(f"{error.value!r}{error.value}" for error in (caught, broken))
    assert "GET" in seen
    assert TOKEN not in seen
    assert all(TOKEN not in request.path for request in server.seen)


def test_a_listing_is_read_page_after_page(server: Scripted, hub: Connection) -> None:
    def answer(request: Request) -> None:
        start = int(request.path.partition("cursor=")[2].partition("&")[0] or 0)
        following = start + 3 if start < 6 else None
        page = {"items": list(range(start, start + 3)), "next": None if following is None else str(following)}
        request.reply(200, json.dumps(page).encode())

    server.answer = answer
    assert list(hub.pages("/v1/models", search="a b")) == list(range(9))
    assert list(hub.pages("/v1/models", limit=4)) == [0, 1, 2, 3]


def test_a_listing_without_an_end_ends(server: Scripted, hub: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = lambda request: request.reply(200, b'{"items": [1], "next": "same"}')
    assert list(hub.pages("/v1/models")) == [1, 1]
    monkeypatch.setattr("suture.http.MAX_PAGES", 3)
    server.answer = lambda request: request.reply(200, b'{"items": [1], "next": "%d"}' % len(server.seen))
    with pytest.raises(HubError, match="does not end"):
        list(hub.pages("/v1/models"))


# Files


def serving(content: bytes, *, break_after: int | None = None) -> Callable[[Request], None]:
    """Serve ranges of `content`, breaking off after some bytes of the answer."""

    def answer(request: Request) -> None:
        asked = request.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        request.send_response(206 if asked else 200)
        request.send_header("Content-Length", str(len(content) - start))
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        end = len(content) if break_after is None else start + break_after
        request.wfile.write(content[start:end])
        if end < len(content):
            request.break_off()

    return answer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers so small that each is used again and again."""
    monkeypatch.setattr(transfers, "_FIRST", 1000)
    monkeypatch.setattr(transfers, "_BUFFER", 50_000)


@pytest.mark.usefixtures("small")
def test_a_download_arrives_whole(server: Scripted, hub: Connection, tmp_path: Path) -> None:
    server.answer = serving(CONTENT)
    counted: list[int] = []
    target = tmp_path / "new" / "model.safetensors"
    path = hub.download("/file", target, sha256=DIGEST, size=len(CONTENT), on_bytes=counted.append)
    assert path.read_bytes() == CONTENT
    assert sum(counted) == len(CONTENT)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.usefixtures("small")
def test_a_download_goes_on_where_it_broke(
    server: Scripted, hub: Connection, tmp_path: Path, pauses: list[float]
) -> None:
    server.answer = serving(CONTENT, break_after=450_000)
    counted: list[int] = []
    hub.download("/file", tmp_path / "file", sha256=DIGEST, on_bytes=counted.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in server.seen] == [
        None,
        "bytes=450000-",
        "bytes=900000-",
        "bytes=1350000-",
        "bytes=1800000-",
    ]
    assert sum(counted) == len(CONTENT)
    assert len(pauses) == 4


@pytest.mark.usefixtures("small")
def test_a_download_starts_again_when_the_hub_cannot_go_on(server: Scripted, hub: Connection, tmp_path: Path) -> None:
    whole = serving(CONTENT)

    def without_ranges(request: Request) -> None:
        del request.headers["Range"]
        whole(request)

    broken = serving(CONTENT, break_after=200_000)
    for second in (without_ranges, lambda request: request.reply(416)):
        server.answer = in_turn(broken, second, whole)
        counted: list[int] = []
        hub.download("/file", tmp_path / "file", sha256=DIGEST, on_bytes=counted.append)
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert sum(counted) == len(CONTENT)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (serving(CONTENT[:-1] + b"x"), "download.digest"),
        (serving(CONTENT[:-1]), "download.digest"),
        (serving(CONTENT + b"more"), "download.size"),
        (refusing(404, code="not_found"), "not_found"),
        (serving(CONTENT, break_after=0), "hub.interrupted"),
    ],
)
def test_a_download_that_fails_leaves_what_was_there(
    server: Scripted, hub: Connection, tmp_path: Path, answer: Callable[[Request], None], code: str
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    server.answer = answer
    with pytest.raises(SutureError) as caught:
        hub.download("/file", tmp_path / "file", sha256=DIGEST, size=len(CONTENT))
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_disk_that_is_full() -> None:
    for last in (lambda transfer: transfer.digest(), lambda transfer: transfer.write(CONTENT * 3)):
        with Path("/dev/full").open("r+b", buffering=0) as full, Incoming(full, None, lambda _count: None) as transfer:
            transfer.write(CONTENT)
            with pytest.raises(OSError, match="No space"):
                last(transfer)


def test_a_file_goes_up_as_it_is(server: Scripted, hub: Connection, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    server.answer = in_turn(refusing(503), lambda request: request.reply(201, b'{"size": 1}'))
    counted: list[int] = []
    assert hub.upload("/file", tmp_path / "file", params={"fence": 3}, on_bytes=counted.append) == {"size": 1}
    assert [request.body for request in server.seen] == [CONTENT, CONTENT]
    assert min(counted) == -len(CONTENT)
    assert sum(counted) == len(CONTENT)
    assert server.seen[0].path == "/file?fence=3"
    hub.upload("/file", b"few bytes")
    assert server.seen[-1].body == b"few bytes"


def test_a_file_is_hashed_as_it_goes_up(
    server: Scripted, hub: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "_BUFFER", 100_000)
    monkeypatch.setattr(transfers, "_SENT", 7_000)
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    server.answer = in_turn(refusing(503), lambda request: request.reply(201, b"{}"))
    counted: list[int] = []
    files = [Outgoing(tmp_path / name, counted.append, hashed=True) for name in ("file", "empty")]
    hub.upload_parts("/models", {"a": ("a", files[0]), "b": ("b", files[1])})
    assert [file.sha256 for file in files] == [DIGEST, hashlib.sha256().hexdigest()]
    assert sum(counted) == len(CONTENT)
    assert [request.body.count(CONTENT) for request in server.seen] == [1, 1]


def test_several_files_go_up_as_a_form(server: Scripted, hub: Connection, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    server.answer = in_turn(refusing(503), lambda request: request.reply(201, b"{}"))
    parts = {"model": ("model.safetensors", tmp_path / "file"), "metadata": ("suture.json", b'{"a": 1}')}
    counted: list[int] = []
    hub.upload_parts("/models", parts, params={"visibility": "all"}, on_bytes=counted.append)
    assert min(counted) == -len(CONTENT)
    assert sum(counted) == len(CONTENT)
    assert len(server.seen) == 2
    for request in server.seen:
        assert request.headers.get_content_type() == "multipart/form-data"
        assert int(request.headers["Content-Length"]) == len(request.body)
        boundary = b"--" + request.headers["Content-Type"].partition("boundary=")[2].encode()
        sent = request.body.split(boundary)
        assert [part.partition(b"\r\n\r\n")[2] for part in sent[1:-1]] == [CONTENT + b"\r\n", b'{"a": 1}\r\n']
        assert (sent[0], sent[-1]) == (b"", b"--\r\n")
        assert b'name="model"; filename="model.safetensors"' in request.body
        assert b'name="metadata"; filename="suture.json"' in request.body


# Addresses and tokens


@pytest.mark.parametrize(
    "url",
    [
        "hub.example",
        "ftp://hub.example",
        "https://",
        "https://user:pass@hub.example",
        "https://hub/?a=b",
        "http://hub:x",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_a_password(url: str) -> None:
    with pytest.raises(SutureError) as caught:
        check_url(url)
    assert caught.value.code == "hub.url"
    assert "pass" not in str(caught.value).replace("password", "")


def test_a_slash_or_the_version_of_the_api_at_the_end_does_not_matter() -> None:
    for end in ("", "/", "/v1", "/v1/", " "):
        assert check_url(f"https://hub.example{end}") == "https://hub.example"


@pytest.mark.parametrize("end", ["/suture", "/suture/v1/", "/north/digits"])
def test_a_path_after_the_host_is_refused_with_the_address_without_it(end: str) -> None:
    with pytest.raises(SutureError, match="a host name to itself") as caught:
        check_url(f"https://hub.example:8420{end}")
    assert caught.value.code == "hub.url"
    assert "give it as https://hub.example:8420;" in str(caught.value.hint)


def test_an_address_without_its_scheme_is_asked_about() -> None:
    with pytest.raises(SutureError, match=r"did you mean 'https://hub\.example:8420/v1'"):
        check_url("hub.example:8420/v1")


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ümlaut"])
def test_what_can_be_no_token_is_refused_unshown(token: str) -> None:
    with pytest.raises(SutureError) as caught:
        check_token(token)
    assert caught.value.code == "auth.token"
    assert not token or token not in str(caught.value)
