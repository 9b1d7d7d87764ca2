"""Pages as a browser gets them: signing in, forms, links that lead somewhere, what is away, what strangers see."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient
from tests.identity_provider import Provider
from tests.service.conftest import World

from suture_contract.pages import POLICY, static_files

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


@pytest.fixture(scope="module")
def north(hub):
    return Browser(hub.client, hub.people["north"].token)


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


def test_the_first_pages_are_small(hub, north):
    for path in ("/-/sign-in", "/", "/north/digits", f"/-/jobs/{hub.at_work}"):
        answer = north.get(path)
        page = Page(answer.text)
        loaded = {one["src"] for one in page.all("script") + page.all("img")} | {
            one["href"] for one in page.all("link")
        }
        weight = len(answer.content) + sum(len(north.get(address).content) for address in loaded)
        assert weight < 100_000, (path, weight)


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


# Signing in


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
    # A hub without a provider.
    assert Browser(hub.client).get("/-/sign-in/provider").status_code == 404


# Forms


def test_no_form_works_without_its_session(hub, north):
    posts = {str(route.path) for route in iter_route_contexts(hub.app.routes) if "POST" in (route.methods or ())}
    forms = sorted(path for path in posts if path.startswith("/-/") and path != "/-/sign-in")
    assert len(forms) >= 15
    for path in forms:
        target = re.sub(r"\{[^}]+\}", "north", path)
        for fields, headers in (
            ({}, {}),
            ({"csrf": "0" * 64}, {}),
            ({"csrf": north.csrf()}, {"Origin": "https://evil.example"}),
            ({"csrf": north.csrf()}, {"Origin": "null"}),
        ):
            answer = north.post(target, headers, **fields)
            assert answer.status_code == 403, (path, fields, answer.status_code)
            assert "not sent by a page of your session" in Page(answer.text).text
    answer = Browser(hub.client).post("/-/sign-in", {"Origin": "https://evil.example"}, token=hub.people["north"].token)
    assert answer.status_code == 403


def test_a_job_is_asked_for_followed_and_ended(start):
    world = start()
    world.ask()
    browser = Browser(world.client, world.north.token)
    fields = {"models": "north/digits\nsouth/digits", "dataset": "digits", "evaluate_at": ["south"], "days": "2"}
    answer = browser.send("/-/jobs/check", **fields)
    assert "These can be stitched" in answer.text
    assert "Not yet" in browser.send("/-/jobs/check", **{**fields, "evaluate_at": ["nobody"]}).text
    refused = browser.send("/-/jobs/new", **{**fields, "models": "north/digits\nsouth/digit"})
    assert refused.status_code == 404
    assert "did you mean" in refused.text.lower()
    assert "south/digit</textarea>" in refused.text
    made = browser.send("/-/jobs/new", **fields)
    assert made.status_code == 303
    page = browser.page(made.headers["location"])
    assert "north: fit stitches" in page.text
    (live,) = (one for tag, one in page.elements if one.get("id") == "live")
    assert live["hx-get"] == made.headers["location"] + "/live"
    job = world.north.get(f"/v1{made.headers['location'].removeprefix('/-')}").json()
    assert (job["evaluate_at"], job["state"]) == (["south"], "queued")
    assert browser.send(made.headers["location"] + "/cancel").status_code == 303
    after = browser.page(made.headers["location"])
    assert "cancelled" in after.text
    assert not [one for tag, one in after.elements if "hx-get" in one]


def test_a_job_page_asks_less_often_the_longer_nothing_happens(start):
    world = start(lease_seconds=10**6)
    job = world.ask().json()
    browser = Browser(world.client, world.north.token)

    def pause():
        (live,) = (one for _, one in browser.page(f"/-/jobs/{job['id']}").elements if "hx-trigger" in one)
        return int(re.search(r"delay:(\d+)s", live["hx-trigger"])[1])

    found = [pause()]
    for seconds in (200, 1000, 36_000):
        world.later(seconds)
        found.append(pause())
    assert found == [2, 10, 60, 60]


def test_a_job_that_waits_says_for_what(start):
    world = start()
    job = world.ask().json()
    browser = Browser(world.client, world.north.token)
    world.later(3600)
    assert "its site is away" in browser.page(f"/-/jobs/{job['id']}").text
    task = world.sites["north"].lease()
    assert world.sites["north"].tell(task, "wait", waits_for="approval").status_code == 200
    assert "a person there has to approve it" in browser.page(f"/-/jobs/{job['id']}").text


def test_tokens_are_made_shown_once_and_revoked(start):
    world = start()
    browser = Browser(world.client, world.actor("north", "admin").token)
    answer = browser.send("/-/admin/north/tokens", name="laptop", roles=["publisher"], days="3")
    secret = re.search(r"suture_party_[\w-]{43}", answer.text)[0]
    assert world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {secret}"}).json()["roles"] == [
        "publisher",
        "reader",
    ]
    page = browser.get("/-/admin/north").text
    assert secret not in page
    made = re.search(r"laptop.*?(tok_[0-9a-f]{16})", page, re.DOTALL)[1]
    assert browser.send(f"/-/admin/north/tokens/{made}/revoke").status_code == 303
    assert world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    wrong = browser.send("/-/admin/north/tokens", name="lap top", roles=["publisher"])
    assert (wrong.status_code, "a name has 1 to 96" in wrong.text.lower()) == (422, True)
    assert browser.send("/-/admin/south/tokens", name="x").status_code == 403
    assert "shown this once" in browser.send("/-/admin/north/sites", name="second").text


def test_a_steward_decides_on_the_page(start):
    world = start()
    assert world.north.publish("north/digits").status_code == 201
    assert world.north("PATCH", "/v1/models/north/digits", json={"gated": "manual"}).status_code == 200
    asker = Browser(world.client, world.south.token)
    assert "given on request" in asker.page("/north/digits").text
    assert asker.get("/north/digits/blob/main/model.safetensors").status_code == 403
    assert asker.get("/north/digits/blob/main/suture.json").status_code == 200
    assert asker.send("/-/request-access/north/digits", reason="to stitch").status_code == 303
    assert "has not answered yet" in asker.page("/north/digits").text
    steward = Browser(world.client, world.actor("north", "steward").token)
    assert "to stitch" in steward.page("/-/access?state=pending").text
    assert "south" in steward.page("/").text
    assert steward.send("/-/access/north/digits/south", state="accepted", days="5").status_code == 303
    assert asker.get("/north/digits/blob/main/model.safetensors").status_code == 200
    assert asker.get("/north/digits/download/main/model.safetensors").content == world.model()


def test_withdrawn_ancestors_are_seen_at_once(start):
    world = start()
    job = world.ask(publish_as="both").json()
    world.fit()
    for party in ("north", "south"):
        world.evaluate(party)
    world.compose()
    reason = {"reason": "trained on wrong labels"}
    assert world.south.post("/v1/models/south/digits/revisions/latest/withdraw", reason).status_code == 200
    browser = Browser(world.client, world.north.token)
    page = browser.page("/north/both")
    assert "Do not use this revision" in page.text
    assert "trained on wrong labels" in page.text
    drawn = [attributes["class"] for tag, attributes in page.elements if tag == "g"]
    assert [name.strip() for name in drawn].count("bad") == 1
    assert "do not use" in browser.page("/").text
    # Who may not read the result sees nothing of it; the ancestor's owner sees its own withdrawal.
    other = Browser(world.client, world.south.token)
    assert "both" not in other.page("/south/digits").text
    east = Browser(world.client, world.east.token)
    assert east.get("/north/both").status_code == 404
    assert job["id"] not in east.page("/-/jobs").text


def test_a_model_shows_its_network_to_whom_its_files_are_given(hub, north):
    (picture,) = (one["src"] for one in north.page("/north/digits").all("img") if "/network/" in one["src"])
    answer = north.get(picture)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert answer.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    page = Page(answer.text)
    assert "north/digits" in page.text
    assert len([one for one in page.all("rect") if one["class"].startswith("block")]) >= 2
    assert page.all("script") == []
    closed = Browser(hub.client, hub.people["operator"].token)
    assert closed.get("/south/digits/network/main").status_code == 403
    assert "/network/" not in closed.get("/south/digits").text


def test_lineage_leads_both_ways_as_far_as_one_may_read(start):
    world = start()
    world.ask(publish_as="both")
    world.fit()
    for party in ("north", "south"):
        world.evaluate(party)
    world.compose()
    path = "/v1/models/{}/revisions/latest/lineage"
    back = world.north.get(path.format("north/both")).json()
    assert back["models"][0]["repo"] == "north/both"
    assert {one["repo"] for one in back["models"]} == {"north/both", "north/digits", "south/digits"}
    assert {(link["model"], link["member"]) for link in back["links"]} == {(0, 1), (0, 2)}
    on = world.north.get(path.format("south/digits")).json()
    assert [one["repo"] for one in on["models"]] == ["south/digits", "north/both", "north/digits"][: len(on["models"])]
    assert world.south.get(path.format("south/digits")).json()["models"][1:] == []
    assert world.south("PATCH", "/v1/models/south/digits", json={"visibility": "private"}).status_code == 200
    hidden = world.north.get(path.format("north/both")).json()
    assert {one["repo"] for one in hidden["models"]} == {"north/both", "north/digits", None}
    assert world.east.get(path.format("south/digits")).status_code == 404


def test_models_and_jobs_are_compared_at_each_party(hub, north):
    page = north.page(f"/-/compare?of=north/both&of=north/digits%0Asouth/digits&of={hub.done}&of=south/none")
    assert f"north/both, {hub.done}" in page.text
    (textarea,) = re.findall(r"north/both\s+north/digits\s+south/digits\s+job_\w+\s+south/none", page.text)
    shown = re.sub(r"\s+", " ", page.text.replace(textarea, ""))
    at_north, at_south = shown.partition("test samples that are classified correctly")[2].split(" south Accuracy")
    # As tests/stitching/test_report.py has them: what was chosen, north's own model, the peer.
    assert "north/both90.0 %88.0 to 91.01,234 samples" in at_north
    assert "north/digits98.0 %" in at_north
    assert "south/digits49.0 %" in at_north
    assert "south/digits96.0 %94.0 to 97.0200 samples" in at_south
    assert "south/none: none of the newest reports that you may read has numbers of it." in shown
    assert f"/-/jobs/{hub.done}/report" in page.links
    # Another party's report is none of the reader's business.
    east = Browser(hub.client, hub.people["operator"].token).page(f"/-/compare?of={hub.done}&of=north/both")
    assert "90.0 %" not in east.text
    assert "Compare" in north.page("/-/compare").text


# What is away


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


def test_the_check_tells_nothing_of_models_that_are_not_shared(start):
    world: World = start()
    world.ask()
    assert world.south.publish("south/secret", visibility="private").status_code == 201
    browser = Browser(world.client, world.north.token)

    def said(name):
        fields = {"models": f"north/digits south/{name}", "dataset": "digits"}
        return browser.send("/-/jobs/check", **fields).text.replace(name, "…")

    assert said("secret") == said("absent")


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
