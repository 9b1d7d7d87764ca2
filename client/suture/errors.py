"""What can go wrong with a hub: the errors, and which of them an answer or a broken connection stands for."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from suture_contract.errors import SutureError


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


class NotFound(HubError):
    """404: it does not exist, or this token may not see it."""


class Conflict(HubError):
    """409: the request contradicts what the hub knows."""


class Fenced(Conflict):
    """409 `task.fenced`: another lease of this task is valid now, or the task has ended. Stop working on it."""


class Refused(HubError):
    """Any other 4xx: the hub checked what it got and does not accept it."""


class Unavailable(HubError):
    """No answer, 429 or 5xx, after all retries: the same request may succeed later."""


def error_of(response: httpx.Response, body: bytes) -> HubError:
    """Return the error that an answer stands for: the hub's own words, or its status where it has none."""
    status = response.status_code
    code, message, where, hint = f"http.{status}", f"the hub answered {status}", response.url.path, None
    try:
        told = httpx.Response(status, content=body).json()["error"]
        code, message = plain(told["code"]) or code, plain(told["message"]) or message
        where, hint = plain(told.get("where")) or where, plain(told.get("hint"))
    except (ValueError, TypeError, KeyError, AttributeError):
        pass  # a proxy's page, say: the status is all we know
    kind = _kind(status, code)
    return kind(code, message, where=where, hint=hint, status=status, retry_after=_retry_after(response))


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
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def unreachable(url: str, error: httpx.TransportError) -> Unavailable:
    """Return the error for a call that got no answer, or half of one."""
    reason = plain(str(error)) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return Unavailable(
            "hub.unreachable",
            f"no connection ({reason})",
            where=url,
            hint="check the URL, and that the hub runs: GET /healthz needs no token",
        )
    return Unavailable("hub.interrupted", f"the connection broke ({reason})", where=url, hint="try again")


def plain(text: object) -> str | None:
    """Return text from the other side fit for a terminal: printable and bounded."""
    if not isinstance(text, str):
        return None
    return "".join(character if character.isprintable() else " " for character in text[:2000]).strip() or None
