"""Running a hub: what it refuses to start with, what it says when something is missing, TLS, and stopping."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from alembic.script import ScriptDirectory
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from tests.until import until
from tests.web import NOBODY

from suture_contract.errors import SutureError
from suture_local.ports import free_port
from suture_service import operate
from suture_service.main import Tls, serve
from suture_service.settings import Settings, check_exposed, read_settings

MB = 2**20


# What a hub does not start with


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_ADDRESS", "sqlite:///x.db"),
        ("LEASE_SECONDS", "-1"),
        ("MAX_ATTEMPTS", "many"),
        ("LOG_LEVEL", "chatty"),
        ("PROXIES", "10.0.0.0/8, proxy.example"),
        ("SIGNED_DOWNLOAD_SECONDS", "1e9"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(monkeypatch, name, value):
    monkeypatch.setenv(f"SUTURE_HUB_{name}", value)
    with pytest.raises(SutureError) as refused:
        read_settings()
    assert refused.value.where == f"SUTURE_HUB_{name}"
    assert refused.value.code == "hub.settings"
    assert refused.value.hint
    assert value not in str(refused.value) or name in ("PROXIES", "LOG_LEVEL")


def test_defaults_serve_one_machine_only():
    state = {"database_url": "postgresql://hub@db/hub", "store": "s3://models"}
    for host in ("127.0.0.1", "::1", "localhost", "127.4.5.6"):
        check_exposed(Settings(), host, tls=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "hub.example"):
        for missing in state:
            given = {name: value for name, value in state.items() if name != missing}
            with pytest.raises(SutureError) as refused:
                check_exposed(Settings(**given), host, tls=True)
            assert refused.value.where == f"SUTURE_HUB_{missing.upper()}"
        with pytest.raises(SutureError, match="unencrypted") as refused:
            check_exposed(Settings(**state), host, tls=False)
        assert refused.value.where == "SUTURE_HUB_PROXIES"
        check_exposed(Settings(**state), host, tls=True)
        check_exposed(Settings(**state, proxies="10.0.0.9"), host, tls=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    for name in ("hub", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (folder / f"{name}.crt").write_bytes(made.public_bytes(pem))
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    locked = serialization.BestAvailableEncryption(b"secret")
    (folder / "locked.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "where"),
    [
        ("hub.crt", "other.key", "--tls-cert"),
        ("hub.crt", "none.key", "--tls-key"),
        ("none.crt", "hub.key", "--tls-cert"),
        ("hub.key", "hub.crt", "--tls-cert"),
        ("other.crt", "locked.key", "--tls-cert"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(certificate, cert, key, where):
    with pytest.raises(SutureError) as refused:
        Tls(certificate / cert, certificate / key).check()
    assert (refused.value.code, refused.value.where) == ("hub.tls", where)


@pytest.fixture
def quiet(monkeypatch):
    """`serve` says how to log; this test's process goes on as before."""
    monkeypatch.setattr("suture_service.main.configure_logging", lambda level, *loggers: None)
    monkeypatch.setattr("suture_service.main.log_uncaught", lambda: None)


def test_a_database_without_tables_is_told_at_once(quiet, empty_database, tmp_path):
    with pytest.raises(SutureError, match="suture hub migrate") as refused:
        serve(Settings(database_url=empty_database, store=str(tmp_path / "store")))
    assert refused.value.code == "hub.not_migrated"


def test_a_database_that_does_not_answer_is_told_at_once(quiet, tmp_path):
    url = f"postgresql://hub:s3cret@/none?host={tmp_path}"
    with pytest.raises(SutureError) as refused:
        serve(Settings(database_url=url, store=str(tmp_path / "store")))
    assert refused.value.code == "hub.database"
    assert "s3cret" not in str(refused.value)


# What it says while it runs


def test_readiness_tells_what_is_missing(world):
    assert world.client.get("/readyz").json() == {"status": "ready"}
    store = Path(world.settings.store)
    away = store.with_name("away")
    store.rename(away)
    store.write_text("no folder", encoding="utf-8")
    refused = world.client.get("/readyz")
    assert (refused.status_code, refused.json()["error"]["where"]) == (503, "store")
    assert refused.headers["retry-after"]
    with world.hub.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    refused = world.client.get("/readyz").json()["error"]
    assert refused["where"] == "database, store"
    assert "0001" in refused["message"]
    assert "suture hub migrate" in refused["hint"]
    assert str(store) not in json.dumps(refused)
    with world.hub.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": _head()})
    store.unlink()
    away.rename(store)
    assert world.client.get("/readyz").status_code == 200
    world.hub.closing.set()
    assert world.client.get("/readyz").json()["error"]["code"] == "hub.closing"
    assert world.client.get("/healthz").status_code == 200


