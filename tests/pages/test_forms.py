"""What people do on pages: ask for jobs, give tokens, decide about access, set limits, check the audit log."""

from __future__ import annotations

import json
import re

from fastapi.routing import iter_route_contexts
from sqlalchemy import text
from tests.pages.browsing import Browser, Form, Page
from tests.service.conftest import World


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
    assert world.sites["north"]("PUT", "/v1/site/datasets", json={"datasets": ["digits", "more"]}).status_code == 204
    assert [one["value"] for one in browser.page("/-/jobs/new").all("option")] == ["", "digits", "more"]
    answer = browser.send("/-/jobs/check", **fields)
    assert "These can be stitched" in answer.text
    assert "Not yet" in browser.send("/-/jobs/check", **{**fields, "evaluate_at": ["nobody"]}).text
    refused = browser.send("/-/jobs/new", **{**fields, "models": "north/digits\nsouth/digit"})
    assert refused.status_code == 404
    assert "did you mean" in refused.text.lower()
    assert "south/digit</textarea>" in refused.text
    # Picked ones go before those that are typed, and each counts once.
    fields |= {"model": ["north/digits"], "models": "south/digits north/digits"}
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


def test_models_are_picked_from_those_that_go_together(start):
    world: World = start()
    world.ask()
    about = world.metadata(task="segmentation", description="Outlines of bones.")
    assert world.north.publish("north/bones", metadata=about).status_code == 201
    assert world.south.publish("south/secret", visibility="private").status_code == 201
    assert world.east.publish("east/reader", visibility="all").status_code == 201
    assert world.east("PATCH", "/v1/models/east/reader", json={"gated": "manual"}).status_code == 200
    browser = Browser(world.client, world.north.token)
    boxes = {one["value"]: one for one in _boxes(browser.page("/-/jobs/new"))}
    assert {"north/digits", "south/digits", "north/bones"} <= set(boxes)
    assert "south/secret" not in boxes
    assert "disabled" in boxes["east/reader"]
    assert "/-/jobs/new?model=north/digits" in browser.page("/north/digits").links
    # Without script: the button beside the search gives the form back, with all that is in it.
    filled = {"model": ["north/digits"], "search": "south", "dataset": "digits", "evaluate_at": ["south"], "days": "3"}
    answer = browser.send("/-/jobs/new", find="models", **filled)
    assert answer.status_code == 200
    found = _boxes(Page(answer.text))
    assert [(one["value"], "checked" in one) for one in found] == [("north/digits", True), ("south/digits", False)]
    kept = {one.get("name"): one.get("value") for one in Page(answer.text).all("input")}
    assert (kept["search"], kept["dataset"], kept["days"]) == ("south", "digits", "3")
    everything = browser.send("/-/jobs/models", model=["north/digits"])
    assert "north/bones" not in everything.text
    # With script, the same part alone.
    part = browser.send("/-/jobs/models", **filled)
    assert [one["value"] for one in _boxes(Page(part.text))] == ["north/digits", "south/digits"]
    assert "<h1" not in part.text
    # What is wrong with one that is picked is said beside it; of another's secrets it is what is said of nothing.
    unknown = browser.send("/-/jobs/models", model=["south/digit"]).text
    assert "did you mean &#39;south/digits&#39;?<" in unknown
    secret, absent = (browser.send("/-/jobs/models", model=[f"south/{name}"]).text for name in ("secret", "absent"))
    assert secret.replace("secret", "…") == absent.replace("absent", "…")
    assert "There is none that you may read" in browser.send("/-/jobs/models", search="south/secret").text


def test_a_model_is_named_at_a_branch_a_tag_or_the_first_digits_of_an_id(start):
    world: World = start()
    world.ask()
    old = world.north.get("/v1/models/north/digits/revisions/latest").json()["id"]
    assert world.north.post("/api/models/north/digits/tag/main", {"tag": "v1"}).status_code == 200
    new = world.north.publish("north/digits", model=world.model(seed=5)).json()["id"]
    (step,) = world.north.get("/api/models/north/digits/commits/v1").json()[:1]
    browser = Browser(world.client, world.north.token)

    def members(name):
        fields = {"models": f"{name} south/digits", "dataset": "digits"}
        assert "These can be stitched" in browser.send("/-/jobs/check", **fields).text, name
        made = browser.send("/-/jobs/new", **fields)
        assert made.status_code == 303, name
        return world.north.get(f"/v1{made.headers['location'].removeprefix('/-')}").json()["models"][0]["revision"]

    named = {"main": new, "latest": new, old[:7]: old, "v1": old, step["id"][:10]: old, step["id"]: old, old: old}
    assert {name: members(f"north/digits@{name}") for name in named} == named
    # In a link, too; what names nothing is refused with what does.
    assert f"north/digits@{old}" in [one["value"] for one in _boxes(browser.page("/-/jobs/new?model=north/digits@v1"))]
    fields = {"models": "north/digits@v2 south/digits", "dataset": "digits"}
    for shown in (browser.send("/-/jobs/new", **fields).text, browser.page("/-/jobs/new?model=north/digits@v2").text):
        assert "orth/digits has no revision v2" in shown
        assert f"the newest is north/digits@{new}" in shown
    assert world.north.post("/api/repos/create", {"name": "empty"}).status_code == 200
    assert "no portable model" in browser.page(f"/-/jobs/new?model=north/empty@{_first(world)}").text
    # Of what is not shared, nothing is looked up.
    assert world.south.publish("south/secret", visibility="private").status_code == 201
    shown = [
        browser.page(f"/-/jobs/new?model=south/{name}@v2").text.replace(name, "…") for name in ("secret", "absent")
    ]
    assert shown[0] == shown[1]


