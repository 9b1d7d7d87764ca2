"""Pages on the loopback address for whoever has their link: the application, its server, and the site's console."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from suture_contract.errors import SutureError
from suture_contract.pages import HEADERS, environment, static_answer
from suture_worker.config import load_site
from suture_worker.console import views
from suture_worker.console.answers import Answer, Picture, Rendered
from suture_worker.console.session import LASTS, Door, form_word

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
#: No form holds more.
_MAX_FORM = 64 * 1024
Subject = TypeVar("Subject")
#: What pages are about, the parts of the path, and what the query or the form says.
View: TypeAlias = Callable[[Subject, Mapping[str, Any], Mapping[str, str]], Answer]


@dataclass(frozen=True)
class Pages(Generic[Subject]):
    """What there is to see and to do: `package` has the templates, those here are used beside them."""

    package: str
    name: str
    note: str
    menu: tuple[tuple[str, str], ...]
    shown: Mapping[str, View[Subject]]
    acts: Mapping[str, View[Subject]]


CONSOLE = Pages(
    package=__package__,
    name="Suture site",
    note="This console is on this machine alone. What is decided here is written down with your name at this machine, "
    "as the commands do it.",
    menu=(
        ("Inbox and outbox", "/"),
        ("What left", "/egress"),
        ("Ledger", "/ledger"),
        ("Datasets", "/datasets"),
        ("Health", "/health"),
    ),
    shown=views.PAGES,
    acts=views.ACTS,
)


class Console(Generic[Subject]):
    """Answers requests for pages; `load` returns what they are about, anew for each, as `load_site` does."""

    def __init__(self, pages: Pages[Subject], load: Callable[[], Subject], door: Door, port: int) -> None:
        self._load, self._door, self._port = load, door, port
        self._templates = environment(pages.package, beside=__package__)
        self._templates.globals.update(brand=pages.name, menu=pages.menu, note=pages.note)
        #: Nobody else's name leads here: a page elsewhere cannot have its own name resolved to this machine.
        self._hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.app = Starlette(
            routes=[
                Route("/static/{name}", self._static),
                Route("/enter", self._enter, methods=["POST"]),
                Route("/leave", self._leave, methods=["POST"]),
                *(Route(path, partial(self._show, view)) for path, view in pages.shown.items()),
                *(Route(path, partial(self._do, act), methods=["POST"]) for path, act in pages.acts.items()),
            ]
        )

    @property
    def _cookie(self) -> str:
        # Cookies know no ports: two consoles on one machine must not take each other's.
        return f"suture-site-{self._port}"

    async def _static(self, request: Request) -> Response:
        answer = static_answer(request.path_params["name"], __package__)
        return Response(status_code=404) if answer is None else Response(answer[0], headers=answer[1])

    async def _enter(self, request: Request) -> Response:
        fields = await self._form(request)
        session = None if fields is None else self._door.enter(fields.get("secret", ""))
        if session is None:
            return self._page("enter.html.jinja", 403, wrong=True)
        answer = RedirectResponse("/", status_code=303, headers=HEADERS)
        answer.set_cookie(self._cookie, session, max_age=int(LASTS), httponly=True, samesite="strict")
        return answer

    async def _leave(self, request: Request) -> Response:
        session = self._session(request)
        if session is not None and await self._form(request, session) is not None:
            self._door.leave(session)
        return RedirectResponse("/", status_code=303, headers=HEADERS)

    async def _show(self, view: View[Subject], request: Request) -> Response:
        session = self._session(request)
        if session is None:
            return self._page("enter.html.jinja", 401, wrong=False)
        return await run_in_threadpool(self._answer, view, request, session, dict(request.query_params))

    async def _do(self, act: View[Subject], request: Request) -> Response:
        session = self._session(request)
        fields = None if session is None else await self._form(request, session)
        if session is None or fields is None:
            return self._page("enter.html.jinja", 403, wrong=False)
        return await run_in_threadpool(self._answer, act, request, session, fields)

    def _answer(self, view: View[Subject], request: Request, session: str, fields: Mapping[str, str]) -> Response:
        csrf = form_word(session)
        try:
            result: Answer = view(self._load(), request.path_params, fields)
        except SutureError as error:
            return self._page("problem.html.jinja", 422, problem=error, csrf=csrf)
        if isinstance(result, str):
            return RedirectResponse(result, status_code=303, headers=HEADERS)
        if isinstance(result, Rendered):
            return self._page(result.template, csrf=csrf, **result.values)
        if isinstance(result, Picture):
            return Response(result.content, media_type="image/png", headers=HEADERS)
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{result.name}"'}
        return Response(result.content, media_type="application/octet-stream", headers=headers)

    def _session(self, request: Request) -> str | None:
        session = request.cookies.get(self._cookie)
        here = request.headers.get("host") in self._hosts
        return session if here and session is not None and self._door.knows(session) else None

    async def _form(self, request: Request, session: str | None = None) -> dict[str, str] | None:
        """Return what a form of this console sends; None for one that comes from elsewhere."""
        came_from = request.headers.get("origin")
        own = request.headers.get("host") in self._hosts and (
            came_from is None or urlsplit(came_from).netloc in self._hosts
        )
        if not own or int(request.headers.get("content-length") or _MAX_FORM + 1) > _MAX_FORM:
            return None
        fields = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), max_num_fields=100))
        return fields if session is None or fields.get("csrf") == form_word(session) else None

    def _page(self, template: str, status: int = 200, /, **values: Any) -> Response:
        text = self._templates.get_template(template).render(**{"csrf": "", **values})
        return HTMLResponse(text, status_code=status, headers=HEADERS)


@contextmanager
def served(
    pages: Pages[Subject], load: Callable[[], Subject], state: Path, port: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Hold a port and a link in `state`; yield the link and what serves the pages until SIGTERM or SIGINT.

    Raises `SutureError` `console.port`.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError:
            hint = "another console may run; say another port, or 0 for any free one: --port 0"
            raise SutureError("console.port", "this port is taken", where=str(port), hint=hint) from None
        bound = listening.getsockname()[1]
        door = Door(state, f"http://{HOST}:{bound}")
        app = Console(pages, load, door, bound).app
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
        )
        try:
            yield door.link, lambda: server.run(sockets=[listening])
        finally:
            door.close()


def run_console(site: Path, port: int, on_start: Callable[[str], None]) -> None:
    """Serve the console until SIGTERM or SIGINT; `on_start` is given the link. Raises `SutureError` `console.port`."""
    state = load_site(site).state
    with served(CONSOLE, partial(load_site, site), state, port) as (link, serve):
        on_start(link)
        serve()
