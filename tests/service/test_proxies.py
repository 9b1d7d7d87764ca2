"""The proxies that docs/proxies shows, as they are but for names, ports and files: run where they are installed."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from tests.client.nearby import certificate
from tests.programs import PATH, program
from tests.service.test_connections import HALF, answer
from tests.service.test_live import Live, ask
from tests.until import until

from suture_local.ports import free_port
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
    # Callers of this test have the address that they name here.
    named = "set_real_ip_from 127.0.0.1; real_ip_header X-Test-Address;"
    http = f"http {{ access_log off; {kept} {named} include hub.conf; }}"
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
    program(name)
    database = tmp_path / "hub.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(database_url=f"sqlite:///{database}", store=str(tmp_path / "store"))
    for party in ("north", "south"):
        operate.add_party(settings, party)
    folder = tmp_path / "proxy"
    folder.mkdir()
    pem, port = certificate(tmp_path), free_port()
    environment = {"PATH": PATH, "HOME": str(folder)}
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

        def put(token: str, address: str = "") -> bytes:
            head = f"PUT /v1/models/north/m/revisions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: 100000\r\n"
            kind = f"Content-Type: multipart/form-data; boundary=x\r\nX-Test-Address: {address}\r\n"
            return f"{head}{kind}Authorization: Bearer {token}\r\n\r\n--x".encode()

        def status(address: str) -> bytes:
            head = f"GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
            return dial(f"{head}X-Test-Address: {address}\r\n\r\n".encode()).recv(4096).split(b" ", 2)[1]

        assert b" 200 " not in answer(dial(HALF))  # ended, with or without a word
        # The rest of the body never comes.
        if name == "caddy":
            assert b" 200 " not in answer(dial(put(token)))
            return
        assert b" 401 " in dial(put("suture_pat_wrong")).recv(4096)
        assert b" 408 " in dial(put(token)).recv(4096)
        monkeypatch.setattr(observe, "BODY_SECONDS", 60)
        networks = [
            (["192.0.2.1"] * 5, "192.0.2.2"),
            ([f"::ffff:192.0.2.{host}" for host in (3, 3, 3, 3, 3)], "::ffff:192.0.2.4"),
            # The second one ends in what is a line's end to a careless pattern.
            ([f"2001:db8:0:a0a::{host:x}" for host in (1, 0xA0A, 3, 4, 5)], "2001:db8:0:a0b::1"),
        ]
        for (*first, last), other in networks:
            for address in first:
                dial(put(token, address))
            assert (status(last), status(other)) == (b"503", b"200"), last


@pytest.fixture
def caller(proxied) -> Iterator[httpx.Client]:
    """Somebody of north, who knows the hub by the proxy alone."""
    _, live, port, trust = proxied
    token = operate.create_token(live.settings, "north", ["publisher", "requester", "auditor"])[1]
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=f"https://localhost:{port}", verify=trust, timeout=60, headers=headers) as client:
        yield client


def test_large_bodies_come_through_both_ways_and_as_they_are(caller):
    """8 MiB in one request, above what proxies take by default; parts of a file, and a header without a body."""
    contents = {name: os.urandom(4 * 2**20) for name in ("a.bin", "b.bin")}
    assert caller.post("/api/repos/create", json={"name": "repo"}).status_code == 200
    entries = [{"key": "header", "value": {"summary": "Large", "description": ""}}]
    for name, content in contents.items():
        encoded = {"path": name, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        entries.append({"key": "file", "value": encoded})
    body = "\n".join(map(json.dumps, entries)).encode()
    made = caller.post(
        "/api/models/north/repo/commit/main", content=body, headers={"Content-Type": "application/x-ndjson"}
    )
    assert made.status_code == 200, made.text
    path, content = "/north/repo/resolve/main/a.bin", contents["a.bin"]
    whole = caller.get(path, headers={"Accept-Encoding": "gzip, zstd"})
    assert (whole.content == content, whole.headers.get("content-encoding")) == (True, None)
    part = caller.get(path, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, content[1000:2000])
    head = caller.head(path, headers={"Accept-Encoding": "identity"}, follow_redirects=True)
    assert (head.headers["content-length"], head.content) == (str(len(content)), b"")
    text = caller.get("/v1/models", headers={"Accept-Encoding": "gzip"})
    assert (text.status_code, text.headers.get("content-encoding")) == (200, None)


def test_news_arrive_while_a_caller_waits(proxied, caller, handmade):
    _, live, _, _ = proxied
    site = operate.add_site(live.settings, "north", "main")
    token = caller.headers["Authorization"].removeprefix("Bearer ")
    job = ask(live, token, handmade)
    seen = caller.get(f"/v1/jobs/{job['id']}/events").json()
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(caller.get, f"/v1/jobs/{job['id']}/events?after={seen['next']}&wait=25")
        until(lambda: live.hub.metrics.waiting._value.get() == 1)
        leased = httpx.post(
            caller.base_url.join("/v1/tasks/lease"),
            json={"wait": 0},
            headers={"Authorization": f"Bearer {site}"},
            verify=proxied[3],
            timeout=60,
        )
        assert leased.status_code == 200
        event, *_ = poll.result(60).json()["items"]  # an answer at the end of the wait has none
    assert event["data"]["state"] == "leased"


def test_the_hub_learns_who_calls_and_that_it_is_tls(proxied, caller):
    _, _, port, trust = proxied
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    assert caller.post("/api/repos/create", json={"name": "repo"}, headers=headers).status_code == 200
    entry = caller.get("/v1/audit").json()["items"][0]
    assert entry["address"] == "127.0.0.1", "what callers say of themselves is not believed"
    token = caller.headers["Authorization"].removeprefix("Bearer ")
    with httpx.Client(base_url=caller.base_url, verify=trust, timeout=60) as browser:
        signed_in = browser.post("/-/sign-in", data={"token": token}, headers=headers)
        assert signed_in.status_code == 303
        cookie = signed_in.headers["set-cookie"]
        assert cookie.startswith("__Host-suture=")
        assert "Secure" in cookie
        # A hub has the root of its name.
        assert browser.get("/suture/v1/whoami", headers={"Authorization": f"Bearer {token}"}).status_code == 404
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(
            socket.create_connection(("127.0.0.1", port), timeout=60), server_hostname="localhost"
        )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 400 " in answer(plain)
