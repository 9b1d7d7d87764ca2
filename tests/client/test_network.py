"""Proxies, authorities and clocks: each for real, and each told in words that say what to do."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.client.nearby import PAGE, VARIABLES, Answers, Socks, answering, certificate

from suture.errors import Barred, HubError, Refused, Unavailable, error_of
from suture.http import Connection
from suture.network import client, is_reached_alike, proxy_of
from suture_contract.errors import SutureError

HUB = "hub.hospital.example"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A proxy that answers all with one status and a page of its own, named with a password in the environment."""
    with answering(request.param, PAGE, "text/html") as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://me:hidden@127.0.0.1:{server.server_port}")
        yield server


def failing(url: str, **options: Any) -> HubError:
    """Ask, and return the error; nothing is waited for."""
    with Connection(url, "suture_north_c2VjcmV0", sleep=lambda _: None, **options) as hub:
        with pytest.raises(HubError) as caught:
            hub.upload("/v1/models/north/digits", b"content")
        return caught.value


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("proxy", "code"), [(407, "proxy.login"), (403, "proxy.refused")], indirect=["proxy"])
def test_a_proxy_that_refuses_is_named_and_not_asked_again(proxy: Answers, scheme: str, code: str) -> None:
    error = failing(f"{scheme}://{HUB}")
    assert (type(error), error.code) == (Barred, code)
    assert len(proxy.seen) == 1
    assert f"127.0.0.1:{proxy.server_port}" in error.message
    assert f"NO_PROXY={HUB}" in str(error.hint)
    assert "try again" not in str(error)
    assert "hidden" not in repr(error)
    assert "secret-of-the-proxy" not in str(error)


@pytest.mark.parametrize("proxy", [413], indirect=True)
def test_a_proxy_that_takes_no_large_request(proxy: Answers) -> None:
    error = failing(f"http://{HUB}")
    assert type(error) is Refused
    assert "large" in error.message
    assert "operator" in str(error.hint)


@pytest.mark.parametrize("proxy", [503], indirect=True)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_reach_the_hub_is_asked_again(proxy: Answers, scheme: str) -> None:
    error = failing(f"{scheme}://{HUB}", attempts=3)
    assert isinstance(error, Unavailable)
    assert len(proxy.seen) == 3
    assert "proxy" in error.message


def test_a_page_that_answers_in_the_hubs_place() -> None:
    with answering(200, PAGE, "text/html") as server:
        error = failing(server.url)
    assert error.code == "hub.answer"
    assert "proxy" in str(error.hint)


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    error = failing(f"https://{HUB}")
    assert "127.0.0.1:9" in error.message
    assert "HTTPS_PROXY" in str(error.hint)


@pytest.mark.parametrize(
    ("named", "direct"), [("fd00::/8", False), ("fd00::/8, 127.0.0.0/8", True), ("::, [, 127.0.0.2", True)]
)
def test_address_ranges_in_no_proxy(monkeypatch: pytest.MonkeyPatch, named: str, direct: bool) -> None:
    with answering(host="127.0.0.2") as hub, answering() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", named)
        with Connection(hub.url) as connection:
            assert connection.get("/v1/whoami") == {"party": "north"}
        assert (len(hub.seen), len(proxy.seen)) == ((1, 0) if direct else (0, 1))


def test_an_address_in_a_range_of_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", "fd00::/8,.intern")
    assert proxy_of("https://[fd00::7]:8420") is None
    assert proxy_of("https://hub.intern") is None
    assert proxy_of("https://[fe00::7]:8420") == "http://proxy:3128"


def test_a_socks_proxy_is_asked_for_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering() as server, Socks(server.server_port) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{proxy.port}")
        with Connection(f"http://{HUB}") as hub:
            assert hub.get("/v1/whoami") == {"party": "north"}
        assert proxy.asked == [HUB]


def test_a_socks_proxy_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(SutureError) as caught:
        Connection(f"https://{HUB}")
    assert caught.value.code == "proxy.socks"
    assert "httpx[socks]" in str(caught.value.hint)


@pytest.mark.parametrize("value", ["ftp://me:hidden@proxy:21", "socks4://proxy:1", "http://me:hidden@:x"])
def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(SutureError) as caught:
        Connection(f"https://{HUB}")
    assert caught.value.code == "proxy.invalid"
    assert "HTTPS_PROXY" in str(caught.value.hint)
    assert "hidden" not in repr(caught.value)


