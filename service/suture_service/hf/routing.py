"""Paths as the client sends them: a revision such as `feature/x` arrives as `feature%2Fx`, one segment of the path."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from suture_contract.errors import SutureError
from suture_service.errors import DATABASE_ERRORS, of_database
from suture_service.hf import errors
from suture_service.route import Route


def decoded(text: str) -> str:
    """Return a part of a raw path as text; raises `ValueError` for what is no UTF-8 or holds a NUL."""
    plain = unquote_to_bytes(text).decode()
    if "\0" in plain:
        raise ValueError("a path holds no NUL")
    return plain


Namespace = Annotated[str, Path(max_length=300), AfterValidator(decoded)]
RepoName = Annotated[str, Path(max_length=300), AfterValidator(decoded)]
#: A branch, a tag, `refs/heads/…`, a commit or at least seven digits of one.
Rev = Annotated[str, Path(max_length=1000), AfterValidator(decoded)]
FilePath = Annotated[str, Path(max_length=4000), AfterValidator(decoded)]


@dataclass(frozen=True)
class RouteRepo:
    """A repository, as a path names it."""

    namespace: Namespace
    name: RepoName


@dataclass(frozen=True)
class RoutePlace(RouteRepo):
    """A repository at a branch, tag or commit, as a path names it."""

    revision: Rev


RepoDep = Annotated[RouteRepo, Depends()]
PlaceDep = Annotated[RoutePlace, Depends()]


#: A commit, or the content that one has.
FULL_ID = re.compile(r"[0-9a-f]{40}")
_LONGEST = {"namespace": 300, "name": 300, "revision": 1000, "path": 4000}


def file_place(request: Request) -> tuple[RoutePlace, str]:
    """Return what a path with all four parts names; raises `BadRequest` as the declared parts do, at less cost."""
    parts: dict[str, str] = {}
    for name, longest in _LONGEST.items():
        raw = request.path_params[name]
        try:
            parts[name] = decoded(raw)
        except ValueError:
            raise errors.BadRequest("request.path", "a path is UTF-8 text without NUL", where=name) from None
        if len(raw) > longest:
            raise errors.BadRequest("request.path", f"longer than {longest} characters", where=name)
    path = parts.pop("path")
    return RoutePlace(**parts), path


class RawPath:
    """Middleware: routes outside `/v1` are matched on the path as it was sent, and decode its parts themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and not scope["path"].startswith("/v1/") and scope.get("raw_path"):
            scope["path"] = scope["raw_path"].decode("latin-1")
        await self._app(scope, receive, send)


class HubRoute(Route):
    """A route whose refusals the client understands."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls."""
        handle = super().get_route_handler()

        async def run(request: Request) -> Response:
            try:
                return await handle(request)
            except (SutureError, HTTPException, RequestValidationError) as error:
                return errors.answer(request, error)
            except DATABASE_ERRORS as error:
                return errors.answer(request, of_database(error))

        return run


def hub_router() -> APIRouter:
    """Return a router for endpoints of this protocol; the API's own description leaves them out."""
    return APIRouter(route_class=HubRoute, include_in_schema=False)


def base_url(request: Request) -> str:
    """Return the hub's address as the caller wrote it, without a slash at its end; the client accepts no other."""
    return str(request.base_url).rstrip("/")


def link_next(request: Request, response: Response, cursor: str) -> None:
    """Say where the next page is."""
    address = request.url.include_query_params(cursor=cursor)
    response.headers["Link"] = f'<{address}>; rel="next"'
