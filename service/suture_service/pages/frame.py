"""How a page of the hub is made: the templates here, with what a site's console has too."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from suture_contract import pages
from suture_service.hub import HubContext
from suture_service.keys.schemas import FLAGGED
from suture_service.paging import Page

#: Pages and their files lie below `/-/`: no party is called so.
_ROOT = "/-/static/"


def static_answer(name: str) -> Response | None:
    """Return a file that pages load; None where there is none of this name."""
    answer = pages.static_answer(name, __package__)
    return None if answer is None else Response(answer[0], headers=answer[1])


def provider_of(hub: HubContext) -> str | None:
    """Return the name of the identity provider at which people sign in, if there is one."""
    return urlsplit(hub.settings.oidc_issuer).hostname


def render(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """Return a page; every value that a template shows is escaped."""
    always = {
        "caller": getattr(request.state, "caller", None),
        "csrf": getattr(request.state, "csrf", ""),
        "path": request.url.path,
    }
    text = _environment().get_template(template).render(**always, **values)
    return HTMLResponse(text, status_code=status, headers=pages.HEADERS)


def next_of(path: str, listed: Page[Any], /, **query: Any) -> str | None:
    """Return the address of the page of a list that comes after this one; None on the last one."""
    return pages.with_query(path, **query, cursor=listed.next) if listed.next else None


@cache
def _environment() -> Environment:
    environment = pages.environment(__package__, _ROOT)
    environment.globals.update(flagged=FLAGGED)
    return environment
