"""The proxies that docs/proxies shows, as they are but for names, ports and files: run where they are installed."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from tests.client.nearby import certificate
from tests.service.test_connections import HALF, answer
from tests.service.test_live import Live, until

from suture_service import observe, operate
from suture_service.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "proxies"


def nginx(folder: Path, port: int, hub: int, pem: Path) -> list[str]:
    text = (DOCS / "nginx.conf").read_text()
    for shown, here in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:8420", f"127.0.0.1:{hub}"),
        ("/etc/ssl/hub.example/chain.pem", str(pem)),
        ("/etc/ssl/hub.example/key.pem", str(pem)),
        ("hub.example", "localhost"),
        ("client_header_timeout 15s", "client_header_timeout 1s"),
        ("suture_address 100", "suture_address 4"),
    ):
        assert shown in text
        text = text.replace(shown, here)
    (folder / "hub.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    kept = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    http = f"http {{ access_log off; {kept} include hub.conf; }}"
    main = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} {http}"
    (folder / "nginx.conf").write_text(main)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def caddy(folder: Path, port: int, hub: int, pem: Path) -> list[str]:
    text = (DOCS / "Caddyfile").read_text()
    for shown, here in (
        ("{\n\tservers {", "{\n\tadmin off\n\tauto_https off\n\tservers {"),
        ("hub.example {", f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {pem} {pem}"),
        ("127.0.0.1:8420", f"127.0.0.1:{hub}"),
        ("read_header 15s", "read_header 1s"),
        ("read_body 2h", "read_body 2s"),
    ):
        assert shown in text
        text = text.replace(shown, here)
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


Write = Callable[[Path, int, int, Path], list[str]]


@pytest.fixture(params=[nginx, caddy])
def proxied(request, tmp_path, migrated_sqlite) -> Iterator[tuple[str, Live, int, ssl.SSLContext]]:
    write: Write = request.param
    name = write.__name__
    if shutil.which(name, path="/usr/sbin:/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"{name} is not installed")
    database = tmp_path / "hub.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(database_url=f"sqlite:///{database}", store=str(tmp_path / "store"))
    operate.add_party(settings, "north")
    folder = tmp_path / "proxy"
    folder.mkdir()
    pem, port = certificate(tmp_path), free_port()
    environment = {"PATH": "/usr/sbin:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)}
    with Live(settings) as live:
        command = write(folder, port, live.port, pem)
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, env=environment, stderr=log, stdout=log) as run,
        ):
            try:
                until(lambda: _answers(port) or run.poll() is not None, 60)
                assert run.poll() is None, (folder / "log").read_text()
                yield name, live, port, ssl.create_default_context(cafile=pem)
            finally:
                run.terminate()
                run.wait(60)


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as made:
        return made.connect_ex(("127.0.0.1", port)) == 0


def test_the_proxies_of_the_guide_do_what_it_says(proxied, monkeypatch):
    name, live, port, trust = proxied
    monkeypatch.setattr(observe, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(observe, "DRAIN_SECONDS", 0.1)
    token = operate.create_token(live.settings, "north", ["publisher"])[1]
    url = f"https://localhost:{port}"
    with httpx.Client(base_url=url, verify=trust, timeout=60, headers={"Authorization": f"Bearer {token}"}) as client:
        made = client.post("/api/repos/create", json={"name": "repo"})
        assert made.json()["url"] == f"{url}/north/repo"
        assert client.get("/api/models/north%2Frepo").status_code == 404
        assert client.get("/api/models/north/repo/revision/refs%2Fheads%2Fmain").status_code == 200

    with ExitStack() as stack:

        def dial(sent: bytes) -> socket.socket:
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            safe = stack.enter_context(trust.wrap_socket(plain, server_hostname="localhost"))
            safe.sendall(sent)
            return safe

        def put(token: str) -> bytes:
            head = f"PUT /v1/models/north/m/revisions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 100000\r\n"
            kind = "Content-Type: multipart/form-data; boundary=x\r\n"
            return f"{head}{kind}Authorization: Bearer {token}\r\n\r\n--x".encode()

        assert b" 200 " not in answer(dial(HALF))  # ended, with or without a word
        # The rest of the body never comes.
        if name == "caddy":
            assert b" 200 " not in answer(dial(put(token)))
            return
        assert b" 401 " in dial(put("suture_pat_wrong")).recv(4096)
        assert b" 408 " in dial(put(token)).recv(4096)
        monkeypatch.setattr(observe, "BODY_SECONDS", 60)
        for _ in range(4):
            dial(put(token))
        refused = dial(f"GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
        assert b" 503 " in refused.recv(4096)
