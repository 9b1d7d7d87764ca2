"""A real Chromium, the system's own, for tests of pages: what it loads from elsewhere, or refuses, fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

#: Set where these tests must run (`.ci/run`): a machine without Chromium fails there, and skips elsewhere.
REQUIRED = "SUTURE_BROWSER"
#: A folder to which tests write what they saw, for people to look at.
SCREENSHOTS = os.environ.get("SUTURE_SCREENSHOTS")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """Return where Chromium is; skips the test where there is none, or fails it where it is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "there is no Chromium on this machine: apt-get install chromium"
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(reason)
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """Start a browser for all tests of a file."""
    chromium = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, address: str, *, beside: str = "", **options: Any) -> Iterator[Any]:
    """Open a page whose paths are those of the server at `address`.

    At the end nothing may have come from elsewhere but another server `beside` it, and nothing may have been refused by
    the content security policy.
    """
    context = browser.new_context(base_url=address, **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong: list[str] = []
    own = {urlsplit(address).netloc, urlsplit(beside).netloc}
    context.on("request", lambda sent: urlsplit(sent.url).netloc in own or wrong.append(f"loaded {sent.url}"))
    page.on("console", lambda said: "Content Security" not in said.text or wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(f"script failed: {error}"))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        yield page
    finally:
        context.close()
    assert wrong == []


def picture(page: Any, name: str) -> None:
    """Keep what the page looks like, if somebody asked for it."""
    if SCREENSHOTS:
        folder = Path(SCREENSHOTS)
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=True)


_LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
_VIOLATIONS = """(options) => axe.run(options).then((results) =>
  results.violations.flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.html.slice(0, 120)}`)))"""


def barriers(page: Any, *, colours: bool = False) -> list[str]:
    """Return what keeps somebody from using a page, as far as axe sees it: WCAG 2.2, levels A and AA.

    With `colours`, whether its texts stand out is looked at alone: the rest does not change with the colours.
    """
    from axe_playwright_python.base import AXE_SCRIPT

    only = {"type": "rule", "values": ["color-contrast"]} if colours else {"type": "tag", "values": _LEVELS}
    if not page.evaluate("'axe' in window"):  # once for a page, however often it is looked at
        page.evaluate(AXE_SCRIPT)
    violations: list[str] = page.evaluate(_VIOLATIONS, {"runOnly": only, "resultTypes": ["violations"]})
    return violations
