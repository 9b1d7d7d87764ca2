"""Connections on which nothing happens: they end, are counted, and never keep an honest caller out."""

from __future__ import annotations

import json
import os
import resource
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network

import httpx
import pytest
from structlog.testing import capture_logs
from tests.client.nearby import certificate
from tests.service.test_live import Live
from tests.until import until

from suture_service import connections, observe, operate
from suture_service.connections import Connections, most_connections
from suture_service.main import Tls
from suture_service.settings import Settings

HALF = b"GET /healthz HTTP/1.1\r\nHost: hub\r\nX-Slow: "


@pytest.fixture
def settings(migrated_sqlite, tmp_path) -> Settings:
    database = tmp_path / "hub.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(
        database_url=f"sqlite:///{database}",
        store=str(tmp_path / "store"),
        proxies="127.0.0.3",
        max_connections=30,
        max_connections_per_address=20,
    )
    operate.add_party(settings, "north")
    return settings


@pytest.fixture
def live(settings) -> Iterator[Live]:
    with Live(settings) as running:
        yield running


def dial(stack: ExitStack, live: Live, sent: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    made = stack.enter_context(
        socket.create_connection(("127.0.0.1", live.port), timeout=60, source_address=(address, 0))
    )
    made.sendall(sent)
    return made


def answer(made: socket.socket) -> bytes:
    """All that comes until the hub ends the connection."""
    found = b""
    try:
        while part := made.recv(4096):
            found += part
    except ConnectionResetError:
        pass
    return found


def test_half_sent_headers_keep_nobody_out(live):
    """Ten times as many as there may be: each honest request is answered, and one line of the log says what goes on."""
    with ExitStack() as stack, capture_logs() as logs:
        for round_ in range(10):
            for index in range(30):
                dial(stack, live, HALF, address=f"127.0.1.{(30 * round_ + index) % 250 + 1}")
            assert httpx.get(f"{live.url}/healthz", timeout=60).status_code == 200
    (told,) = [entry for entry in logs if entry["event"] == "connections at their limit"]
    assert (told["most"], told["open"]) == (30, 30)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /openapi.json HTTP/1.1\r\nHost: hub\r\n\r\n" * connections.WAITING_REQUESTS,
        b"POST /-/sign-in HTTP/1.1\r\nHost: hub\r\nContent-Length: 100\r\n\r\n",
        b"POST /-/sign-in HTTP/1.1\r\nHost: hub\r\nContent-Length: 200000\r\n\r\n" + b"x" * connections.BODY_AT_ONCE,
    ],
    ids=["answers that nobody reads", "bodies that stand still", "bodies that stand still after much of them"],
)
def test_who_hardly_reads_or_sends_keeps_nobody_out(live, monkeypatch, sent):
    """Nobody needs a token for these, and has as many addresses as it likes."""
    monkeypatch.setattr(connections, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(observe, "BODY_SECONDS", 3600)

    def answered():
        try:
            return httpx.get(f"{live.url}/healthz", timeout=60).status_code == 200
        except httpx.TransportError:  # refused before it had asked
            return False

    with ExitStack() as stack:
        for index in range(30):
            dial(stack, live, sent, f"127.0.1.{index + 1}")
        until(lambda: len(live.server.server_state.connections) == 30)
        for _ in range(3):
            until(answered)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /openapi.json HTTP/1.1\r\nHost: hub\r\n\r\n" * connections.WAITING_REQUESTS,
        b"POST /-/sign-in HTTP/1.1\r\nHost: hub\r\nAccept: text/html\r\nContent-Length: 100\r\n\r\n",
    ],
    ids=["with requests that wait", "in the middle of a form"],
)
def test_who_goes_away_is_no_failure_of_the_hub(live, sent):
    """Strangers could set off the alarm for failed requests."""

    def waits(connection):
        # For its caller to read, or to send.
        return connection.flow.write_paused or (connection.cycle is not None and connection.cycle.more_body)

    with capture_logs() as logs:
        for _ in range(3):
            with ExitStack() as stack:
                made = dial(stack, live, sent)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                until(lambda: any(map(waits, live.server.server_state.connections)))
            until(lambda: not live.server.server_state.connections and not live.server.server_state.tasks)
    assert {entry["event"] for entry in logs} == {"request"}
    assert {entry["status"] for entry in logs} <= {200, observe.CUT}


