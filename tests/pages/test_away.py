"""Pages when the store or the database is away, or a report makes no sense: they say what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.fault.postgres import killable
from tests.pages.browsing import Browser
from tests.service.conftest import hub_app

from suture_contract.pages import POLICY
from suture_service import operate
from suture_service.settings import Settings


def test_a_model_is_shown_without_its_store(start):
    world = start()
    card = b"# north/digits\n\nThe words of the card.\n"
    assert world.north.publish("north/digits", card=card).status_code == 201
    browser = Browser(world.client, world.north.token)
    assert "The words of the card" in browser.page("/north/digits").text
    shutil.rmtree(Path(world.settings.store) / "sha256")
    page = browser.page("/north/digits")
    assert "cannot be shown now" in page.text
    assert "Use it" in page.text
    assert "cannot be shown now" in browser.page("/north/digits/blob/main/suture.json").text
    assert browser.get("/north/digits/download/main/suture.json").status_code == 503


def test_a_database_that_does_not_answer_is_said(start, monkeypatch):
    from sqlalchemy.exc import OperationalError

    world = start()
    browser = Browser(world.client, world.north.token)

    def broken(*_args, **_options):
        raise OperationalError("SELECT 'patient 7'", {}, Exception("host=db password=x"))

    monkeypatch.setattr("suture_service.sessions.service.find_token", broken)
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "does not work right now" in answer.text
    assert "database did not answer" in answer.text
    assert "password" not in answer.text
    monkeypatch.setattr("suture_service.sessions.service.find_token", lambda *_: {}["patient 7"])
    answer = browser.get("/")
    assert answer.status_code == 500
    assert "patient 7" not in answer.text
    assert answer.headers["x-request-id"]


@pytest.mark.server
def test_pages_say_that_a_killed_database_is_away_and_go_on_when_it_is_back(tmp_path):
    with killable() as server:
        settings = Settings(database_url=server.empty(), store=str(tmp_path / "store"), sweep_seconds=3600)
        operate.migrate(settings)
        operate.add_party(settings, "north")
        token = operate.create_token(settings, "north", ["requester"])[1]
        with TestClient(hub_app(settings), follow_redirects=False) as client:
            browser = Browser(client, token)
            server.kill()
            for path in ("/", "/north", "/-/jobs", "/-/jobs/new", "/-/parties", "/-/account", "/docs"):
                answer = browser.get(path)
                assert answer.status_code == 503, path
                assert "does not work right now" in answer.text
                assert "database did not answer" in answer.text
                assert answer.headers["content-security-policy"] == POLICY
            assert "Token of your party" in browser.page("/-/sign-in").text
            assert browser.post("/-/sign-in", token=token).status_code == 503
            server.start()
            assert "There is no model yet" in browser.page("/").text


def test_a_report_that_makes_no_sense_is_refused_in_words(start):
    world = start()
    job = world.ask().json()
    world.fit()
    for party in ("north", "south"):
        world.evaluate(party)
    world.compose()
    answer = Browser(world.client, world.north.token).get(f"/-/jobs/{job['id']}/report")
    assert answer.status_code == 422
    assert "cannot be drawn" in answer.text
    browser = Browser(world.client, world.north.token)
    # Without its store, the hub says so in place of each.
    shutil.rmtree(Path(world.settings.store) / "sha256")
    for path in (f"/-/jobs/{job['id']}/report", "/north/digits/network/main"):
        answer = browser.get(path)
        assert answer.status_code == 503, path
        assert "does not work right now" in answer.text
    shown = browser.page(f"/-/compare?of={job['id']}").text
    assert "store" in shown
    assert "Measured on" not in shown
