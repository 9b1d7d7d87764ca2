"""Signing in to the pages with a token or at an identity provider, and how sessions end."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.testclient import TestClient
from tests.identity_provider import Provider
from tests.pages.browsing import HTML, Browser, Page


def test_a_session_is_kept_from_scripts_and_other_sites(hub):
    answer = Browser(hub.client).post("/-/sign-in", token=hub.people["north"].token, next="/-/jobs?state=failed")
    assert (answer.status_code, answer.headers["location"]) == (303, "/-/jobs?state=failed")
    name, *flags = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= set(flags)
    assert "Secure" not in flags
    assert name.startswith("suture=")
    assert hub.people["north"].token not in answer.headers["set-cookie"]
    secure = TestClient(hub.app, base_url="https://hub.example", follow_redirects=False)
    answer = secure.post("/-/sign-in", data={"token": hub.people["north"].token}, headers=HTML)
    assert answer.headers["set-cookie"].startswith("__Host-suture=")
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("next", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb", ""])
def test_after_signing_in_one_stays_on_this_hub(hub, next):
    answer = Browser(hub.client).post("/-/sign-in", token=hub.people["north"].token, next=next)
    assert answer.headers["location"] == "/"


def test_who_is_not_signed_in_is_asked_for_a_token_in_place(hub):
    answer = Browser(hub.client).get("/north/digits/tree/main?cursor=x")
    assert answer.status_code == 401
    assert "www-authenticate" not in answer.headers
    assert {"type": "hidden", "name": "next", "value": "/north/digits/tree/main?cursor=x"} in Page(answer.text).all(
        "input"
    )
    for refused in ("text", "application/json"):
        answer = hub.client.get("/north/digits", headers={"Accept": refused})
        assert answer.json()["error"]["code"] == "auth.invalid"


def test_wrong_tokens_count_for_the_lock_out(start):
    world = start(wrong_tokens=3)
    browser = Browser(world.client)
    for _ in range(3):
        answer = browser.post("/-/sign-in", token="suture_party_none")
        assert answer.status_code == 401
        assert "suture_party_none" not in answer.text
        assert "set-cookie" not in answer.headers
    answer = browser.post("/-/sign-in", token=world.north.token)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert world.north.get("/v1/whoami").status_code == 429


def test_a_session_ends(start):
    world = start()
    first, second, third = (Browser(world.client, world.north.token) for _ in range(3))
    assert first.send("/-/sign-out").headers["location"] == "/-/sign-in"
    assert [browser.get("/").status_code for browser in (first, second)] == [401, 200]
    tokens = world.actor("north", "admin").get("/v1/parties/north/tokens").json()["items"]
    owner = world.actor("north", "admin")
    fourth = Browser(world.client, owner.token)
    world.later(11.9 * 3600)
    assert second.get("/").status_code == 200
    world.later(0.2 * 3600)
    assert second.get("/").status_code == 401
    begun = Browser(world.client, world.north.token)
    (own,) = (one["id"] for one in tokens if one["roles"] == ["publisher", "reader", "requester"])
    assert owner("DELETE", f"/v1/tokens/{own}").status_code == 204
    assert [browser.get("/").status_code for browser in (begun, third, fourth)] == [401, 401, 401]


def test_a_sites_token_signs_nobody_in(start):
    world = start()
    answer = Browser(world.client).post("/-/sign-in", token=world.sites["north"].token)
    assert answer.status_code == 403
    assert "token of a site" in answer.text


def test_only_who_was_sent_to_the_provider_comes_back(hub, start):
    with Provider() as provider:
        world = start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)
        person = {"name": "ada", "subject": "user-1", "roles": ["requester"]}
        assert world.actor("north", "admin").post("/v1/parties/north/people", person).status_code == 201
        browser = Browser(world.client)
        sent = browser.get("/-/sign-in/provider?next=//evil.example")
        query = parse_qs(urlsplit(sent.headers["location"]).query)
        assert sent.headers["location"].startswith(f"{provider.url}/authorize?")
        assert (query["response_type"], query["code_challenge_method"]) == (["code"], ["S256"])
        away = sent.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax", "Max-Age=600"} <= set(away.split("; "))
        back = httpx.get(sent.headers["location"]).headers["location"]
        path = back.removeprefix("http://testserver")
        # Another browser, another state, no code: nothing begins.
        kept = away.partition(";")[0]
        wrong = [
            ("", path),
            (kept, path.replace("state=", "state=x")),
            (kept, "/-/sign-in/back"),
            ("suture-away=x", path),
        ]
        for cookie, address in wrong:
            browser.cookie = cookie
            answer = browser.get(address)
            assert answer.status_code == 403, address
            assert "does not belong to a sign-in that was begun here" in answer.text
            assert "suture=" not in answer.headers.get("set-cookie", "")
        browser.cookie = kept
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["refresh"]) == (200, "0;url=/")
        cookies = answer.headers.get_list("set-cookie")
        assert cookies[0].startswith("suture=")
        assert "SameSite=strict" in cookies[0]
        assert cookies[1].startswith('suture-away=""; HttpOnly; Max-Age=0')
        # A code is taken once.
        assert browser.get(path).status_code == 403
        browser.cookie = cookies[0].partition(";")[0]
        assert "requester" in browser.page("/-/account").text
        (token,) = world.actor("north", "admin").get("/v1/parties/north/people").json()["items"]
        assert token["name"] == "ada"
        assert provider.asked.count("/.well-known/openid-configuration") == 1, "it is not asked what is known"
    # A hub without a provider.
    assert Browser(hub.client).get("/-/sign-in/provider").status_code == 404