def _first(world):
    return world.north.get("/api/models/north/empty/commits/main").json()[0]["id"][:12]


def _boxes(page):
    return [one for one in page.all("input") if one.get("name") == "model"]


def test_the_check_tells_nothing_of_models_that_are_not_shared(start):
    world: World = start()
    world.ask()
    assert world.south.publish("south/secret", visibility="private").status_code == 201
    browser = Browser(world.client, world.north.token)

    def said(name):
        fields = {"models": f"north/digits south/{name}", "dataset": "digits"}
        return browser.send("/-/jobs/check", **fields).text.replace(name, "…")

    assert said("secret") == said("absent")


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
    assert "south asks for its files" in steward.page("/north/digits").text
    assert "asks for its files" not in Browser(world.client, world.north.token).page("/north/digits").text
    assert "to stitch" in steward.page("/-/access?state=pending").text
    assert "south" in steward.page("/").text
    assert steward.send("/-/access/north/digits/south", state="accepted", days="5").status_code == 303
    assert asker.get("/north/digits/blob/main/model.safetensors").status_code == 200
    assert asker.get("/north/digits/download/main/model.safetensors").content == world.model()
    assert "1 party gets its files" in steward.page("/north/digits").text
    taken = steward.send("/-/access/north/digits/south", state="refused", answer="it has ended", back="model")
    assert taken.headers["location"] == "/north/digits"
    assert "it has ended" in asker.page("/north/digits").text
    assert asker.get("/north/digits/blob/main/model.safetensors").status_code == 403


def test_an_owner_says_on_the_page_who_may_read_a_model_and_who_gets_its_files(start):
    world = start()
    assert world.north.publish("north/digits", visibility="private").status_code == 201
    owner, reader = (Browser(world.client, token) for token in (world.north.token, world.actor("north").token))
    action = "/-/sharing/north/digits"
    assert action in [one["action"] for one in owner.page("/north/digits").all("form")]
    assert action not in [one["action"] for one in reader.page("/north/digits").all("form")]
    fields = {"visibility": "private", "gated": "manual", "add": "south, east"}
    assert owner.send(action, **fields).headers["location"] == "/north/digits"
    model = world.north.get("/v1/models/north/digits").json()
    assert (model["visibility"], model["gated"], model["shared_with"]) == ("private", "manual", ["east", "south"])
    named = [one["value"] for one in owner.page("/north/digits").all("input") if one.get("name") == "shared_with"]
    assert named == ["east", "south"]
    assert owner.send(action, **fields | {"add": "", "shown": named, "shared_with": ["south"]}).status_code == 303
    assert world.east.get("/v1/models/north/digits").status_code == 404
    # As the API: refused in words beside the form, with nothing changed, and noted in the same way.
    unknown = owner.send(action, **fields | {"add": "suoth"})
    assert (unknown.status_code, "did you mean" in unknown.text.lower()) == (422, True)
    assert owner.send(action, **fields | {"visibility": "some"}).status_code == 422
    for other, status in ((reader, 403), (Browser(world.client, world.south.token), 403)):
        assert other.send(action, **fields).status_code == status
    assert Browser(world.client, world.east.token).send(action, **fields).status_code == 404
    assert world.north.get("/v1/models/north/digits").json()["shared_with"] == ["south"]
    entries = world.actor("north", "auditor").get("/v1/audit?action=model.change").json()["items"]
    assert [entry["detail"]["shared_with"] for entry in entries] == [["south"], ["east", "south"]]


