"""How an endpoint is reached: first the token, then the body, of it no more than an honest one holds, and by turns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from functools import partial, wraps
from inspect import iscoroutinefunction, signature
from typing import Any
from weakref import WeakSet

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from suture_contract.structure import holds_more
from suture_service.auth import Caller, authenticate, bearer
from suture_service.errors import TooLarge
from suture_service.hub import Shared, hub_of
from suture_service.origin import caller_of

#: Of a body in JSON, names of fields counted: many more than the largest that Suture or the official client sends.
MAX_VALUES = 100_000
#: From so many bytes on they are counted beside the event loop.
_LONG = 64 * 1024
#: For whom an endpoint works, and who counts that.
_at_work: ContextVar[tuple[Shared, int | str]] = ContextVar("at_work")


#: Those that are counted: a router that is put into another makes routes anew.
_ENDPOINTS = WeakSet[Callable[..., Any]]()


class Route(APIRoute):
    """A route that knows the caller before it waits for the body, and works at a few requests of each at a time."""

    #: What says who sent a request.
    identify: Callable[..., Caller] = staticmethod(authenticate)

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, _counted(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler that FastAPI calls."""
        # What waits for bodies, for news or for who reads is asynchronous, and sees to its threads itself.
        in_thread = not iscoroutinefunction(self.endpoint)
        handle = super().get_route_handler()
        needs_caller = needs(self.dependant, self.identify)
        reads_body = self.body_field is not None

        async def run(request: Request) -> Response:
            hub, client = hub_of(request), request.client
            who: int | str = caller_of(client.host) if client is not None else ""
            if needs_caller and (reads_body or in_thread):
                # Kept with the request: it counts once.
                caller = await run_in_threadpool(self.identify, request, hub, await bearer(request))
                request.state.caller, who = caller, caller.party_id
            if reads_body:
                body = await request.body()
                if len(body) > _LONG and await hub.in_turn(who, partial(holds_more, body, MAX_VALUES)):
                    hint = "send it in several requests"
                    raise TooLarge("request.too_large", f"the body holds more than {MAX_VALUES} values", hint=hint)
            if not in_thread:
                return await handle(request)
            _at_work.set((hub.shared, who))
            async with hub.turns.of(who):
                return await handle(request)

        return run


def room(prefix: str = "", *, tag: str) -> APIRouter:
    """Return a router for the endpoints of one noun."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=Route)


def needs(dependant: Dependant, call: Callable[..., Any]) -> bool:
    """Whether an endpoint depends on this function, or something does that it depends on."""
    return any(needed is call for needed in _calls(dependant))


def _counted(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return an endpoint whose use of a processor is counted, where it runs in a thread of its own."""
    if iscoroutinefunction(endpoint) or endpoint in _ENDPOINTS:
        return endpoint

    @wraps(endpoint)
    def run(*values: Any, **named: Any) -> Any:
        shared, who = _at_work.get()
        with shared.counted(who):
            return endpoint(*values, **named)

    # FastAPI reads annotations where the function was made, which is here.
    run.__signature__ = signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    _ENDPOINTS.add(run)
    return run


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)