def test_who_reads_slowly_gets_the_whole_answer(live, settings, handmade, monkeypatch):
    """As long as something is read: the wait for another request begins when the answer has gone."""
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.2)
    token, content = operate.create_token(settings, "north", ["publisher"])[1], handmade.model(side=350)
    with live.client(token) as client:
        files = {"model": content, "metadata": json.dumps(handmade.metadata(side=350)).encode()}
        client.put("/v1/models/north/digits/revisions", files=files).raise_for_status()
    path = b"/v1/models/north/digits/revisions/latest/files/model.safetensors"
    # What the system takes in for a caller, it takes from the listening socket.
    with socket.socket(fileno=os.dup(live.server.servers[0].sockets[0].fileno())) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(("127.0.0.1", live.port))
        head = b"GET %b HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %b\r\n\r\n"
        slow.sendall(head % (path, token.encode()))
        first = slow.recv(1)
        time.sleep(5 * 0.2)
        assert (first + answer(slow)).endswith(content)


def test_callers_that_never_finish_tls_are_left(settings, tmp_path, monkeypatch):
    pem = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=pem)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with Live(settings, Tls(pem, pem)) as live, ExitStack() as stack:
        made = [dial(stack, live, b"\x16\x03\x01"[: index % 4]) for index in range(40)]
        assert httpx.get(f"https://localhost:{live.port}/healthz", timeout=60, verify=trust).status_code == 200
        assert not any(map(answer, made))
        with trust.wrap_socket(dial(stack, live), server_hostname="localhost") as safe:
            safe.sendall(HALF)
            assert b"HTTP/1.1 408" in answer(safe)


