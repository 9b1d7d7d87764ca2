"""What can go wrong with a hub: the errors, and which of them an answer or a broken connection stands for."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx

from suture.network import shown
from suture_contract.errors import SutureError
from suture_contract.exit_codes import ExitCode

_E = TypeVar("_E", bound=BaseException)
#: OpenSSL's numbers (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _UNKNOWN_AUTHORITY = 9, 10, {2, 18, 19, 20, 21}


class HubError(SutureError):
    """The hub refused or could not be asked. `status` is the HTTP status, or None when no answer came."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, where=where, hint=hint)
        self.status = status
        self.retry_after = retry_after


class AuthError(HubError):
    """401 or 403: no token, a wrong or revoked one, or one whose roles do not allow this."""

    exit_code = ExitCode.AUTH
    usual_hint = "type `suture login` with a valid token"


class NotFound(HubError):
    """404: it does not exist, or this token may not see it."""

    exit_code = ExitCode.NOT_FOUND


class Conflict(HubError):
    """409: the request contradicts what the hub knows."""


class Fenced(Conflict):
    """409 `task.fenced`: another lease of this task is valid now, or the task has ended. Stop working on it."""


class Refused(HubError):
    """Any other 4xx: the hub checked what it got and does not accept it."""


class Unavailable(HubError):
    """No answer, 429 or 5xx, after all retries: the same request may succeed later."""

    exit_code = ExitCode.UNAVAILABLE


class Barred(Unavailable):
    """No answer of the hub, and none before somebody changes something: a proxy, a certificate or the clock."""


