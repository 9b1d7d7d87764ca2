"""What the hub answers when it refuses: one base class that carries the HTTP status, and the handlers for it."""

from __future__ import annotations

from typing import Any, ClassVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException

from suture_contract.errors import SutureError
from suture_service.parameters import problem_of

log = structlog.get_logger(__name__)


class HubError(SutureError):
    """A refusal with its HTTP status; every other `SutureError` (a bad model, bad metadata) is answered with 422."""

    status: ClassVar[int] = 422


class NotFound(HubError):
    """Unknown, or not for this caller: both answer the same."""

    status = 404

    def __init__(self, what: str = "nothing here", *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__("not_found", f"{what}, or it is not shared with you", where=where, hint=hint)


class Unauthorized(HubError):
    """No token, a wrong one or one that has ended."""

    status = 401

    def __init__(
        self,
        code: str = "auth.invalid",
        message: str = "the token is missing, wrong or revoked",
        *,
        hint: str = "send `Authorization: Bearer <token>`; ask your hub's operator for a token",
    ) -> None:
        super().__init__(code, message, hint=hint)


class Forbidden(HubError):
    """The token is good but lacks the role, or belongs to another party."""

    status = 403


class Suspended(Forbidden):
    """The token is good, and its party or site is not let in for now."""

    def __init__(self) -> None:
        super().__init__(
            "auth.suspended",
            "this party or site is suspended for now",
            hint="the hub's operator can resume it",
        )


class Conflict(HubError):
    """The request does not fit the present state."""

    status = 409


class TooLarge(HubError):
    """More bytes than the hub takes."""

    status = 413


class Malformed(HubError):
    """The body could not be read as what it claims to be."""

    status = 400


class RangeNotSatisfiable(HubError):
    """The requested range lies outside the file."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__("range.not_satisfiable", f"the file has {size} bytes", where="Range")
        self.size = size


class PreconditionFailed(HubError):
    """What the caller goes by is no longer so: a branch, or a file, is not what it was."""

    status = 412


class TooMany(HubError):
    """More requests than one may make; `retry_after` in seconds."""

    status = 429

    def __init__(
        self,
        code: str,
        message: str,
        retry_after: int,
        *,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, hint=hint)
        self.headers = {"Retry-After": str(retry_after), **(headers or {})}


class Unavailable(HubError):
    """The hub cannot do this right now; the same request may work in a moment."""

    status = 503


class StoreFull(Unavailable):
    """The hub's store has no room left."""

    status = 507

    def __init__(self) -> None:
        super().__init__("store.full", "the hub's store is full", hint="tell the hub's operator, then try again")


class DatabaseFull(Unavailable):
    """The disk under the hub's database has no room left."""

    status = 507

    def __init__(self) -> None:
        hint = "tell the hub's operator, then try again"
        super().__init__("hub.full", "the disk under the hub's database is full", hint=hint)


class ErrorBody(BaseModel):
    """What is wrong, where, and what to do next."""

    code: str = Field(description="Stable and machine-readable: `noun.problem`.", examples=["model.truncated"])
    message: str = Field(examples=["the file ends inside tensor 'conv1.weight'"])
    where: str | None = Field(default=None, description="The file, field or node.", examples=["model.safetensors"])
    hint: str | None = Field(default=None, description="What to do next.", examples=["upload the file again"])


class ErrorAnswer(BaseModel):
    """Every refusal has this body."""

    error: ErrorBody


#: What the database's driver raises for what it could not do; `of_database` has the refusal.
DATABASE_ERRORS = (OperationalError, DataError, IntegrityError, StaleDataError)
#: The codes of what another transaction has added, or removed, meanwhile, and of a full disk. What PostgreSQL says in
#: words is in its operator's language.
_MEETING = {
    "23505",
    "23503",
    "SQLITE_CONSTRAINT_UNIQUE",
    "SQLITE_CONSTRAINT_PRIMARYKEY",
    "SQLITE_CONSTRAINT_FOREIGNKEY",
}
_FULL = {"53100", "SQLITE_FULL"}

_MEANING = {
    400: "The body could not be read.",
    401: "The token is missing, wrong or revoked (`auth.invalid`), or has expired (`auth.expired`).",
    403: "The token lacks the role, or belongs to another party (`auth.forbidden`).",
    404: "Unknown, or not shared with you (`not_found`).",
    409: "It does not fit the present state; the code says why.",
    412: "The file is not the one that `If-Match` names.",
    413: "More bytes than the hub takes.",
    416: "The requested range lies outside the file.",
    429: "More requests than one may make; `Retry-After` says when to come again.",
    422: "The content is refused; the code, place and hint say why.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an endpoint that may refuse with these statuses."""
    return {status: {"model": ErrorAnswer, "description": _MEANING[status]} for status in sorted({401, *statuses})}


def _answer(status: int, error: SutureError, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error.as_dict()}, status_code=status, headers=headers)


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SutureError)
    status = error.status if isinstance(error, HubError) else 422
    return _answer(status, error, headers_of(error))


def headers_of(error: SutureError) -> dict[str, str]:
    """Return the headers that belong to a refusal."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    if isinstance(error, TooMany):
        headers |= error.headers
    return headers


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problem = problem_of(request, error)
    return _answer(422, HubError("request.invalid", problem.message, where=problem.field, hint=problem.hint))


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "request.method", 413: "request.too_large"}.get(error.status_code, "request.invalid")
    return _answer(error.status_code, SutureError(code, str(error.detail)), dict(error.headers or {}))


async def _database(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DATABASE_ERRORS)
    return await _refuse(request, of_database(error))


def of_database(error: Exception) -> HubError:
    """Return the refusal for one of `DATABASE_ERRORS`; raises the error where the hub itself is at fault."""
    if isinstance(error, DataError):
        # A character or number that no column can hold, such as NUL in a name: nothing that exists has it.
        return HubError("request.invalid", "a value holds a character or number that cannot be stored")
    if _code(error) in _FULL:
        log.error("the disk under the database is full")
        return DatabaseFull()
    # The driver's text may quote the statement's values: its class is enough to find the cause.
    log.error("database", error=type(error).__name__, cause=type(getattr(error, "orig", None)).__name__)
    if isinstance(error, IntegrityError | StaleDataError):
        return _met(error)
    return Unavailable("hub.busy", "the database did not answer in time", hint="try again in a moment")


def _code(error: Exception) -> str | None:
    """Return by what code PostgreSQL, or SQLite, knows what it could not do."""
    cause = getattr(error, "orig", None)
    code: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return code


def _met(error: IntegrityError | StaleDataError) -> Conflict:
    """Return the refusal where another transaction changed the same rows, which whoever changes them ought to lock."""
    if isinstance(error, IntegrityError) and _code(error) not in _MEETING:
        raise error
    log.error("changed at once", exc_info=error)
    hint = "look at what is there now, then try again"
    return Conflict("request.conflict", "somebody else changed the same at the same moment", hint=hint)


def install(app: FastAPI) -> None:
    """Make the app answer every refusal, expected or not, in the one form."""
    app.add_exception_handler(SutureError, _refuse)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for kind in DATABASE_ERRORS:
        app.add_exception_handler(kind, _database)
