"""What others write is text on every page: cards, descriptions, labels, file names, commits, reasons."""

from __future__ import annotations

import base64
import json

import pytest
from tests.pages.browsing import HTML, Browser, Page, crawl, inert, is_page
from tests.service.conftest import metadata_of

from suture_service.pages.markdown import MAX_CHARACTERS, to_html

#: What a browser would act upon if a page did not show it as text.
TEXTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe src=javascript:alert(1)>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "{{ 7 * 7 }}{% include 'page.html.jinja' %}${7*7}",
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "<style>*{display:none}</style>",
    "<!--<base href=//evil.example/>-->",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    '" onmouseover="alert(1)" x="',
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<form action=//evil.example><button>",
    "\u202egnp.exe <b>",
    "<math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
)
MARKDOWN = (
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](&#106;avascript:alert(1))",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    "[a](vbscript:x)",
    "[a](//evil.example/x)",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    '![x](x "onerror=alert(1)")',
    '[a](x "\\" onclick=alert(1) ")',
    "[a]: javascript:alert(1)\n\n[a]",
    "`` <script>alert(1)</script> ``",
    "```<script>\n</script><script>alert(1)</script>\n```",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "# <svg onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "[a](../../-/sign-out)",
)


@pytest.fixture(scope="module")
def hostile(hub):
    """The filled hub, with hostile texts wherever somebody else's text can come from."""
    world_client, south = hub.client, hub.people["south"]
    legible = [text for text in TEXTS if text.isprintable()]
    card, page = ("\n\n".join([*texts, *MARKDOWN]).encode() for texts in (legible, TEXTS))
    content = metadata_of(
        len(legible),
        labels=legible,
        description="\n".join(TEXTS[:8]),
        intended_use=TEXTS[0],
        limitations=TEXTS[1],
        authors=[TEXTS[2]],
        training_data={"description": TEXTS[3], "n": 5},
        citation=TEXTS[4],
        references=[TEXTS[7]],
    )
    from tests.service.conftest import model_bytes

    answer = south.publish("south/hostile", model=model_bytes(len(legible)), metadata=content, card=card)
    assert answer.status_code == 201, answer.text
    lines = [{"key": "header", "value": {"summary": "; ".join(legible)[:500], "description": "\n".join(legible)}}]
    for number, text in enumerate(legible):
        path = "/".join(part.replace("\\", "_") or "_" for part in text.split("/"))
        suffix, inside = (("", text.encode()), (".md", page), (".svg", b"<svg onload=alert(1)>"))[number % 3]
        value = {"path": path + suffix, "content": base64.b64encode(inside).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    answer = south("POST", "/api/models/south/hostile/commit/main", content="\n".join(map(json.dumps, lines)).encode())
    assert answer.status_code == 200, answer.text
    assert south("POST", "/api/models/south/hostile/tag/main", json={"tag": "<svg/onload=alert(1)>"}).status_code == 200
    assert south("PATCH", "/v1/models/south/hostile", json={"gated": "auto"}).status_code == 200
    asked = hub.people["north"].post("/v1/models/south/hostile/access", {"reason": TEXTS[1]})
    assert asked.status_code == 201, asked.text
    withdrawn = south.post("/v1/models/south/hostile/revisions/latest/withdraw", {"reason": TEXTS[0]})
    assert withdrawn.status_code == 200, withdrawn.text
    assert world_client is hub.client
    return hub


def test_hostile_texts_are_inert_on_every_page(hostile):
    browser = Browser(hostile.client, hostile.people["south"].token)
    seen = crawl(browser, ["/", "/-/access", "/-/audit", "/south/hostile", "/south/hostile/tree/main"])
    # The card's own links lead to files that are not there.
    seen = {path: answer for path, answer in seen.items() if not path.endswith(("/x", "/-/sign-out"))}
    shown = ""
    for path, answer in seen.items():
        assert answer.status_code == 200 or (answer.status_code == 403 and "/blob/" in path), (path, answer.text)
        if not is_page(answer):
            continue
        page = Page(answer.text)
        assert inert(page) == [], path
        pictures = {one["src"].partition("?")[0] for one in page.all("img")}
        assert pictures <= {"/-/static/icon.svg", f"{path}/network/main"}, path
        assert not [value for tag, one in page.elements for value in one.values() if value == "49"]
        shown += page.text
    # Shown as what they are, not dropped: who reads a page sees what somebody tried.
    for text in TEXTS[:4]:
        assert text in shown, text
    assert "{{ 7 * 7 }}" in shown
    assert "49$" not in shown
    assert len(seen) > 60


def test_files_are_given_as_downloads_alone(hostile):
    browser = Browser(hostile.client, hostile.people["north"].token)
    tree = browser.page("/south/hostile/tree/main")
    blobs = [link for link in tree.links if "/blob/" in link and link.endswith(".svg")]
    assert blobs
    answer = browser.get(blobs[0].replace("/blob/", "/download/"))
    assert answer.content == b"<svg onload=alert(1)>"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_form_sends_comes_back_as_text(hub, text):
    browser = Browser(hub.client, hub.people["north"].token)
    fields = {"models": text, "dataset": text, "publish_as": text, "evaluate_at": [text], "model": [text]}
    for answer in (
        browser.send("/-/jobs/new", **fields),
        browser.send("/-/jobs/check", **fields),
        browser.send("/-/jobs/models", search=text, **fields),
        browser.send("/-/admin/north/tokens", name=text, roles=[text]),
        browser.post("/-/sign-in", token=text, next=text),
        browser.client.get("/", params={"search": text, "label": text}, headers={**HTML, "Cookie": browser.cookie}),
        browser.client.get("/-/audit", params={"action": text[:60]}, headers={**HTML, "Cookie": browser.cookie}),
        browser.client.get(f"/{text}", headers={**HTML, "Cookie": browser.cookie}),
    ):
        assert answer.status_code < 500
        assert inert(Page(answer.text)) == []
        assert len(Page(answer.text).all("script")) <= 1


@pytest.mark.parametrize("text", [*TEXTS, *MARKDOWN])
def test_markdown_makes_nothing_but_words(text):
    page = Page(str(to_html(text, "/south/hostile/blob/main")))
    assert inert(page) == []
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "svg", "script", "style", "form", "details", "iframe"})
    for link in page.all("a"):
        assert link.get("href", "").startswith(("/south/hostile/blob/main/", "https://")) or not link.get("href")
        assert link["rel"] == "nofollow noopener noreferrer"


def test_markdown_shows_what_a_card_says():
    text = "# a/b\n\n## Use\n\nSee [it](docs/x.md), **well**.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n- x\n"
    made = str(to_html(text, "/a/b/blob/main", "a/b"))
    assert made.startswith("<h3>Use</h3>")
    assert 'href="/a/b/blob/main/docs/x.md"' in made
    for part in ("<strong>well</strong>", "<td>2</td>", "<li>x</li>"):
        assert part in made
    assert "<h1>" not in str(to_html("# a/b\n", "/a/b", "c/d"))
    assert len(str(to_html("a" * (2 * MAX_CHARACTERS), "/"))) < MAX_CHARACTERS + 100