# Certificates


def test_an_unknown_authority_is_named_and_may_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path)
    with answering(certificate=path) as server:
        url = f"https://localhost:{server.server_port}"
        error = failing(url)
        assert (type(error), error.code) == (Barred, "tls.untrusted")
        assert "SSL_CERT_FILE" in str(error.hint)
        assert server.seen == []
        # As for requests and curl: who has set one of these for them need not learn of another.
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            with monkeypatch.context() as only:
                only.setenv(name, str(path))
                with Connection(url) as hub:
                    assert hub.get("/v1/whoami") == {"party": "north"}


def test_authorities_are_read_where_certificates_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path)
    read: list[Any] = []
    monkeypatch.setattr(ssl, "create_default_context", lambda **options: read.append(options))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    refused = pytest.raises(httpx.ConnectError, match="certificate verify failed")
    # Whoever asks for an unprotected hub trusts nobody.
    with answering(certificate=path) as server, client(f"http://{HUB}") as plain, refused:
        plain.get(f"https://localhost:{server.server_port}")
    assert read == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authorities_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv(name, str(path))
    with pytest.raises(SutureError) as caught:
        Connection(f"https://{HUB}")
    assert (caught.value.code, caught.value.where) == ("tls.authorities", str(path))
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("begins", "ends", "words"), [(700, 800, "is not valid yet"), (-800, -700, "has expired")], ids=["behind", "ahead"]
)
def test_a_clock_that_is_two_years_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: int, ends: int, words: str
) -> None:
    path = certificate(tmp_path, begins=timedelta(days=begins), ends=timedelta(days=ends))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with answering(certificate=path) as server:
        error = failing(f"https://localhost:{server.server_port}")
    assert (type(error), error.code) == (Barred, "tls.clock")
    assert words in error.message
    assert "clock" in str(error.hint)


def test_a_wrong_clock_does_not_lengthen_what_the_hub_asks_for() -> None:
    headers = {"Date": "Wed, 21 Oct 2099 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2099 07:28:09 GMT"}
    request = httpx.Request("GET", "http://127.0.0.1/v1/models")
    answer = httpx.Response(503, headers=headers, request=request)
    assert error_of(answer, b"").retry_after == 9


def test_what_speaks_no_tls() -> None:
    with answering() as server:
        error = failing(f"https://localhost:{server.server_port}")
    assert error.code == "hub.unreachable"
    assert "http://" in str(error.hint)


@pytest.mark.parametrize(
    ("name", "value"),
    [("NO_PROXY", "fd00::/8"), ("SSL_CERT_FILE", "/nowhere/ca.pem"), ("ALL_PROXY", "socks5h://127.0.0.1:9")],
)
def test_no_traceback_reaches_whoever_types_a_command(name: str, value: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "SUTURE_HUB": "https://127.0.0.2:9", "SUTURE_TOKEN": "t", name: value}
    command = [sys.executable, "-m", "suture", "models"]
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=280, check=False)
    assert b"Traceback" not in ended.stderr
    assert b"\nnext:  " in ended.stderr
    assert ended.returncode in (5, 6)


@pytest.mark.parametrize(
    ("environment", "alike"),
    [
        ({}, True),
        ({"SSL_CERT_FILE": "/ca.pem", "REQUESTS_CA_BUNDLE": "/ca.pem"}, True),
        ({"REQUESTS_CA_BUNDLE": "/ca.pem"}, False),
        ({"HTTPS_PROXY": "http://proxy:3128"}, True),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.7"}, True),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8"}, False),
    ],
)
def test_whether_other_packages_reach_the_hub_alike(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], alike: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_reached_alike("https://10.0.0.7") is alike
    assert not is_reached_alike("https://127.0.0.1") or not {"HTTPS_PROXY"} & environment.keys()


@pytest.mark.parametrize(("year", "words"), [(2099, "behind the hub's"), (2001, "ahead of the hub's")])
def test_a_login_tells_of_a_clock_that_is_far_off(
    year: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("suture_north_c2VjcmV0\n", encoding="utf-8")
    token.chmod(0o600)
    monkeypatch.setattr(Answers, "date", f"Wed, 21 Oct {year} 07:28:00 GMT")
    with answering() as server:
        command = [sys.executable, "-m", "suture", "login", "--hub", server.url, "--token-file", str(token)]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        ended = subprocess.run(command, capture_output=True, env=environment, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert words in ended.stderr.decode()
