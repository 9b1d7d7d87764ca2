"""The store in a bucket of a server that speaks S3: moto's, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import boto3
import httpx
import jmespath
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from typer.testing import CliRunner

from suture.cli.app import app as commands
from suture_service import operate
from suture_service.errors import Unavailable
from suture_service.main import create_app
from suture_service.maintenance.backup import back_up, restore
from suture_service.maintenance.collection import collect
from suture_service.maintenance.reconciling import reconcile
from suture_service.storage import BlobStore, bucket
from suture_service.storage.download import send_file

MB = 2**20
_NUMBERS = count()
#: What comes of the bucket alone, or of what a command prints.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def server(s3_server):
    return s3_server


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in {"ACCESS_KEY_ID": "hub", "SECRET_ACCESS_KEY": "secret", "REGION": "eu-central-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def url(server):
    """A new bucket, and a prefix in it."""
    name = f"models-{next(_NUMBERS)}"
    assert httpx.put(f"{server}/{name}", timeout=60).status_code == 200
    return f"s3://{name}/hub"


@pytest.fixture
def store(server, url):
    return BlobStore(url, endpoint=server)


async def chunked(content, size=65536):
    for start in range(0, len(content), size):
        yield content[start : start + size]


def kept(store, content):
    async def run():
        async with store.receive(chunked(content), limit=10**9, where="file") as upload:
            assert upload.read(1, 3) == content[1:4]
            await upload.keep()
        return upload.sha256

    return asyncio.run(run())


def read(store, sha256, start, end):
    async def run():
        return b"".join([bytes(chunk) async for chunk in await store.stream(sha256, start, end)])

    return asyncio.run(run())


def names(store):
    return sorted(found.name for found in store._place.list(""))


@pytest.mark.parametrize("size", [0, 1, 3 * MB, 8 * MB, 21 * MB + 7])
def test_what_goes_in_comes_out(store, size):
    content = os.urandom(size)
    for _ in range(2):
        sha256 = kept(store, content)
        assert sha256 == hashlib.sha256(content).hexdigest()
    assert names(store) == [f"sha256/{sha256[:2]}/{sha256}"]
    assert read(store, sha256, 0, size) == content
    assert read(store, sha256, size // 3, size // 2) == content[size // 3 : size // 2]
    assert store.read(sha256, size - 1, 100, size) == content[-1:]
    assert store.sizes([sha256, "0" * 64]) == {sha256: size, "0" * 64: None}


def test_an_object_too_large_to_be_copied(store, monkeypatch):
    """S3 copies at most 5 GiB in one call; what is larger is written a second time."""
    monkeypatch.setattr(bucket, "COPY_LIMIT", 9 * MB)
    content = os.urandom(19 * MB)
    sha256 = kept(store, content)
    assert names(store) == [f"sha256/{sha256[:2]}/{sha256}"]
    assert read(store, sha256, 0, len(content)) == content


def test_an_upload_that_breaks_off_leaves_nothing_to_see(store):
    async def breaks():
        for _ in range(20):
            yield bytes(MB)
        raise ConnectionError("cut")

    async def run():
        async with store.receive(breaks(), limit=10**9, where="file"):
            raise AssertionError("never arrived")

    with pytest.raises(ConnectionError):
        asyncio.run(run())
    assert names(store) == []
    store.check()
    assert store.sweep() == 0


def test_a_file_that_is_lost(store):
    sha256 = kept(store, bytes(5))
    store.delete([sha256, "0" * 64])
    with pytest.raises(Unavailable) as error:
        read(store, sha256, 0, 5)
    assert (error.value.code, error.value.where) == ("store.missing", sha256)


@pytest.fixture
def hub_settings(settings, server, url):
    return settings.model_copy(update={"store": url, "s3_endpoint": server})


def test_a_hub_with_a_bucket(start, hub_settings, tmp_path):
    world = start(store=hub_settings.store, s3_endpoint=hub_settings.s3_endpoint)
    content = world.model(seed=1)
    assert world.north.publish("north/digits", model=content).status_code == 201
    path = "/v1/models/north/digits/revisions/latest/files/model.safetensors"
    assert world.south.get(path).content == content
    assert world.south.get(path, headers={"Range": "bytes=5-9"}).content == content[5:10]
    assert reconcile(world.settings, deep=True).sound
    assert collect(world.settings).blobs == []
    back_up(world.settings, tmp_path / "backup")
    other = world.settings.model_copy(
        update={"database_url": f"sqlite:///{tmp_path / 'other.db'}", "store": str(tmp_path / "other")}
    )
    restore(other, tmp_path / "backup")
    with TestClient(create_app(other)) as client:
        assert client.get(path, headers=world.south.headers).content == content


def hub_command(settings, *arguments):
    env = {
        "SUTURE_HUB_DATABASE_URL": settings.database_url,
        "SUTURE_HUB_STORE": settings.store,
        "SUTURE_HUB_S3_ENDPOINT": settings.s3_endpoint,
    }
    return CliRunner().invoke(commands, ["hub", *arguments], env=env)


def remove_old_versions(api, bucket_name):
    """Do what docs/hub-operator.md says, with its own query; return what was removed."""
    text = (Path(__file__).parents[2] / "docs" / "hub-operator.md").read_text(encoding="utf-8")
    query = jmespath.compile(re.search(r"--query '(\{Objects:.*?\})' >", text)[1])
    removed = query.search(api.list_object_versions(Bucket=bucket_name, Prefix="hub/"))
    if removed["Objects"]:
        api.delete_objects(Bucket=bucket_name, Delete=removed)
    return removed["Objects"]


@on_sqlite
@pytest.mark.parametrize("versioning", ["Enabled", "Suspended", None])
def test_a_purge_says_that_a_bucket_keeps_old_versions(start, hub_settings, versioning):
    bucket_name = hub_settings.store.split("/")[2]
    api = boto3.client("s3", endpoint_url=hub_settings.s3_endpoint)
    if versioning is not None:
        api.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})
    world = start(store=hub_settings.store, s3_endpoint=hub_settings.s3_endpoint)
    content, other = world.model(seed=1), world.model(seed=2)
    assert world.north.publish("north/digits", model=content).status_code == 201
    assert world.north.publish("north/others", model=other).status_code == 201
    if versioning == "Suspended":
        api.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Suspended"})
    purging = ("purge", "north/digits", "--path", "model.safetensors", "--reason", "rows of patients", "--yes")
    done = hub_command(world.settings, *purging)
    assert done.exit_code == 0, done.output
    sha256 = hashlib.sha256(content).hexdigest()
    assert ("old versions" in done.stderr) == (versioning is not None)
    assert (f"  sha256/{sha256[:2]}/{sha256}\n" in done.stderr) == (versioning is not None)

    def versions_with(wanted):
        listed = api.list_object_versions(Bucket=bucket_name).get("Versions", ())
        read = {
            (entry["Key"], entry["VersionId"]): api.get_object(
                Bucket=bucket_name, Key=entry["Key"], VersionId=entry["VersionId"]
            )["Body"].read()
            for entry in listed
        }
        return [place for place, body in read.items() if body == wanted]

    if versioning == "Suspended":  # in which state this server cannot remove versions
        api.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})
    if versioning is not None:
        assert versions_with(content), "this bucket keeps what is removed"
        assert remove_old_versions(api, bucket_name)
        assert remove_old_versions(api, bucket_name) == []
    assert versions_with(content) == []
    assert len(versions_with(other)) == 1
    assert reconcile(world.settings, deep=True).sound
    path = "/v1/models/north/others/revisions/latest/files/model.safetensors"
    assert world.north.get(path).content == other


@on_sqlite
def test_the_api_says_so_too(start, hub_settings):
    world = start(store=hub_settings.store, s3_endpoint=hub_settings.s3_endpoint)
    api = boto3.client("s3", endpoint_url=hub_settings.s3_endpoint)
    body = {"path": "model.safetensors", "reason": "rows of patients"}
    for name, kept_there in (("first", False), ("second", True)):
        assert world.north.publish(f"north/{name}", model=world.model(seed=len(name))).status_code == 201
        if kept_there:
            bucket_name = hub_settings.store.split("/")[2]
            api.put_bucket_versioning(Bucket=bucket_name, VersioningConfiguration={"Status": "Enabled"})
        assert world.north.post(f"/v1/models/north/{name}/purge", body).json()["versions_kept"] is kept_there


@on_sqlite
def test_a_command_keeps_its_standard_output_for_its_result(hub_settings):
    """What goes wrong in the store is logged beside it, on standard error."""
    settings = hub_settings.model_copy(update={"store": "s3://no-such-bucket/hub"})
    operate.migrate(settings)
    env = {
        **os.environ,
        "SUTURE_HUB_DATABASE_URL": settings.database_url,
        "SUTURE_HUB_STORE": settings.store,
        "SUTURE_HUB_S3_ENDPOINT": settings.s3_endpoint,
    }
    command = [sys.executable, "-m", "suture", "hub", "gc", "--format", "json"]
    done = subprocess.run(command, capture_output=True, env=env, timeout=300)
    assert done.returncode == 5
    assert done.stdout == b""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[0]["event"] == "store"
    assert lines[-1]["error"]["code"].startswith("store.")


def test_signed_addresses(store, server):
    content = os.urandom(5000)
    sha256 = kept(store, content)
    address = store.sign(sha256, 60)
    assert address.startswith(server)
    assert httpx.get(address, timeout=60).content == content
    part = httpx.get(address, headers={"Range": "bytes=10-19"}, timeout=60)
    assert (part.status_code, part.content) == (206, content[10:20])


def test_a_download_is_sent_on_to_the_bucket(store, server):
    """The headers that a client needs stay on the redirect; whoever does not ask for it gets the bytes."""
    content = os.urandom(5000)
    sha256 = kept(store, content)
    app = FastAPI()

    @app.get("/{seconds}")
    async def get(request: Request, seconds: int):
        extra = {"X-Repo-Commit": "a" * 40}
        return await send_file(
            request, store, name="model", sha256=sha256, size=5000, headers=extra, signed_seconds=seconds
        )

    with TestClient(app, follow_redirects=False) as client:
        answer = client.get("/60")
        assert answer.status_code == 302
        assert answer.headers["x-repo-commit"] == "a" * 40
        assert answer.headers["etag"] == answer.headers["x-linked-etag"] == f'"{sha256}"'
        assert answer.headers["x-linked-size"] == "5000"
        assert httpx.get(answer.headers["location"], timeout=60).content == content
        known = client.get("/60", headers={"If-None-Match": f'"{sha256}"'})
        assert known.status_code == 304
        through = client.get("/0")
        assert (through.status_code, through.content) == (200, content)
        assert through.headers["x-repo-commit"] == "a" * 40


class Between(ThreadingHTTPServer):
    """A server between hub and bucket that answers badly on demand."""

    daemon_threads = True

    def __init__(self, target):
        self.target = target
        self.failures = 0  # how many requests to answer with 500
        self.answers = threading.Event()  # not while it is cleared
        self.answers.set()
        self.seen = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Between

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen += 1
        self.server.answers.wait(60)
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        answer = httpx.request(self.command, f"{self.server.target}{self.path}", content=body, headers=headers)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.headers["content-length"] if self.command == "HEAD" else len(answer.content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def between(server):
    proxy = Between(server)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    yield proxy
    proxy.shutdown()
    thread.join(60)
    proxy.server_close()


def test_errors_of_the_server_are_retried(between, url):
    store = BlobStore(url, endpoint=between.url)
    content = os.urandom(17 * MB)
    between.failures = 2
    sha256 = kept(store, content)
    between.failures = 2
    assert read(store, sha256, 0, len(content)) == content
    assert between.failures == 0


def test_a_server_that_fails_for_long(between, url, monkeypatch):
    monkeypatch.setitem(bucket._RETRIES, "max_retries", 1)
    store = BlobStore(url, endpoint=between.url)
    sha256 = kept(store, b"content")
    between.failures = 10**6
    for work in (lambda: kept(store, os.urandom(9 * MB)), lambda: read(store, sha256, 0, 7), store.check):
        with pytest.raises(Unavailable) as error:
            work()
        assert error.value.code == "store.unavailable"
        assert "secret" not in str(error.value)
    between.failures = 0  # and it recovers by itself
    assert read(store, sha256, 0, 7) == b"content"
    assert [digest for digest, _ in store.list()] == [sha256]


def test_a_server_that_does_not_answer_in_time(between, url, monkeypatch):
    sha256 = kept(BlobStore(url, endpoint=between.url), b"content")
    monkeypatch.setitem(bucket._TIMEOUTS, "timeout", "300ms")
    monkeypatch.setitem(bucket._RETRIES, "max_retries", 1)
    store = BlobStore(url, endpoint=between.url)
    between.answers.clear()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        read(store, sha256, 0, 7)
    assert time.monotonic() - started < 30, "the library's own time-out ended it, not the one that was set"
    between.answers.set()
    for _ in range(20):  # a slow machine may need more than one
        with contextlib.suppress(Unavailable):
            assert read(store, sha256, 0, 7) == b"content"
            return
    pytest.fail("it is given up for good")


@on_sqlite
def test_a_hub_whose_bucket_fails(start, between, url):
    """It refuses with 503, says that it is not ready, publishes nothing, and goes on once the bucket answers."""
    bucket_retries = dict(bucket._RETRIES)
    bucket._RETRIES["max_retries"] = 0
    try:
        world = start(store=url, s3_endpoint=between.url)
    finally:
        bucket._RETRIES.update(bucket_retries)
    assert world.north.publish("north/digits").status_code == 201
    between.failures = 10**6
    answer = world.north.publish("north/other", model=world.model(seed=2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store.unavailable")
    path = "/v1/models/north/digits/revisions/latest/files/model.safetensors"
    assert world.north.get(path).status_code == 503
    assert world.client.get("/readyz").status_code == 503
    between.failures = 0
    assert world.client.get("/readyz").status_code == 200
    assert world.north.get(path).content == world.model()
    assert world.north.get("/v1/models/north/other").status_code == 404
    assert world.north.publish("north/other", model=world.model(seed=2)).status_code == 201
    assert reconcile(world.settings, deep=True).sound
