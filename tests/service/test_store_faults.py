"""The store when the machine fails it: a full disk, and a hub that is killed in the middle of an upload."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.until import until
from tests.web import web

from suture_local.ports import free_port
from suture_service import operate
from suture_service.maintenance.reconciling import reconcile
from suture_service.settings import Settings

MB = 2**20
_SERVE = (
    "import resource, signal, sys; from suture_service.main import serve; "
    "from suture_service.settings import Settings; "
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); limit = int(sys.argv[4]); "
    "limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); "
    "serve(Settings(database_url=sys.argv[1], store=sys.argv[2]), port=int(sys.argv[3]))"
)


class Process:
    """A hub in a process of its own, whose files may not grow larger than `largest` bytes (0: as they like)."""

    def __init__(self, settings, largest=0):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = [settings.database_url, settings.store, str(self.port), str(largest)]
        self.process = subprocess.Popen([sys.executable, "-B", "-c", _SERVE, *arguments], stderr=subprocess.DEVNULL)

    def __enter__(self):
        until(self.ready, 60)
        return self

    def __exit__(self, *_error):
        self.process.kill()
        self.process.wait(120)

    def ready(self):
        assert self.process.poll() is None
        try:
            return web.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def settings(database_url, tmp_path):
    settings = Settings(database_url=database_url, store=str(tmp_path / "store"))
    operate.add_party(settings, "north")
    return settings


@pytest.fixture
def headers(settings):
    return {"Authorization": f"Bearer {operate.create_token(settings, 'north', ['publisher'])[1]}"}


def publish(hub, headers, handmade, *, side=4, seed=0):
    files = {
        "model": ("m", handmade.model(side=side, seed=seed)),
        "metadata": ("s", json.dumps(handmade.metadata(side=side)).encode()),
    }
    return web.put(f"{hub.url}/v1/models/north/digits/revisions", files=files, headers=headers, timeout=120)


def files(settings):
    folder = Path(settings.store)
    return [path for path in folder.rglob("*") if path.is_file()]


# What an upload leaves in the store until it is whole no database knows of.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_and_a_hub_killed_during_an_upload(settings, headers, handmade):
    """No room for the model: 507 that says so, nothing left behind, and everything else goes on.

    Of a hub that is killed there is nothing half there to see; the next one sweeps up what was left, at once, and takes
    the same upload.
    """
    with Process(settings, largest=15 * MB) as hub:
        answer = publish(hub, headers, handmade, side=1500)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "store.full")
        assert files(settings) == []
        assert publish(hub, headers, handmade).status_code == 201
        assert hub.ready()
        assert reconcile(settings, deep=True).sound
        whole = files(settings)
        token = headers["Authorization"].encode()
        start = (
            b"PUT /v1/models/north/digits/revisions HTTP/1.1\r\nHost: hub\r\nAuthorization: " + token + b"\r\n"
            b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 100000000\r\n\r\n"
            b'--B\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n'
        )
        with socket.create_connection(("127.0.0.1", hub.port)) as connection:
            connection.sendall(start + bytes(12 * MB))
            until(lambda: any(path.stat().st_size > 4 * MB for path in files(settings)))
            os.kill(hub.process.pid, signal.SIGKILL)
            hub.process.wait(120)
    assert [path.parent.name for path in files(settings) if path not in whole] == ["tmp"]
    with Process(settings) as hub:
        assert files(settings) == whole
        (listed,) = web.get(f"{hub.url}/v1/models", headers=headers, timeout=120).json()["items"]
        assert publish(hub, headers, handmade, seed=2).status_code == 201
        (after,) = web.get(f"{hub.url}/v1/models", headers=headers, timeout=120).json()["items"]
        assert after["revision"] != listed["revision"]
    assert reconcile(settings, deep=True).sound
