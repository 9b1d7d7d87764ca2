"""How this machine reaches another: through which proxy, and whose certificates it trusts there.

The environment is read here and not by httpx, which ends with an error of its own where a variable holds what it does
not know: an address range in NO_PROXY, a proxy of another kind, a file that is missing.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpx

from suture_contract.errors import SutureError

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
#: Where certificates of authorities are named, as curl, requests and OpenSSL have it; the first that is set counts.
_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SCHEMES = ("http", "https", "socks5", "socks5h")


def is_loopback(url: str) -> bool:
    """Whether this address is on this machine."""
    return httpx.URL(url).host in _LOOPBACK


def client(url: str, **options: Any) -> httpx.Client:
    """Return a client for calls to `url`, by the proxy and the authorities that the environment names.

    Raises `SutureError` (`proxy.invalid`, `proxy.socks`, `tls.authorities`) naming the variable that is wrong.
    """
    proxy = proxy_of(url)
    named = tuple(os.environ.get(name, "") for name in _AUTHORITIES)
    asked = url.startswith("https:"), (proxy or "").startswith("https:")
    trusted = _trusted(named) if any(asked) else _nobody()
    try:
        return httpx.Client(
            trust_env=False,
            verify=trusted if asked[0] else _nobody(),
            proxy=None if proxy is None else httpx.Proxy(proxy, ssl_context=trusted if asked[1] else None),
            **options,
        )
    except ImportError:
        raise SutureError(
            "proxy.socks",
            "a SOCKS proxy needs a package that is not installed",
            where=shown(proxy),
            hint="pip install 'httpx[socks]'",
        ) from None
    except (ValueError, httpx.InvalidURL):
        raise _invalid(proxy) from None


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment puts before `url`, with whatever password it holds; None without one.

    A proxy cannot reach this machine's own loopback, and NO_PROXY may name hosts, domains, addresses and ranges.
    """
    parts = urlsplit(url)
    known = getproxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if not proxy or is_loopback(url) or _is_apart(parts.hostname or "", parts.port, known.get("no", "")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        if httpx.URL(proxy).scheme not in _SCHEMES or not httpx.URL(proxy).host:
            raise _invalid(proxy)
    except httpx.InvalidURL:
        raise _invalid(proxy) from None
    return proxy


def is_reached_alike(url: str) -> bool:
    """Whether httpx by itself, as other packages use it, would go the same way to `url` and trust the same there."""
    known = getproxies()
    proxied = bool(known.keys() & {urlsplit(url).scheme, "all"})
    if proxied and proxy_of(url) is None and not proxy_bypass(urlsplit(url).hostname or ""):
        return False
    named = [name for name in _AUTHORITIES if os.environ.get(name)]
    return url.startswith("http:") or not named or named[0].startswith("SSL_")


def shown(proxy: str | None) -> str:
    """Return a proxy's address without user and password."""
    try:
        url = httpx.URL(proxy or "")
    except httpx.InvalidURL:
        return "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _is_apart(host: str, port: int | None, named: str) -> bool:
    """Whether NO_PROXY names the host; entries that are none of a host, domain, address or range say nothing."""
    if proxy_bypass(f"{host}:{port}" if port and ":" not in host else host):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for entry in named.split(","):
        try:
            if address in ip_network(entry.strip().strip("[]"), strict=False):
                return True
        except ValueError:
            continue
    return False


@lru_cache(maxsize=1)
def _nobody() -> ssl.SSLContext:
    """Return what refuses every certificate: where none is asked for, reading those of all authorities takes long."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@lru_cache(maxsize=4)
def _trusted(named: tuple[str, ...]) -> ssl.SSLContext:
    """Return what checks certificates: by the authorities of `named`, else by those that browsers trust."""
    for variable, place in zip(_AUTHORITIES, named, strict=True):
        if place:
            return _trusting(variable, place)
    return ssl.create_default_context(cafile=certifi.where())


def _trusting(variable: str, place: str) -> ssl.SSLContext:
    path = Path(place)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=place)
        return ssl.create_default_context(cafile=place)
    except OSError as error:  # as which SSLError counts, too
        missing = isinstance(error, FileNotFoundError)
        problem = "there is no such file" if missing else "it holds no certificates that can be read"
        raise SutureError(
            "tls.authorities",
            f"{variable} names the authorities to trust, but {problem}",
            where=place,
            hint=f"let {variable} name a PEM file that is there, or unset it",
        ) from None


def _invalid(proxy: str | None) -> SutureError:
    return SutureError(
        "proxy.invalid",
        "the environment names a proxy that cannot be used",
        where=shown(proxy),
        hint="give HTTPS_PROXY, HTTP_PROXY or ALL_PROXY as http://host:port, https://host:port or socks5h://host:port",
    )
