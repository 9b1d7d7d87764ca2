"""Pages as a browser gets them: links that lead somewhere, what they load, weigh and cost."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from tests.pages.browsing import Browser, Page, crawl, inert, is_page, weight
from tests.service.test_statements import statements

from suture_contract.pages import POLICY, static_files
from suture_service.pages.jobs import MAX_ASKED
from suture_service.parties import service as parties
from suture_service.sites.service import add_site


@pytest.mark.parametrize("who", ["north", "south", "operator"])
def test_every_link_leads_to_a_page(hub, who):
    seen = crawl(Browser(hub.client, hub.people[who].token))
    missing = {path: answer.status_code for path, answer in seen.items() if answer.status_code != 200}
    # Of gated models the files are refused, in words.
    assert {path: status for path, status in missing.items() if status != 403 or "/blob/" not in path} == {}
    assert sum(map(is_page, seen.values())) > 20
    for path, answer in seen.items():
        if is_page(answer):
            page = Page(answer.text)
            assert len(page.all("h1")) + len(re.findall("/live$", path)) == 1, path
            ids = [one["id"] for _, one in page.elements if "id" in one]
            assert len(ids) == len(set(ids)), path


def test_every_page_keeps_to_itself(hub, north):
    for path, answer in {**crawl(north), "/nobody/x": north.get("/nobody/x"), "/%00": north.get("/%00")}.items():
        if not is_page(answer):
            continue
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert inert(Page(answer.text)) == [], path


def test_the_first_pages_are_small(hub, north):
    paths = ("/-/sign-in", "/", "/north/digits", f"/-/jobs/{hub.at_work}", f"/-/jobs/{hub.done}/report")
    assert {path: size for path in paths if (size := weight(north, path)) >= 100_000} == {}


def test_the_form_for_a_job_is_small_with_as_many_parties_as_it_names(start):
    world = start()
    with world.hub.database.writing() as session:
        for number in range(MAX_ASKED):
            party = parties.add_party(session, f"party-{number:03}", world.now())
            add_site(session, party, "site", world.now())
    browser = Browser(world.client, world.north.token)
    page = browser.page("/-/jobs/new")
    assert page.text.count("party-") > 2 * MAX_ASKED - 20
    assert len(page.all("option")) > MAX_ASKED - 10
    asked = {"models": "north/a\nnorth/b", "dataset": "digits", "contribute_from": ["party-001", "party-002"]}
    again = browser.send("/-/jobs/new", **asked)
    assert [one for one in Page(again.text).all("option") if "selected" in one] == [{"selected": ""}] * 2
    assert weight(browser, "/-/jobs/new") < 100_000


def test_what_pages_load_is_named_by_its_content(hub):
    assert {"site.css", "report.css", "htmx.min.js", "token.js", "icon.svg"} == set(
        static_files("suture_service.pages")
    )
    answer = hub.client.get("/-/static/site.css")
    assert "immutable" in answer.headers["cache-control"]
    assert hub.client.get("/-/static/htmx.LICENSE").status_code == 404
    assert "http" not in static_files("suture_service.pages")["site.css"].decode()


def test_the_description_of_the_api_is_for_all_and_signs_nobody_out(hub, north):
    for browser, shown in ((Browser(hub.client), "Sign in"), (north, "Sign out")):
        page = browser.page("/docs")
        assert shown in page.text
        assert "`" not in page.text
    assert Browser(hub.client).get("/docs", Cookie="suture=ended").status_code == 200


def test_a_page_asks_the_database_nothing_twice(hub, north):
    for path in ("/north/both", "/south/digits", f"/-/jobs/{hub.done}/report"):
        with statements(SimpleNamespace(hub=hub.context)) as sent:
            north.page(path)
        asked = [statement for statement, _ in sent]
        assert [statement for statement in set(asked) if asked.count(statement) > 1] == [], path
        assert len(asked) <= 16, path
