"""How a page is made: templates, the headers that keep it to itself, and the files that it loads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from functools import cache, partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from suture_contract.report.html import STYLE

#: No script and no style but the hub's own files, nothing from elsewhere, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MEDIA = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
#: As long as a browser may keep what never changes: another content has another address.
_FOR_GOOD = "public, max-age=31536000, immutable"
#: Sizes go up in steps of 1024.
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


@cache
def static_files() -> dict[str, bytes]:
    """Return the files that pages load, by name."""
    contents = {path.name: path.read_bytes() for path in (files(__package__) / "static").iterdir()}
    kept = {name: content for name, content in contents.items() if name.rpartition(".")[2] in _MEDIA}
    return {**kept, "report.css": STYLE.encode()}


def static_answer(name: str) -> Response | None:
    """Return a file that pages load; None where there is none of this name."""
    content = static_files().get(name)
    if content is None:
        return None
    headers = {"Cache-Control": _FOR_GOOD, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=_MEDIA[name.rpartition(".")[2]], headers=headers)


@cache
def _version(name: str) -> str:
    return hashlib.sha256(static_files()[name]).hexdigest()[:12]


def render(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """Return a page; every value that a template shows is escaped."""
    always = {
        "caller": getattr(request.state, "caller", None),
        "csrf": getattr(request.state, "csrf", ""),
        "path": request.url.path,
    }
    text = _environment().get_template(template).render(**always, **values)
    return HTMLResponse(text, status_code=status, headers=HEADERS)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(static=_static, url=url, with_query=with_query)
    environment.filters.update(
        when=_when,
        size=_size,
        short=_short,
        words=_words,
        duration=_duration,
        capitalize_first=_capitalized,
        quote_all=partial(quote, safe=""),
    )
    return environment


def _static(name: str) -> str:
    return f"/-/static/{name}?v={_version(name)}"


def url(*parts: str) -> str:
    """Return a path of these parts, each of which may hold anything; a last one with slashes keeps them."""
    return "/" + "/".join([*(quote(part, safe="") for part in parts[:-1]), quote(parts[-1], safe="/")])


def with_query(path: str, **query: Any) -> str:
    """Return a path with a query; what is None or empty is left out."""
    kept = {name: value for name, value in query.items() if value not in (None, "", [])}
    return f"{path}?{urlencode(kept, doseq=True)}" if kept else path


def _when(moment: datetime | str | None) -> Markup:
    if moment is None:
        return Markup("")
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    exact = moment.isoformat(timespec="seconds")
    return Markup('<time datetime="{}">{}</time>').format(exact, f"{moment:%Y-%m-%d %H:%M} UTC")


def _size(count: float | None) -> str:
    if count is None:
        return ""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:,.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _short(digits: str | None) -> str:
    return (digits or "")[:10]


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(value: Any) -> str:
    """Return a list with commas, an object's names and values, anything else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)
