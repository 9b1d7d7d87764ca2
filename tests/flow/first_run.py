"""The way of somebody who opens the address that `suture up` prints, and never types a command."""

from __future__ import annotations

from typing import Any

from tests.browser import barriers, picture
from tests.until import until


def walk(context: Any, address: str) -> None:
    """Publish, ask, approve at the other site, read the report."""
    guide = context.new_page()
    guide.goto(address)
    guide.get_by_role("heading", name="Two hospitals on this machine").wait_for()
    assert "#" not in guide.url
    seen(guide, "first-steps")
    for repo in ("north/digits", "south/digits"):
        guide.get_by_role("button", name=f"Publish {repo}").click()
        guide.get_by_role("listitem").filter(has_text=repo).get_by_text("published").wait_for()

    # Whoever is curious signs in on the way.
    model = beside(context, guide, "Look at it")
    assert "suture_party_" not in model.url
    model.get_by_role("button", name="Sign in").click()
    model.get_by_role("heading", name="north/digits").wait_for()
    model.evaluate("document.querySelector('img.network').loading = 'eager'")
    until(lambda: model.evaluate("document.querySelector('img.network').complete"))
    seen(model, "model")

    hub = beside(context, guide, "Sign in as north")
    assert "suture_party_" not in hub.url
    hub.get_by_role("link", name="Go on as north").click()
    hub.get_by_text("These can be stitched").wait_for()
    hub.get_by_label("Name of the result").fill("digits-stitched")
    seen(hub, "ask")
    hub.get_by_role("button", name="Ask").click()
    hub.get_by_text("a person there has to approve it").wait_for()
    seen(hub, "waits")

    guide.bring_to_front()
    guide.reload()
    guide.get_by_text("South has something to decide now").wait_for()
    console = beside(context, guide, "Console of south")
    console.get_by_role("link", name="north asks to evaluate with digits").click()
    console.get_by_label("Why").fill("agreed with north")
    seen(console, "approve")
    console.get_by_role("button", name="Approve").click()
    console.get_by_role("heading", name="Nothing waits for you").wait_for()

    # The job's page comes to its end by itself.
    hub.get_by_role("link", name="Read the report").click()
    hub.get_by_role("heading", name="Chosen for north").wait_for()
    seen(hub, "report")
    guide.reload()
    report = beside(context, guide, "Read the report")
    report.get_by_role("heading", name="Every model on everyone's data").wait_for()
    console.get_by_role("link", name="What left").click()
    assert "result" in console.inner_text("table")


def beside(context: Any, page: Any, link: str) -> Any:
    """Return the page that a link opens in another tab."""
    with context.expect_page() as opening:
        page.get_by_role("link", name=link, exact=True).first.click()
    opening.value.wait_for_load_state()
    return opening.value


def seen(page: Any, name: str) -> None:
    picture(page, f"first-run-{name}")
    assert barriers(page) == []