def test_two_owners_at_once_keep_what_the_other_changed(start):
    world = start()
    assert world.north.publish("north/digits", visibility="private").status_code == 201
    assert world.north("PATCH", "/v1/models/north/digits", json={"shared_with": ["south"]}).status_code == 200
    browser = Browser(world.client, world.north.token)

    def opened():
        """A tab with the form, as it is now; return what sends it."""
        (action,) = [one["action"] for one in browser.page("/north/digits").all("form") if "/sharing/" in one["action"]]
        return Form(browser.get("/north/digits").text, action)

    first, second, third, fourth = opened(), opened(), opened(), opened()
    assert first.send(browser, add="east").status_code == 303
    assert second.send(browser, add="operators").status_code == 303
    assert third.send(browser, gated="manual", shared_with=[]).status_code == 303
    assert fourth.send(browser, visibility="all").status_code == 303
    model = world.north.get("/v1/models/north/digits").json()
    assert (model["shared_with"], model["visibility"], model["gated"]) == (["east", "operators"], "all", "manual")
    auditor = world.actor("north", "auditor")
    before = auditor.get("/v1/audit").json()["items"][0]
    assert opened().send(browser).status_code == 303
    assert auditor.get("/v1/audit").json()["items"][0] == before, "nothing was changed"


def test_a_repository_without_a_model_is_shared_too(start):
    world = start()
    assert world.north.post("/api/repos/create", {"name": "protocols"}).status_code == 200
    owner = Browser(world.client, world.north.token)
    form = Form(owner.get("/north/protocols").text, "/-/sharing/north/protocols")
    assert form.fields["visibility"] == "private"
    assert form.send(owner, add="south").status_code == 303
    assert "north, and south" in re.sub(r"\s+", " ", owner.page("/north/protocols").text)
    for party, status in ((world.south, 200), (world.east, 404)):
        assert Browser(world.client, party.token).get("/north/protocols").status_code == status
    assert Form(owner.get("/north/protocols").text, form.action).send(owner, gated="manual").status_code == 303
    assert "files on request" in owner.page("/north/protocols").text


def test_an_operator_says_what_a_party_may_fill(start):
    world = start()
    operator = Browser(world.client, world.actor("operators", "operator").token)
    owner = Browser(world.client, world.actor("north", "admin").token)
    assert "The hub's operator sets these limits" in owner.page("/-/admin/north").text
    assert operator.send("/-/admin/north/quota", max_bytes="5242880", max_jobs="3").status_code == 303
    text = owner.page("/-/admin/north").text
    assert "of 5.0 MiB" in text
    assert "0 of 3" in text
    assert owner.send("/-/admin/north/quota", max_bytes="1", max_jobs="").status_code == 403
    assert operator.send("/-/admin/north/quota", max_bytes="x", max_jobs="").status_code == 422
    assert operator.send("/-/admin/north/quota", max_bytes="", max_jobs="").status_code == 303
    assert "of 5.0 MiB" not in owner.page("/-/admin/north").text


def test_what_the_audit_page_lists_is_exported(hub, north):
    page = north.page("/-/audit?action=job.ask")
    (link,) = [one for one in page.links if one.startswith("/-/audit/export")]
    answer = north.get(link)
    assert answer.headers["content-disposition"] == 'attachment; filename="audit.ndjson"'
    entries = [json.loads(line) for line in answer.text.splitlines()]
    assert {entry["action"] for entry in entries} == {"job.ask"}
    assert len(entries) == len(hub.people["north"].get("/v1/audit?action=job.ask").json()["items"]) == 4
    numbers = [json.loads(line)["id"] for line in north.get("/-/audit/export").text.splitlines()]
    assert len(numbers) > 10
    assert numbers == sorted(set(numbers), reverse=True)
    assert Browser(hub.client, hub.people["reader"].token).get("/-/audit/export").status_code == 403


def test_an_auditor_has_the_log_checked_and_is_told_what_was_found(start):
    world = start()
    world.north.publish("north/digits").raise_for_status()
    auditor = world.actor("north", "auditor")
    browser = Browser(world.client, auditor.token)
    assert "/-/audit/verify" in [form["action"] for form in browser.page("/-/audit").all("form")]
    page = browser.page("/-/audit/verify")
    assert "The log is whole" in page.text
    (head,) = re.findall(r"\d+:[0-9a-f]{64}", page.text)
    answer = auditor.get("/v1/audit/verify").json()
    assert answer == {"entries": int(head.partition(":")[0]), "head": head}
    world.south.publish("south/digits").raise_for_status()
    assert "the one that you noted is among them" in browser.page(f"/-/audit/verify?expect={head}").text
    for expect, found in ((f"2:{'0' * 64}", "the log was written anew"), ("yesterday", "Write it as ID:DIGEST")):
        answer = browser.get(f"/-/audit/verify?expect={expect}")
        assert (answer.status_code, found in answer.text) == (422, True)
    with world.hub.database.writing() as session:
        session.execute(text("UPDATE audit SET what = 'north/other' WHERE id = 2"))
    answer = browser.get("/-/audit/verify")
    assert "The log is not whole" in answer.text
    assert "Entry 2: its content, or an entry before it, was changed" in Page(answer.text).text
    with world.hub.audit_check:
        assert browser.get("/-/audit/verify").status_code == 429
    assert Browser(world.client, world.north.token).get("/-/audit/verify").status_code == 403
    assert world.north.get("/v1/audit/verify").status_code == 403