def _head():
    return ScriptDirectory(str(operate.migrations_folder())).get_current_head()


def test_metrics_tell_routes_and_never_names(world):
    world.north.publish("north/canary4711")
    world.east.get("/v1/models/north/canary4712")
    world.client.get("/v1/canary4713")
    said = world.client.get("/metrics").text
    assert "canary" not in said
    families = {family.name: family for family in text_string_to_metric_families(said)}
    requests = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["suture_hub_requests"].samples
        if sample.name.endswith("_total")
    }
    assert requests["/v1/models/{party}/{name}/revisions", "201"] == 1
    assert requests["/v1/models/{party}/{name}", "404"] == 1
    assert families["suture_hub_revisions_published"].samples[0].value == 1


# A hub on a socket

_SERVE = """
import json, sys
from importlib import import_module
from pathlib import Path
from suture_service import main
from suture_service.settings import Settings

given = json.loads(sys.argv[1])
for name, value in given["constants"].items():
    module, _, constant = name.rpartition(".")
    assert hasattr(import_module(module), constant)
    setattr(import_module(module), constant, value)
tls = main.Tls(Path(given["cert"]), Path(given["key"])) if "cert" in given else None
main.serve(Settings(database_url=given["database"], store=given["store"]), port=given["port"], tls=tls)
"""


class Process:
    """A hub in a process of its own; with `constants` such as `suture_service.main.GRACE_SECONDS` of other values.

    `descriptors` are all that it may have; `first` is what it runs before anything else.
    """

    def __init__(self, settings, *, constants=None, descriptors=None, first="", **tls):
        self.port = free_port()
        given = {"database": settings.database_url, "store": settings.store, "port": self.port}
        given |= {"constants": constants or {}, **tls}
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self.trust = ssl.create_default_context(cafile=tls["cert"]) if tls else NOBODY
        command = [sys.executable, "-c", first + _SERVE, json.dumps(given)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        if descriptors is not None:
            psutil.Process(self.process.pid).rlimit(psutil.RLIMIT_NOFILE, (descriptors, descriptors))
        self.lines = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self._reader.start()

    def __enter__(self):
        until(self.ready, 90)
        return self

    def __exit__(self, *_error):
        self.process.kill()
        self.process.wait(120)
        self._reader.join(120)
        self.process.stderr.close()

    def ready(self):
        assert self.process.poll() is None, "".join(self.lines)
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, verify=self.trust).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)


@pytest.fixture
def running(settings):
    operate.add_party(settings, "north")
    return settings, operate.create_token(settings, "north", ["publisher"])[1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_tls_without_a_proxy(running, certificate):
    settings, token = running
    tls = {"cert": str(certificate / "hub.crt"), "key": str(certificate / "hub.key")}
    with Process(settings, **tls) as hub:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=hub.url, verify=hub.trust, headers=headers, timeout=120) as client:
            assert client.get("/v1/whoami").json()["party"] == "north"
            # The addresses it gives out are of the same kind.
            assert client.post("/api/repos/create", json={"name": "digits"}).json()["url"].startswith("https://")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{hub.port}/healthz", timeout=60)


_WITH_CLIENTS = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
from suture.hub import Hub

url, token, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
with Hub(url, token) as hub:
    published = hub.publish_file(folder / "model.safetensors", "north/digits", show=lambda bundle: None)
    assert hub.pull("north/digits", folder / "pulled").id == published.id