def test_one_address_has_its_share_and_a_proxy_more(live):
    with ExitStack() as stack:
        for _ in range(20):
            dial(stack, live, HALF, "127.0.0.2")
        assert answer(dial(stack, live, b"", "127.0.0.2")).startswith(b"HTTP/1.1 503")
        assert httpx.get(f"{live.url}/healthz", timeout=60).status_code == 200
    with ExitStack() as stack:
        made = [dial(stack, live, b"", "127.0.0.3") for _ in range(25)]
        made[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert made[-1].recv(4096).startswith(b"HTTP/1.1 200")


def test_a_network_of_addresses_has_one_share():
    counted = Connections(30, 2, [ip_network("2001:db8:9::/48")])
    admitted = [counted.admit(object(), f"2001:db8::{index:x}") for index in range(3)]
    assert admitted == [True, True, False]
    assert counted.admit(object(), "2001:db8:0:1::1")
    assert all(counted.admit(object(), "2001:db8:9::1") for _ in range(3))


def test_each_wait_for_a_caller_ends(live, settings, monkeypatch):
    token = operate.create_token(settings, "north", ["publisher"])[1]
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(observe, "BODY_SECONDS", 0.3)
    whole = b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n"
    body = b"PUT /v1/models/north/m/revisions HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000\r\n"
    kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
    with ExitStack() as stack:
        assert answer(dial(stack, live)) == b""
        assert answer(dial(stack, live, HALF)).startswith(b"HTTP/1.1 408")
        assert answer(dial(stack, live, whole)).startswith(b"HTTP/1.1 200")
        assert answer(dial(stack, live, whole + HALF)).startswith(b"HTTP/1.1 200")
        late = body + kind + b"Authorization: Bearer " + token.encode() + b"\r\n\r\n--x\r\n"
        assert b" 408 " in answer(dial(stack, live, late))
        until(lambda: not live.server.server_state.connections)


def test_a_header_without_end_is_refused(live):
    with ExitStack() as stack:
        made = dial(stack, live, HALF)
        try:
            for _ in range(200):
                made.sendall(b"x" * 1024 + b"\r\nX-More: ")
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert answer(made).startswith((b"HTTP/1.1 431", b""))
        until(lambda: not live.server.server_state.connections)


def test_a_body_that_goes_on_after_its_refusal_is_no_header(live, monkeypatch):
    """Refused early, a caller sends the rest, and asks for something else: it is answered that, and nothing before."""
    monkeypatch.setattr(observe, "DRAIN_SECONDS", 0.0)
    rest = 4 * connections.HEADER_BYTES
    with ExitStack() as stack:
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        made = dial(stack, live, head % (rest + 1) + b"[")
        first = made.recv(4096)
        while b"auth.invalid" not in first:
            first += made.recv(4096)
        for _ in range(4):
            made.sendall(b"[" * (rest // 4))
        made.sendall(b"GET /healthz HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n")
        second = answer(made)
    assert first.startswith(b"HTTP/1.1 401")
    assert second.startswith(b"HTTP/1.1 200"), second


def test_a_header_of_many_lines_is_refused(live):
    """However short they are: each costs the hub more than it does the caller."""
    lines = b"a:\r\n" * (connections.HEADER_LINES + 1)
    with ExitStack() as stack:
        assert answer(dial(stack, live, b"GET /healthz HTTP/1.1\r\n" + lines + b"\r\n")).startswith(b"HTTP/1.1 400")


def test_a_body_may_come_in_small_pieces(live):
    """As some programs write JSON; but a quarter of a MiB of single bytes kept the hub's loop busy for a while."""
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in b"[%s]" % (b" " * 900))
    with ExitStack() as stack:
        made = dial(stack, live, b"POST /v1/login HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n")
        made.sendall(b"Connection: close\r\n\r\n" + body + b"0\r\n\r\n")
        assert answer(made).startswith(b"HTTP/1.1 404")


CHUNKED = b"POST /v1/telemetry HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (CHUNKED + b"0\r\nX-First: ", b"x" * 1000 + b"\r\nX-More: "),
        (CHUNKED + b"0\r\nX-First: ", b"x" * 1000),
        (CHUNKED + b"2;first=", b"x" * 1000),
        (b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n" + HALF, b"x" * 1000),
        (CHUNKED, b"1\r\nx\r\n"),
        (b"", b"GET /healthz HTTP/1.1\r\nHost: hub\r\n\r\n"),
    ],
    ids=["trailers", "one trailer", "extension of a chunk", "next header", "tiny pieces", "many requests"],
)
def test_what_costs_the_hub_more_than_the_caller_has_an_end(live, begun, more):
    """Nobody needs a token for these, and the hub's memory would grow with them, or its loop stand still."""
    with ExitStack() as stack:
        made = dial(stack, live, begun)
        # More than any system keeps of what nobody reads.
        long = more * (1000 * connections.HEADER_BYTES // len(more))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            made.sendall(long)
        until(lambda: not live.server.server_state.connections)


def test_what_follows_a_body_is_no_header(live, settings):
    token = operate.create_token(settings, "north", ["publisher"])[1].encode()
    head = b"POST /v1/models/north/m/purge HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    sent = b"Authorization: Bearer " + token + b"\r\n"
    body = b"2\r\n{}\r\n0\r\n"
    with ExitStack() as stack:
        assert answer(dial(stack, live, head + b"\r\n" + body + sent + b"\r\n")).startswith(b"HTTP/1.1 401")
        assert answer(dial(stack, live, head + sent + b"\r\n" + body + b"\r\n")).startswith(b"HTTP/1.1 422")


def test_who_does_not_read_an_answer_is_left(live, monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    with ExitStack() as stack:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stack.enter_context(made)
        made.connect(("127.0.0.1", live.port))
        made.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: hub\r\n\r\n" * 40)
        until(lambda: not live.server.server_state.connections)


def test_a_token_is_looked_at_before_the_body_is_awaited(live, monkeypatch):
    monkeypatch.setattr(observe, "DRAIN_SECONDS", 0.1)
    posts = b"POST /v1/jobs HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    with ExitStack() as stack:
        for token in (b"", b"Authorization: Bearer suture_pat_wrong\r\n"):
            made = dial(stack, live, posts + token + b"\r\n")
            assert made.recv(4096).startswith(b"HTTP/1.1 401")


def test_connections_leave_descriptors_for_the_rest(monkeypatch):
    limits = [(256, 256)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert most_connections(1000, 100) == (78, 8)
    assert most_connections(1000, 1000) == (78, 78)
    assert most_connections(50, 20) == (50, 20)
    limits.append((256, 4096))
    assert most_connections(1000, 100) == (1000, 100)
    assert limits[-1] == (2100, 4096)
    limits.append((20, 20))
    assert most_connections(1000, 100) == (1, 8)
