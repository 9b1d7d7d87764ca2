"""What the pages of a hub and of a site's console share: look, templates, and what keeps them closed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache, partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from suture_contract.report.html import STYLE

#: No script and no style but a server's own files, nothing from elsewhere, in nobody's frame.
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
#: Digests, in hexadecimal.
_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{32,}\b")
#: Sizes go up in steps of 1024.
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def environment(package: str, root: str = "/static/", beside: str | None = None) -> Environment:
    """Return the templates in a package's folder `templates`; every value that they show is escaped.

    `root` is where the files lie that they load. Templates that are not there are those of the package `beside` it,
    whose files all of them load.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, beside or package))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(static=partial(_address, beside or package, root), url=url, with_query=with_query)
    made.filters.update(
        when=_when,
        size=_size,
        short=_short,
        words=_words,
        brief=_brief,
        duration=_duration,
        capitalize_first=_capitalized,
        coded=_coded,
        quote_all=partial(quote, safe=""),
    )
    return made


@cache
def static_files(package: str) -> dict[str, bytes]:
    """Return the files that a package's pages load, by name: those here, and those in its folder `static`."""
    folders = [files(owner) / "static" for owner in (__package__, package)]
    contents = {path.name: path.read_bytes() for folder in folders for path in folder.iterdir()}
    kept = {name: content for name, content in contents.items() if name.rpartition(".")[2] in _MEDIA}
    return {**kept, "report.css": STYLE.encode()}


def static_answer(name: str, package: str) -> tuple[bytes, dict[str, str]] | None:
    """Return a file that pages load with the headers of its answer; None where there is none of this name."""
    content = static_files(package).get(name)
    if content is None:
        return None
    media = _MEDIA[name.rpartition(".")[2]]
    return content, {"Content-Type": media, "Cache-Control": _FOR_GOOD, "X-Content-Type-Options": "nosniff"}


@cache
def _address(package: str, root: str, name: str) -> str:
    return f"{root}{name}?v={hashlib.sha256(static_files(package)[name]).hexdigest()[:12]}"


def url(*parts: str) -> str:
    """Return a path of these parts, each of which may hold anything; a last one with slashes keeps them."""
    return "/" + "/".join([*(quote(part, safe="") for part in parts[:-1]), quote(parts[-1], safe="/")])


def with_query(path: str, /, **query: Any) -> str:
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


def _brief(text: str) -> str:
    """Return a text with only the beginning of each digest in it."""
    return _DIGEST.sub(r"\1…", text)


def _coded(text: str) -> Markup:
    """Return a text whose parts between backticks are code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in parts)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(value: Any) -> str:
    """Return a list with commas, an object's names and values with semicolons, anything else as it is."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return str(value)
