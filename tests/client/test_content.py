"""Content by way of huggingface_hub's cache: the token stays with the hub, whatever the hub answers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.stitching.test_metadata import FIRST

from suture import content
from suture.content import cached, place
from suture.http import Connection
from suture.responses import Revision, revision_id
from suture_contract.errors import SutureError
from suture_contract.files import sha256_of

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server on the own machine that notes what it is sent."""

    def __init__(self, redirect_to: str | None = None, content: bytes = CONTENT, breaks_off: int = 0) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        self.ranges: list[str | None] = []
        seen, ranges = self.seen, self.ranges

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.command, self.path, self.headers["Authorization"]))
                hub_protocol = "/resolve/" in self.path
                self.send_response(302 if redirect_to and hub_protocol else 206 if self.headers["Range"] else 200)
                self.send_header("X-Repo-Commit", revision().id)
                self.send_header("ETag", f'"{DIGEST}"')
                self.send_header("X-Linked-Etag", f'"{DIGEST}"')
                self.send_header("X-Linked-Size", str(len(content)))
                if redirect_to and hub_protocol:
                    self.send_header("Location", f"{redirect_to}/elsewhere")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = 0
                if self.command == "GET":
                    ranges.append(self.headers["Range"])
                    start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[start : breaks_off if breaks_off and not start else None])

            do_HEAD = do_GET

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def revision(content: bytes = CONTENT) -> Revision:
    digest = hashlib.sha256(content).hexdigest()
    files = [{"name": "model.safetensors", "size": len(content), "sha256": digest}]
    return Revision.of(
        {
            "id": revision_id({"model.safetensors": digest}),
            "repo": "north/digits",
            "created_at": datetime(2026, 1, 2, tzinfo=UTC),
            "metadata": FIRST,
            "files": files,
        },
        "here",
    )


@pytest.fixture
def store() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_what_is_pulled_is_a_copy_of_what_is_kept(store: Server, tmp_path: Path) -> None:
    first, second = tmp_path / "first" / "model.safetensors", tmp_path / "second" / "model.safetensors"
    with Connection(f"http://127.0.0.1:{store.port}", "secret-token") as connection:
        cached(connection, revision(), revision().model_file)
        place(connection, revision(), revision().model_file, first)
        with first.open("r+b") as file:
            file.write(b"edited in place")
        place(connection, revision(), revision().model_file, second)
    assert second.read_bytes() == CONTENT
    assert len(store.ranges) == 1  # both came from the cache, the second unedited
    assert [path.name for path in second.parent.iterdir()] == ["model.safetensors"]


def test_what_nobody_has_kept_is_written_once_and_read_by_nobody(
    store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_arguments: object) -> None:
        raise AssertionError("it was hashed on its way")

    for name in ("_copy", "sha256_of"):
        monkeypatch.setattr(content, name, unwanted)
    target, came = tmp_path / "new" / "model.safetensors", []
    with Connection(f"http://127.0.0.1:{store.port}", "secret-token") as connection:
        place(connection, revision(), revision().model_file, target, on_bytes=came.append)
    assert (target.read_bytes(), sum(came), store.ranges) == (CONTENT, len(CONTENT), [None])
    assert not [path for path in content.folder().rglob("*") if path.is_file() and path.stat().st_size >= len(CONTENT)]


def test_a_pull_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    written = 10 * 2**20
    content = bytes(range(256)) * 4096 * 12
    hub = Server(content=content, breaks_off=written)
    found = revision(content)
    try:
        with Connection(f"http://127.0.0.1:{hub.port}", "secret-token") as connection:
            place(connection, found, found.model_file, tmp_path / "model.safetensors")
    finally:
        hub.close()
    assert (tmp_path / "model.safetensors").read_bytes() == content
    assert hub.ranges == [None, f"bytes={written}-"]


def test_the_token_is_not_sent_to_where_a_hub_redirects(store: Server) -> None:
    hub = Server(redirect_to=f"http://localhost:{store.port}")
    try:
        with Connection(f"http://127.0.0.1:{hub.port}", "secret-token") as connection:
            path = cached(connection, revision(), revision().model_file)
            assert path.read_bytes() == CONTENT
    finally:
        hub.close()
    assert "Bearer secret-token" in {token for _, _, token in hub.seen}
    assert ("GET", "/elsewhere", None) in store.seen
    assert {token for _, _, token in store.seen} == {None}
    assert not any("secret-token" in address for _, address, _ in [*hub.seen, *store.seen])


def test_what_was_verified_on_its_way_is_read_again_only_when_it_is_used_again(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "is_reached_alike", lambda _url: False)
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(content, "sha256_of", noted)
    with Connection(f"http://127.0.0.1:{store.port}", "secret-token") as connection:
        path = cached(connection, revision(), revision().model_file)
        assert (path.read_bytes(), read) == (CONTENT, [])
        assert cached(connection, revision(), revision().model_file) == path
        assert (len(store.ranges), read) == (1, [path])
        path.write_bytes(CONTENT[:-1] + b"?")  # the same size
        assert cached(connection, revision(), revision().model_file).read_bytes() == CONTENT
        assert (len(store.ranges), read) == (2, [path, path])


@pytest.mark.parametrize("alike", [True, False])
def test_a_damaged_file_of_the_cache_is_pulled_anew(
    store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    monkeypatch.setattr(content, "is_reached_alike", lambda _url: alike)
    target = tmp_path / "pulled" / "model.safetensors"
    with Connection(f"http://127.0.0.1:{store.port}", "secret-token") as connection:
        kept = cached(connection, revision(), revision().model_file)
        kept.write_bytes(CONTENT[:-1] + b"?")  # the same size
        place(connection, revision(), revision().model_file, target)
    assert (target.read_bytes(), len(store.ranges)) == (CONTENT, 2)
    assert [*target.parent.iterdir()] == [target]


def test_other_content_than_promised_is_refused() -> None:
    hub = Server(content=CONTENT[:-1] + b"?")
    try:
        with (
            Connection(f"http://127.0.0.1:{hub.port}", "secret-token") as connection,
            pytest.raises(SutureError) as caught,
        ):
            cached(connection, revision(), revision().model_file)
    finally:
        hub.close()
    assert caught.value.code == "download.digest"
    assert "secret-token" not in str(caught.value)
