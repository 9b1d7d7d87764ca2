"""How an endpoint is reached: first the token, then the body, and of a body no more than an honest one holds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from suture_contract.structure import holds_more
from suture_service.auth import authenticate, bearer
from suture_service.errors import TooLarge
from suture_service.hub import hub_of

#: Of a body in JSON, names of fields counted: many more than the largest that Suture or the official client sends.
MAX_VALUES = 100_000
#: From so many bytes on they are counted beside the event loop.
_LONG = 64 * 1024


class Route(APIRoute):
    """A route that knows the caller before it waits for the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls."""
        handle = super().get_route_handler()
        needs_token = needs(self.dependant, authenticate)
        reads_body = self.body_field is not None

        async def run(request: Request) -> Response:
            if reads_body:
                if needs_token:
                    # Kept with the request: it counts once.
                    request.state.caller = await run_in_threadpool(
                        authenticate, request, hub_of(request), await bearer(request)
                    )
                body = await request.body()
                if len(body) > _LONG and await run_in_threadpool(holds_more, body, MAX_VALUES):
                    hint = "send it in several requests"
                    raise TooLarge("request.too_large", f"the body holds more than {MAX_VALUES} values", hint=hint)
            return await handle(request)

        return run


def room(prefix: str = "", *, tag: str) -> APIRouter:
    """Return a router for the endpoints of one noun."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=Route)


def needs(dependant: Dependant, call: Callable[..., Any]) -> bool:
    """Whether an endpoint depends on this function, or something does that it depends on."""
    return any(needed is call for needed in _calls(dependant))


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)
