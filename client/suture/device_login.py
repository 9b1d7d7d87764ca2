"""Signing in at an identity provider from a terminal: the device authorization grant (RFC 8628).

    id_token = sign_in("https://id.example", "suture", lambda code: print(code.address, code.text))

This machine shows a code and an address; the person opens the address in any browser, on any device, and enters the
code there. No password comes near this program.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from suture.errors import AuthError, Barred, Unavailable, plain, unreachable
from suture.network import client as client_for
from suture.network import is_loopback, proxy_of
from suture_contract.errors import SutureError

#: In seconds: for one answer; between two polls, if the provider names no time; and for the whole login at most.
TIMEOUT, INTERVAL, LONGEST = 15.0, 5.0, 900.0
_SLOWER = 5.0
_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass(frozen=True)
class Code:
    """What the person enters where; `complete` is an address that holds the code already, if there is one."""

    text: str
    address: str
    complete: str | None


def sign_in(
    issuer: str, client_id: str, show: Callable[[Code], None], *, sleep: Callable[[float], object] = time.sleep
) -> str:
    """Return the ID token of whoever enters the code that `show` is given.

    Raises `SutureError`: `login.denied`, `login.too_late`, `login.unavailable`, or `login.provider` when the provider
    does not do this.
    """
    _check_protected(issuer)
    with client_for(issuer, timeout=TIMEOUT) as client:
        try:
            discovery = client.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            places = _document(discovery)
            if not discovery.is_success or places.get("issuer") != issuer:
                raise _provider(issuer, "what answers there is not this provider")
            device = _endpoint(places, "device_authorization_endpoint", issuer)
            tokens = _endpoint(places, "token_endpoint", issuer)
            started = client.post(device, data={"client_id": client_id, "scope": "openid email"})
        except httpx.RequestError as error:
            problem = unreachable(issuer, error, proxy=proxy_of(issuer))
            if isinstance(problem, Barred):
                raise problem from None
            raise Unavailable(
                "login.unavailable", "the identity provider does not answer", where=issuer, hint="try again"
            ) from None
        code, secret, pause, lasts = _code(started, issuer)
        show(code)
        return _poll(
            client,
            tokens,
            {"grant_type": _GRANT, "device_code": secret, "client_id": client_id},
            issuer,
            pause,
            lasts,
            sleep,
        )


def _poll(
    client: httpx.Client,
    address: str,
    form: dict[str, str],
    issuer: str,
    pause: float,
    lasts: float,
    sleep: Callable[[float], object],
) -> str:
    waited = 0.0
    while waited + pause <= lasts:
        sleep(pause)
        waited += pause
        started = time.monotonic()
        try:
            answer = client.post(address, data=form)
        except httpx.RequestError:
            answer = None
        waited += time.monotonic() - started
        if answer is None or answer.status_code >= 500 or answer.status_code == 429:
            pause = max(2 * pause, 1.0)
            continue
        document = _document(answer)
        if answer.is_success:
            if isinstance(token := document.get("id_token"), str):
                return token
            raise _provider(issuer, "it gave no ID token")
        match document.get("error"):
            case "authorization_pending":
                pass
            case "slow_down":
                pause += _SLOWER
            case "access_denied":
                raise AuthError("login.denied", "the login was refused there", where=issuer)
            case "expired_token":
                break
            case error:
                raise _provider(issuer, f"it answered {plain(error) or answer.status_code}")
    raise AuthError("login.too_late", "the code was not entered in time", where=issuer, hint="suture login --oidc")


def _code(answer: httpx.Response, issuer: str) -> tuple[Code, str, float, float]:
    document = _document(answer)
    text, address = plain(document.get("user_code")), plain(document.get("verification_uri"))
    complete, secret = plain(document.get("verification_uri_complete")), document.get("device_code")
    if not answer.is_success or not text or not address or not isinstance(secret, str):
        raise _provider(issuer, f"it gave no code: {plain(document.get('error')) or answer.status_code}")
    pause, lasts = (document.get(name) for name in ("interval", "expires_in"))
    return (
        Code(text, address, complete),
        secret,
        float(pause) if isinstance(pause, int | float) and 0 < pause <= LONGEST else INTERVAL,
        min(float(lasts), LONGEST) if isinstance(lasts, int | float) and lasts > 0 else LONGEST,
    )


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _endpoint(places: dict[str, Any], name: str, issuer: str) -> str:
    address = places.get(name)
    if not isinstance(address, str):
        raise _provider(issuer, f"it has no {name}")
    _check_protected(address)
    return address


def _check_protected(address: str) -> None:
    try:
        scheme = httpx.URL(address).scheme
        protected = scheme == "https" or (scheme == "http" and is_loopback(address))
    except httpx.InvalidURL:
        protected = False
    if not protected:
        raise SutureError("login.provider", "this address is not encrypted: https:// is needed", where=plain(address))


def _provider(issuer: str, problem: str) -> SutureError:
    return SutureError(
        "login.provider",
        f"signing in by a code does not work: {problem}",
        where=issuer,
        hint="tell the hub's operator: the provider must allow the device authorization grant to this client",
    )