def error_of(response: httpx.Response, body: bytes, *, proxy: str | None = None) -> HubError:
    """Return the error that an answer stands for: the hub's own words, or its status where it has none."""
    status = response.status_code
    try:
        details = httpx.Response(status, content=body).json()["error"]
        code, message = plain(details["code"]), plain(details["message"])
        where, hint = plain(details.get("where")), plain(details.get("hint"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return _of_another(response, proxy)
    code, where = code or f"http.{status}", where or response.url.path
    message = message or f"the hub answered {status}"
    kind = _kind(status, code)
    return kind(code, message, where=where, hint=hint, status=status, retry_after=_retry_after(response))


def _of_another(response: httpx.Response, proxy: str | None) -> HubError:
    """Return the error for an answer that is none of a hub's: a proxy's page, say."""
    status, url = response.status_code, response.url
    if status in (401, 403, 407):
        return _refused_by_proxy(status, url, proxy)
    location = httpx.URL(response.headers.get("Location", "")) if 300 <= status < 400 else None
    if location is not None and location.is_absolute_url:
        at = f"{location.scheme}://{location.netloc.decode('ascii', 'replace')}"
        message = f"this is not the hub's address: what is there sends on to {plain(at)}"
        return Refused("hub.moved", message, where=str(url), hint=f"give the address as {plain(at)}", status=status)
    who = "something between here and the hub, such as a proxy," if proxy else "what is there, which is no hub,"
    message, hint = f"{who} answered {status}", "check that the URL is that of a Suture hub"
    if status == 413:
        message = "a proxy or web server before the hub takes no request as large as this one (413)"
        hint = "tell the hub's operator, who may raise its limit, or whoever runs your proxy"
    elif status >= 500 or status == 429:
        message, hint = f"the hub, or a proxy before it, answered {status}", "try again in a while"
    kind = _kind(status, f"http.{status}")
    return kind(f"http.{status}", message, where=url.path, hint=hint, status=status, retry_after=_retry_after(response))


def _refused_by_proxy(status: int, url: httpx.URL, proxy: str | None) -> Barred:
    who = f"the proxy {shown(proxy)}" if proxy else "a proxy or web server before the hub"
    apart = f", or set NO_PROXY={url.host} if the hub can be reached without it" if proxy else ""
    if status == 407:
        return Barred(
            "proxy.login",
            f"{who} asks for a user name and a password (407)",
            where=str(url.copy_with(query=None)),
            hint=f"name them in HTTPS_PROXY or HTTP_PROXY, as http://USER:PASSWORD@host:port{apart}",
            status=status,
        )
    return Barred(
        "proxy.refused",
        f"{who} refuses the way to the hub ({status})",
        where=str(url.copy_with(query=None)),
        hint=f"ask whoever runs it to let {url.host} through{apart}",
        status=status,
    )


def _kind(status: int, code: str) -> type[HubError]:
    if status in (401, 403):
        return AuthError
    if status == 404:
        return NotFound
    if status == 409:
        return Fenced if code == "task.fenced" else Conflict
    if status == 429 or status >= 500:
        return Unavailable
    return Refused


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        # By the clock that named the moment: this machine's may be wrong.
        date = response.headers.get("Date")
        now = parsedate_to_datetime(date) if date is not None else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def skew_of(response: httpx.Response) -> float | None:
    """Return how far the clock of who answered is ahead of this machine's, in seconds; None where it does not say."""
    try:
        sent_at = parsedate_to_datetime(response.headers.get("Date", ""))
        return (sent_at - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None


def unreachable(url: str, error: httpx.RequestError, *, proxy: str | None = None) -> Unavailable:
    """Return the error for a call that got no answer, or half of one."""
    reason = plain(str(error)) or type(error).__name__
    untrusted = _cause(error, ssl.SSLCertVerificationError)
    if untrusted is not None:
        return _untrusted(url, untrusted)
    if isinstance(error, httpx.ProxyError):
        status = re.match(r"[0-9]{3}(?= |$)", reason)
        if status is not None and 400 <= int(status[0]) < 500:
            return _refused_by_proxy(int(status[0]), httpx.URL(url), proxy)
        return Unavailable(
            "proxy.unavailable",
            f"the proxy {shown(proxy)} does not reach the hub ({reason})",
            where=url,
            hint="try again; if it stays so, tell whoever runs the proxy",
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        by = f" by way of the proxy {shown(proxy)}" if proxy else ""
        hint = "check the URL, and that the hub runs: GET /healthz needs no token"
        if proxy:
            hint = "check HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, and the URL"
        elif _cause(error, socket.gaierror) is not None:
            hint = "check the name in the URL; if only a proxy gets out of here, name it in HTTPS_PROXY"
        elif _cause(error, ssl.SSLError) is not None:
            hint = "check the URL: what answers there may speak http:// only"
        return Unavailable("hub.unreachable", f"no connection{by} ({reason})", where=url, hint=hint)
    hint = (
        "try again; if the hub speaks TLS, its address begins with https://" if url.startswith("http:") else "try again"
    )
    return Unavailable("hub.interrupted", f"the connection broke ({reason})", where=url, hint=hint)


def _untrusted(url: str, error: ssl.SSLCertVerificationError) -> Barred:
    """Return the error for a certificate that does not hold: not now by this machine's clock, or not here at all."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        when = "is not valid yet" if error.verify_code == _NOT_YET_VALID else "has expired"
        return Barred(
            "tls.clock",
            f"the hub's certificate {when} by this machine's clock, which says {now} UTC",
            where=url,
            hint="if the clock is wrong, set it (NTP); if it is right, the hub's operator must renew the certificate",
        )
    reason = plain(error.verify_message) or "it cannot be verified"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        hint = (
            "if your organisation opens TLS, or the hub has an authority of its own: let SSL_CERT_FILE name the PEM "
            f"file of its certificate; {_machines_own()}"
        )
    else:
        hint = "check the URL; if it is right, tell the hub's operator"
    return Barred("tls.untrusted", f"the hub's certificate is not trusted: {reason}", where=url, hint=hint)


def _machines_own() -> str:
    path = ssl.get_default_verify_paths().cafile
    return f"those this machine trusts are in {path}" if path else "those this machine trusts are not asked"


def _cause(error: BaseException, kind: type[_E]) -> _E | None:
    """Return the error of this kind that led to `error`, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause


def plain(text: object) -> str | None:
    """Return text from the other side fit for a terminal: printable and bounded."""
    if not isinstance(text, str):
        return None
    return "".join(character if character.isprintable() else " " for character in text[:2000]).strip() or None
