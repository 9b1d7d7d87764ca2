"""How a page is reached: who is signed in, forms that only these pages can send, and refusals as pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from suture_contract.errors import SutureError
from suture_contract.pages import HEADERS
from suture_service.auth import Caller, admit, authenticate, bearer
from suture_service.errors import DATABASE_ERRORS, Forbidden, HubError, Unauthorized, headers_of, of_database
from suture_service.hub import HubDep, hub_of
from suture_service.observe import allow_body
from suture_service.pages.frame import provider_of, render
from suture_service.parameters import known_parameters, problem_of
from suture_service.parties.service import RESERVED
from suture_service.route import Route
from suture_service.sessions import service as sessions

log = structlog.get_logger(__name__)

#: No form holds more.
_MAX_FORM = 256 * 1024


def cookie_name(request: Request) -> str:
    """Return what the session's cookie is called: over TLS by a name that no other host can set."""
    return "__Host-suture" if request.url.scheme == "https" else "suture"


def page_caller(
    request: Request, hub: HubDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Caller:
    """Return who is signed in, or whose token was sent; raises `Unauthorized`."""
    admitted: Caller | None = getattr(request.state, "caller", None)
    if admitted is not None:
        return admitted
    if credentials is not None:
        caller: Caller | None = authenticate(request, hub, credentials)
    else:
        secret = request.cookies.get(cookie_name(request))
        if not secret:
            raise Unauthorized
        caller = admit(hub, lambda session, now: sessions.find_token(session, secret, now))
        request.state.csrf = sessions.csrf_token(secret)
    if caller is None:
        raise Unauthorized
    request.state.caller = caller
    return caller


PageCaller = Annotated[Caller, Depends(page_caller)]


def own_form(request: Request, csrf: Annotated[str, Form(max_length=100)] = "") -> None:
    """Refuse a form that another site had a browser send: it knows no session's secret; a dependency of every POST.

    Where a token was sent in a header, no browser did that by itself.
    """
    came_from = request.headers.get("origin")
    expected = getattr(request.state, "csrf", None)
    foreign = came_from is not None and urlsplit(came_from).netloc != request.headers.get("host")
    if foreign or (expected is not None and csrf != expected):
        hint = "go back, load the page again and repeat what you did"
        raise Forbidden("session.form", "this form was not sent by a page of your session", where="csrf", hint=hint)


class PageRoute(Route):
    """A route whose answers are pages, refusals too. A caller that wants no HTML is refused as the API does."""

    identify = staticmethod(page_caller)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether a request is for this page: no party is called as the hub's own addresses begin."""
        match, child = super().matches(scope)
        if child.get("path_params", {}).get("namespace") in RESERVED:
            return Match.NONE, {}
        return match, child

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls."""
        handle = super().get_route_handler()
        has_form = self.body_field is not None

        async def run(request: Request) -> Response:
            # A form sends its empty fields, too: they ask for nothing.
            query = request.scope["query_string"].decode("latin-1")
            request.scope["query_string"] = urlencode(parse_qsl(query)).encode()
            try:
                if has_form:
                    allow_body(request, _MAX_FORM)
                answer = await handle(request)
            except (SutureError, HTTPException, RequestValidationError, *DATABASE_ERRORS) as error:
                if "text/html" not in request.headers.get("accept", ""):
                    raise
                answer = problem_page(request, error)
            except ClientDisconnect:
                raise
            except Exception:
                if "text/html" not in request.headers.get("accept", ""):
                    raise
                log.exception("failed")
                hint = "tell the hub's operator the request id in the X-Request-ID header"
                answer = problem_page(request, HTTPException(500, f"the hub failed to handle this request; {hint}"))
            for name, value in HEADERS.items():
                answer.headers.setdefault(name, value)
            return answer

        return run


def pages() -> APIRouter:
    """Return a router for pages; the API's own description leaves them out."""
    return APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[Depends(known_parameters)])


def problem_page(request: Request, error: Exception) -> Response:
    """Return the page for a refusal; that of who is not signed in asks for a token."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        problem = problem_of(request, error)
        status, refusal = 422, SutureError("request.invalid", problem.message, where=problem.field, hint=problem.hint)
    elif isinstance(error, HTTPException):
        status, refusal = error.status_code, SutureError("request.failed", str(error.detail))
        headers = dict(error.headers or {})
    else:
        refusal = of_database(error) if isinstance(error, DATABASE_ERRORS) else error  # type: ignore[assignment]
        status = refusal.status if isinstance(refusal, HubError) else 422
        headers = headers_of(refusal)
    if isinstance(refusal, Unauthorized):
        headers.pop("WWW-Authenticate", None)  # browsers would ask for a password
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        answer: Response = render(
            request,
            "sign_in.html.jinja",
            401,
            problem=None,
            next=here if request.method == "GET" else "/",
            provider=provider_of(hub_of(request)),
            parties=(),
        )
        if request.headers.get("hx-request"):
            answer.headers["HX-Refresh"] = "true"
    else:
        answer = render(request, "problem.html.jinja", status, problem=refusal, status=status)
    answer.headers.update(headers)
    return answer
