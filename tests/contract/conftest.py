"""The official client in several versions, each in a virtual environment of its own, and hubs for it to talk to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from suture_service import operate
from suture_service.main import server
from suture_service.settings import Settings

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suture" / "clients"
PARTIES = ("north", "south")
ROOT = Path(__file__).parents[2]
MB = 2**20


@pytest.fixture(scope="session")
def python_with() -> Callable[[str], Path]:
    """A Python that has a version of the client, as users install it: hf-xet comes along. Made once, and kept."""
    return _python_with


def _python_with(version: str) -> Path:
    folder = CACHE / f"huggingface_hub-{version}-py{sys.version_info[0]}.{sys.version_info[1]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
            command = [python, "-m", "pip", "install", "--quiet", f"huggingface_hub=={version}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=250)
            if done.returncode != 0:
                pytest.skip(f"huggingface_hub {version} cannot be installed here: {done.stderr.strip()[-200:]}")
            ready.touch()
    return python


class _Cut:
    """Ends the first answer to a request for `…/cut.safetensors` after 11 MB, as a lost connection would."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.ranges: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/cut.safetensors"):
            await self._app(scope, receive, send)
            return
        wanted = dict(scope["headers"]).get(b"range")
        self.ranges.append(wanted.decode() if wanted else None)
        left = 11 * MB if len(self.ranges) == 1 else None

        async def cutting(message: Message) -> None:
            nonlocal left
            if left is not None and message["type"] == "http.response.body":
                message = {**message, "body": message.get("body", b"")[:left], "more_body": True}
                left -= len(message["body"])
            await send(message)

        await self._app(scope, receive, cutting)


class Live:
    """A hub that runs, with a party's tokens; `ranges` are those asked for of `cut.safetensors`."""

    def __init__(self, settings: Settings) -> None:
        operate.migrate(settings)
        self.settings = settings
        self.tokens = {}
        for party in PARTIES:
            operate.add_party(settings, party)
            self.tokens[party] = operate.create_token(settings, party, ["publisher", "requester", "steward"])[1]
        self._server = server(settings, port=0)
        self._cut = _Cut(self._server.config.app)  # type: ignore[arg-type]
        self._server.config.app = self._cut
        self.ranges = self._cut.ranges
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Live:
        self._thread.start()
        deadline = time.monotonic() + 120
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive()

    def environment(self, folder: Path) -> dict[str, str]:
        """What a user sets, and nothing of this process's own; no contact with anything but the hub."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HF_HOME": str(folder / "home"),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPATH": str(ROOT),  # scripts share what lies beside them
        }

    def run(self, python: Path, script: Path, folder: Path) -> dict[str, Any]:
        """Run a script in a folder by a client's Python; return the JSON it printed last."""
        (folder / "tokens.json").write_text(json.dumps(self.tokens))
        command = [str(python), str(script), str(folder)]
        environment = self.environment(folder)
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answers


@contextmanager
def _running(backend: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Live]:
    if backend == "sqlite+folder":
        settings = Settings(database_url=f"sqlite:///{folder / 'hub.db'}", store=str(folder / "store"))
        with Live(settings) as live:
            yield live
        return
    address, bucket = request.getfixturevalue("s3_server"), f"contract-{os.getpid()}-{time.monotonic_ns()}"
    assert httpx.put(f"{address}/{bucket}", timeout=60).status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ACCESS_KEY_ID": "hub", "SECRET_ACCESS_KEY": "secret", "REGION": "eu-central-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        url = request.getfixturevalue("postgres").empty()
        with Live(Settings(database_url=url, store=f"s3://{bucket}/hub", s3_endpoint=address)) as live:
            yield live


@pytest.fixture(params=["sqlite+folder", "postgresql+s3"])
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Live]:
    """A hub on a database and a store."""
    # Printed in colours with all frames, as without the hub's own logging, a failure would take a minute.
    with capture_logs(), _running(request.param, tmp_path, request) as live:
        yield live