api = HfApi(url, token=token)
api.create_repo("north/repo")
(folder / "up").mkdir()
(folder / "up" / "large.bin").write_bytes(bytes(range(256)) * 40_000)  # in parts: by Xet, by a program of its own
(folder / "up" / "note.txt").write_text("x")
commit = api.upload_folder(repo_id="north/repo", folder_path=folder / "up")
assert commit.commit_url.startswith(url), commit.commit_url
found = Path(snapshot_download("north/repo", endpoint=url, token=token, cache_dir=folder / "cache"))
assert (found / "large.bin").read_bytes() == (folder / "up" / "large.bin").read_bytes()
"""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_documented_way_without_a_proxy(running, certificate, handmade, tmp_path):
    """As docs/hub-operator.md says: the command listens to other machines, and both clients trust its authority."""
    settings, token = running
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(handmade.model())
    (tmp_path / "files" / "suture.json").write_text(json.dumps(handmade.metadata()))
    port = free_port()
    text = (Path(__file__).parents[2] / "docs" / "hub-operator.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^    suture (hub serve --host 0\.0\.0\.0 .*)$", text, re.MULTILINE)
    here = {"443": str(port), "chain.pem": str(certificate / "hub.crt"), "key.pem": str(certificate / "hub.key")}
    command = [sys.executable, "-m", "suture", *(here.get(word, word) for word in shown.split())]
    environment = {**os.environ, "SUTURE_HUB_DATABASE_URL": settings.database_url, "SUTURE_HUB_STORE": settings.store}
    trusting = {**os.environ, "SSL_CERT_FILE": str(certificate / "hub.crt"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    trusting |= {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    url, log = f"https://localhost:{port}", tmp_path / "log"
    trust = ssl.create_default_context(cafile=certificate / "hub.crt")
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stderr=out, stdout=out) as hub:

        def ready():
            assert hub.poll() is None, log.read_text()
            try:
                return httpx.get(f"{url}/readyz", timeout=5, verify=trust).status_code == 200
            except httpx.TransportError:
                return False

        try:
            until(ready, 90)
            walk = [sys.executable, "-c", _WITH_CLIENTS, url, token, str(tmp_path / "files")]
            done = subprocess.run(walk, env=trusting, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            command = [sys.executable, "-m", "suture", "models"]
            named = {**trusting, "SUTURE_HUB": url, "SUTURE_TOKEN": token}
            for authority, trusted in (("hub.crt", True), ("other.crt", False)):
                named["SSL_CERT_FILE"] = str(certificate / authority)
                done = subprocess.run(command, env=named, capture_output=True, text=True, timeout=300)
                assert (done.returncode == 0, "certificate" in done.stderr) == (trusted, not trusted), done.stderr
        finally:
            hub.terminate()
            hub.wait(60)


class Upload:
    """An upload of which the first part was sent."""

    def __init__(self, hub, token, handmade, name):
        parts = {"model": handmade.model(side=1200), "metadata": json.dumps(handmade.metadata(side=1200)).encode()}
        body = b"".join(
            b'--B\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (part.encode(), content)
            for part, content in parts.items()
        )
        self.body = body + b"--B--\r\n"
        self.socket = socket.create_connection(("127.0.0.1", hub.port), timeout=30)
        self.socket.sendall(
            f"PUT /v1/models/north/{name}/revisions HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: {len(self.body)}\r\n\r\n".encode()
        )
        self.socket.sendall(self.body[: 10 * MB])

    def finish(self):
        self.socket.sendall(self.body[10 * MB :])
        return self.socket.recv(4096)


def files(settings):
    return [path for path in Path(settings.store).rglob("*") if path.is_file()]


#: A disk that takes its time.
_SLOW = """
import asyncio
from suture_service.storage.folder import FolderFile

async def discard(file):
    await asyncio.sleep(0.5)
    file.remove()

FolderFile.discard = discard
"""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stopping_lets_an_upload_finish_and_one_that_stalls_vanish(running, handmade):
    settings, token = running
    headers = {"Authorization": f"Bearer {token}"}
    with Process(settings, constants={"suture_service.main.GRACE_SECONDS": 4}, first=_SLOW) as hub:
        finishing, stalling = Upload(hub, token, handmade, "whole"), Upload(hub, token, handmade, "half")
        until(lambda: sum(path.stat().st_size > MB for path in files(settings)) == 2)
        hub.stop()
        until(lambda: _refuses(hub))
        assert finishing.finish().startswith(b"HTTP/1.1 201")
        hub.process.wait(120)
        hub._reader.join(120)
        lines = [json.loads(line) for line in hub.lines]
        requests = [line for line in lines if line["event"] == "request"]
        assert 201 in {line["status"] for line in requests if line["route"].endswith("/revisions")}
        stalling.socket.close()
        finishing.socket.close()
    assert not [path for path in files(settings) if path.parent.name == "tmp"]
    with Process(settings) as hub:
        listed = httpx.get(f"{hub.url}/v1/models", headers=headers, timeout=120).json()["items"]
        assert [entry["id"] for entry in listed] == ["north/whole"]


def _refuses(hub):
    try:
        socket.create_connection(("127.0.0.1", hub.port), timeout=1).close()
    except OSError:
        return True
    return False
