"""A card's Markdown as HTML that does nothing: no script, no style, no image, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

#: Longer ones are cut: what takes seconds to parse is no card.
MAX_CHARACTERS = 64 * 1024
_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "a"),
    *("h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"),
}
#: Around a table.
_FRAME = '<div class="scroll" tabindex="0" role="region" aria-label="Table">'


@lru_cache(maxsize=128)
def to_html(text: str, base: str, title: str = "") -> Markup:
    """Return the HTML of a text; links without a host lead below `base`, a first heading that is `title` is left out.

    The page has the first heading of all, so that those of the text come one level lower.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("image")
    parser.normalizeLink = lambda link: _link(link, base)  # type: ignore[method-assign,assignment]
    tokens = parser.parse(text[:MAX_CHARACTERS])
    if title and [token.type for token in tokens[:3]][:1] == ["heading_open"] and tokens[1].content == title:
        tokens = tokens[3:]
    _lower(tokens)
    made = parser.renderer.render(tokens, parser.options, {})
    # The parser makes no other elements; that it is so does not rest on the parser alone.
    safe = nh3.clean(
        made,
        tags=_TAGS,
        attributes={"a": {"href", "title"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
    )
    # What may be wider than the page is scrolled, also with the keyboard. Of what was text, no `<` is left.
    safe = safe.replace("<pre>", '<pre tabindex="0">').replace("<table>", f"{_FRAME}<table>")
    return Markup(safe.replace("</table>", "</table></div>"))  # noqa: S704


def _link(link: str, base: str) -> str:
    try:
        parts = urlsplit(link)
    except ValueError:
        return ""
    if parts.scheme or parts.netloc:
        return link if parts.scheme in ("http", "https", "mailto") else ""
    if not parts.path:
        return ""
    steps = [step for step in unquote(parts.path).split("/") if step not in ("", ".", "..")]
    return f"{base}/{quote('/'.join(steps))}"


def _lower(tokens: Sequence[Token]) -> None:
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
