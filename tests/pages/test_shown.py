"""What pages tell of models, jobs, reports and parties, and to whom."""

from __future__ import annotations

import re

from tests.pages.browsing import Browser, Page
from tests.service.conftest import model_bytes

from suture_contract.model.format import read_header
from suture_contract.report import network


def test_a_report_says_when_and_on_what_it_was_made(hub, north):
    text = re.sub(r"\s+", " ", north.page(f"/-/jobs/{hub.done}/report").text)
    assert re.search(r"Made \d{4}-\d\d-\d\d \d\d:\d\d UTC, version 1", text)
    for step in (r"north\s*measure candidates", r"south\s*measure candidates", r"north\s*put together, write report"):
        assert re.search(rf"{step}\s*\d{{4}}-\d\d-\d\d", text), step
    job = hub.people["north"].get(f"/v1/jobs/{hub.done}").json()
    links = north.page(f"/-/jobs/{hub.done}/report").links
    for member in job["models"]:
        assert f"/{member['repo']}/tree/{member['revision']}" in links
        assert north.get(f"/{member['repo']}/tree/{member['revision']}").status_code == 200
    assert "1,200 samples" in text


def test_when_a_site_was_last_seen_and_of_which_version_it_is_are_told_to_its_party_and_to_operators(start):
    world = start()
    world.ask()
    site = world.sites["north"]
    site.post("/v1/tasks/lease", {"wait": 0}, headers={"User-Agent": "suture/0.9.1"})
    world.later(600)
    for who, roles, told in (("north", (), True), ("south", (), False), ("operators", ("operator",), True)):
        actor = world.actor(who, *roles)
        for path in ("/north", "/-/parties"):
            shown = Browser(world.client, actor.token).page(path).text
            assert ("0.9.1" in shown, "last seen" in shown or path != "/north") == (told, told or path != "/north")
        (listed,) = actor.get("/v1/parties/north").json()["sites"]
        assert (listed["last_seen_at"] is not None, listed["version"]) == (told, "0.9.1" if told else None)
    # The present one, also where the site was there a moment ago; one from before says none.
    for agent, version in (("suture/0.10.0+cu12", "0.10.0+cu12"), ("suture/1", None), ("suture/0.9.1 (x)", "0.9.1")):
        site.post("/v1/tasks/lease", {"wait": 0}, headers={"User-Agent": agent})
        (listed,) = world.north.get("/v1/parties/north").json()["sites"]
        assert listed["version"] == version
    site.post("/v1/tasks/lease", {"wait": 0}, headers={"User-Agent": "curl/8"})
    shown = re.sub(r"\s+", " ", Browser(world.client, world.north.token).page("/north").text)
    assert re.search("last seen 20[0-9-]+ [0-9:]+ UTC, version unknown", shown)


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
    assert _title("north/digits") == "north/digits"
    assert _title("university-hospital-of-somewhere/chest-x-rays") == "…ospital-of-somewhere/chest-x-rays"
    assert len([one for one in page.all("rect") if one["class"].startswith("block")]) >= 2
    assert page.all("script") == []
    closed = Browser(hub.client, hub.people["operator"].token)
    assert closed.get("/south/digits/network/main").status_code == 403
    assert "/network/" not in closed.get("/south/digits").text


def _title(name):
    """What stands above the drawing of a network of this name."""
    graph = read_header(lambda offset, length: model_bytes()[offset : offset + length], len(model_bytes())).graph
    (title,) = re.findall('class="title" x="[0-9]+" y="28">([^<]+)<', network.draw(graph, (), title=name))
    return title


def test_an_empty_page_says_what_there_is_and_leads_on(hub, north):
    assert "Lineage" not in north.page("/north/protocols").text
    page = north.page("/?search=zzz")
    assert re.search(r"No model that you may read fits this search.\s+All models", page.text)
    assert page.links.count("/") > north.page("/?search=digits").links.count("/")
    wrong = north.get("/-/audit/verify?expect=yesterday")
    assert "Write it as ID:DIGEST" in Page(wrong.text).text


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
    assert re.search(rf"north/both\s*{hub.done}", page.text)
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
    (part,) = (one["hx-get"] for _, one in north.page("/north/both").elements if "hx-get" in one)
    reached = north.page(part)
    assert "north: accuracy 90.0 %, 95 % interval 88.0 to 91.0, on 1,234 samples" in reached.text
    assert f"/-/jobs/{hub.done}/report" in reached.links
    assert "Nothing yet" in north.page("/-/measured/east/reader").text
    assert north.get("/-/measured/nobody/x").status_code == 404


def test_the_first_page_lists_what_waits_for_whom(start):
    world = start()
    job = world.ask().json()
    asker, answerer, other = (Browser(world.client, one.token) for one in (world.south, world.north, world.east))
    assert "Waits for you" not in answerer.page("/").text
    task = world.sites["north"].lease()
    for waits_for, words in (("approval", "north asks to fit: approve it"), ("release", "is held: release it")):
        assert world.sites["north"].tell(task, "wait", waits_for=waits_for).status_code == 200
        page = answerer.page("/")
        assert words in page.text
        assert f"/-/jobs/{job['id']}" in page.links
        assert "Waits for you" not in asker.page("/").text
        assert "Waits for you" not in other.page("/").text
    assert world.north("PATCH", "/v1/models/north/digits", json={"gated": "manual"}).status_code == 200
    assert world.south.post("/v1/models/north/digits/access", {"reason": "to stitch"}).status_code == 201
    assert "You wait for an answer about the files of north/digits" in re.sub(r"\s+", " ", asker.page("/").text)
    assert "You wait for" not in answerer.page("/").text
    # What is not shared any more is not named.
    assert world.north("PATCH", "/v1/models/north/digits", json={"visibility": "private"}).status_code == 200
    assert "You wait for" not in asker.page("/").text
