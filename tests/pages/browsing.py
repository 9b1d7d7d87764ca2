"""A browser without a screen: what it keeps, what it sends, and what a page holds that it would act upon."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlsplit

from starlette.testclient import TestClient

HTML = {"Accept": "text/html"}
#: Pages on which one signed in as `north` begins to follow links.
FIRST = ("/", "/-/jobs/new", "/docs")


class Page(HTMLParser):
    """What a browser would act upon: elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def links(self):
        found = [one["href"] for tag, one in self.elements if "href" in one]
        return [link for link in found if link.startswith("/")]


class Form(HTMLParser):
    """A form of a page as a browser holds it: `fields` are what it sends as it stands."""

    def __init__(self, text: str, action: str) -> None:
        super().__init__()
        self.action, self.fields, self._inside, self._select = action, {}, False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = attributes.get("action") == self.action
        if not self._inside:
            return
        if tag == "select":
            self._select = attributes["name"]
        elif tag == "option" and ("selected" in attributes or self._select not in self.fields):
            self.fields[self._select] = attributes.get("value", "")
        elif tag == "input" and attributes.get("type") in ("hidden", "checkbox"):
            name, value = attributes["name"], attributes["value"]
            self.fields[name] = value if name not in self.fields else [*_several(self.fields[name]), value]

    def send(self, browser, **changes):
        return browser.post(self.action, **{**self.fields, **changes})


def _several(value):
    return value if isinstance(value, list) else [value]


class Browser:
    """A browser: it keeps its cookie, and sends what a form of the page holds."""

    def __init__(self, client: TestClient, token: str | None = None) -> None:
        self.client, self.cookie = client, ""
        if token is not None:
            answer = self.post("/-/sign-in", token=token, next="/")
            assert answer.status_code == 303, answer.text
            self.cookie = answer.headers["set-cookie"].partition(";")[0]

    def get(self, path, **headers):
        self.client.cookies.clear()
        answer = self.client.get(path, headers={**HTML, "Cookie": self.cookie, **headers}, follow_redirects=False)
        self.client.cookies.clear()
        return answer

    def page(self, path):
        answer = self.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {Page(answer.text).text}"
        return Page(answer.text)

    def post(self, path, headers=None, **fields):
        headers = {**HTML, "Cookie": self.cookie, **(headers or {})}
        answer = self.client.post(path, data=fields, headers=headers, follow_redirects=False)
        self.client.cookies.clear()
        return answer

    def csrf(self):
        return self.page("/-/account").all("input")[0]["value"]

    def send(self, path, **fields):
        return self.post(path, csrf=self.csrf(), **fields)


def crawl(browser, starts=FIRST, most=400):
    """All pages that are reached by links, with what each answered."""
    waiting, seen = list(starts), {}
    while waiting:
        path = waiting.pop(0).partition("#")[0]
        if path in seen or not path:
            continue
        assert len(seen) < most
        answer = seen[path] = browser.get(path)
        if answer.headers.get("content-type", "").startswith("text/html"):
            waiting += Page(answer.text).links
    return seen


def is_page(answer):
    return answer.headers.get("content-type", "").startswith("text/html")


def inert(page):
    """What in a page could run, load from elsewhere, or lead to a script."""
    wrong = []
    for tag, attributes in page.elements:
        if tag in ("style", "iframe", "object", "embed", "base", "template", "math"):
            wrong.append(tag)
        for name, value in attributes.items():
            scheme = urlsplit(value.strip()).scheme.lower()
            loads = name in ("src", "srcset", "data", "action", "formaction", "poster", "hx-get", "hx-post")
            elsewhere = loads and not (value.startswith("/") and not value.startswith("//"))
            runs = name in ("href", "xlink:href") and scheme not in ("", "http", "https", "mailto")
            styled = name == "href" and tag == "link" and not value.startswith("/-/static/")
            if name.startswith("on") or name == "style" or elsewhere or runs or styled:
                wrong.append(f"{tag} {name}={value}")
        if tag == "script" and not attributes.get("src", "").startswith(
            ("/-/static/htmx.min.js?", "/-/static/token.js?")
        ):
            wrong.append("script")
        if tag == "meta" and "http-equiv" in attributes:
            wrong.append("meta http-equiv")
    return wrong


def weight(browser, path):
    """What a page and all that it loads come to, in bytes."""
    answer = browser.get(path)
    page = Page(answer.text)
    loaded = {one["src"] for one in page.all("script") + page.all("img")} | {one["href"] for one in page.all("link")}
    return len(answer.content) + sum(len(browser.get(address).content) for address in loaded)
