"""Parties and sites that are suspended, resumed, renamed and removed, and what becomes of all that they have."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from tests.service.hf_calls import batch, send

from suture_contract.console.terminal import Format
from suture_contract.errors import SutureError
from suture_service import operate
from suture_service.audit import chain
from suture_service.commands import membership as commands
from suture_service.membership import service
from suture_service.tables import AuditEntry, Model, Party, Site

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def state(world, job, kind, party):
    """The states of a job's tasks of a kind at a party."""
    return [task["state"] for task in world.job(job)["tasks"] if (task["kind"], task["party"]) == (kind, party)]


def actions(world):
    with world.hub.database.reading() as session:
        chain.verify(session)
        return [(entry.action, entry.what) for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.id))]


def test_a_suspended_party_is_let_in_no_more_and_resumed_it_is(world):
    job = world.ask().json()
    world.fit()
    leased = world.sites["south"].lease()
    address = world.south.post("/api/repos/create", {"name": "repo"})
    assert address.status_code == 200
    shown = world.operator.post("/v1/parties/south/suspend").json()
    assert (shown["party"], shown["tasks"], shown["sites"], shown["tokens"], shown["models"]) == ("south", 1, 1, 2, 2)
    for actor in (world.south, world.sites["south"]):
        assert code(actor.get("/v1/whoami")) == (403, "auth.suspended")
    assert world.north.get("/v1/models/south/digits").status_code == 200  # its models stay
    listed = {party["name"]: party["suspended"] for party in world.north.get("/v1/parties").json()["items"]}
    assert (listed["south"], listed["north"]) == (True, False)
    assert code(world.ask(publish_as="second")) == (409, "job.party_suspended")
    world.later(1)
    assert state(world, job, "evaluate", "south") == ["open"]
    world.operator.post("/v1/parties/south/suspend")  # repeated, it changes nothing
    assert world.operator.post("/v1/parties/south/resume").status_code == 200
    assert world.sites["south"].tell(leased, "heartbeat").status_code == 409
    assert world.sites["south"].lease()["id"] == leased["id"]
    assert world.south.get("/v1/whoami").status_code == 200
    assert [entry for entry in actions(world) if entry[1] == "south" and entry[0] != "party.add"] == [
        ("party.suspend", "south"),
        ("party.resume", "south"),
    ]


@on_sqlite
def test_uploads_that_were_begun_end_with_the_suspension(world):
    for name in ("north", "south"):
        getattr(world, name).post("/api/repos/create", {"name": "repo"})
    content = b"weights" * 1000
    token = world.south.get("/api/models/south/repo/xet-write-token/main").json()
    href = batch(world.south, "south/repo", size=len(content))["actions"]["upload"]["href"]
    world.operator.post("/v1/parties/south/suspend")
    assert world.client.put(href, content=content).status_code == 403
    headers = {"Authorization": f"Bearer {token['accessToken']}"}
    path = token["casUrl"].partition("testserver")[2] + "/v1/xorbs/default/" + "a" * 64
    assert world.client.post(path, content=b"x", headers=headers).status_code == 403
    assert send(world, world.north, "north/repo").status_code == 200


def test_a_renamed_party_keeps_all_but_its_name(world):
    world.ask()
    admin = world.actor("north", "admin", "auditor")
    assert code(admin.post("/v1/parties/north/rename", {"name": "nord"})) == (409, "party.in_use")
    (job,) = world.north.get("/v1/jobs").json()["items"]
    world.north.post(f"/v1/jobs/{job['id']}/cancel")
    for wrong, refused in (("south", "party.exists"), ("api", "party.reserved"), ("north", "party.exists")):
        assert admin.post("/v1/parties/north/rename", {"name": wrong}).json()["error"]["code"] == refused
    assert admin.post("/v1/parties/north/rename", {"name": "nord"}).status_code == 200
    assert world.north.get("/v1/whoami").json()["party"] == "nord"
    assert world.south.get("/v1/models/nord/digits").status_code == 200
    assert world.south.get("/v1/models/north/digits").status_code == 404
    assert [row["id"] for row in world.south.get("/v1/models?search=nord").json()["items"]] == ["nord/digits"]
    assert "is called nord now" in world.south.get("/v1/parties/north/keys").json()["error"]["hint"]
    assert code(world.operator.post("/v1/parties", {"name": "north"})) == (409, "party.exists")
    seen = [entry["what"] for entry in admin.get("/v1/audit?limit=200").json()["items"]]
    assert {"north", "north/digits", "north/north-site"} <= {*seen}
    again = world.north.post(
        "/v1/jobs", {"models": [{"repo": "nord/digits"}, {"repo": "south/digits"}], "dataset": "digits"}
    )
    assert again.status_code == 201, again.text
    world.north.post(f"/v1/jobs/{again.json()['id']}/cancel")
    assert admin.post("/v1/parties/nord/rename", {"name": "north"}).status_code == 200  # its own name of before
    assert world.operator.post("/v1/parties", {"name": "nord"}).status_code == 409


@on_sqlite
def test_late_answers_are_given_up_with_the_name(world):
    job = world.ask(evaluate_within=60).json()
    world.fit()
    world.evaluate("north")
    world.later(120)
    world.compose()
    assert state(world, job, "evaluate", "south") == ["late"]
    assert world.operator.post("/v1/parties/south/rename", {"name": "sued"}).status_code == 200
    assert state(world, job, "evaluate", "sued") == ["expired"]


def test_a_removed_party_leaves_lineage_and_its_name(world):
    job = world.ask().json()
    own = world.south.post(
        "/v1/jobs", {"models": [{"repo": "north/digits"}, {"repo": "south/digits"}], "dataset": "digits"}
    ).json()
    world.fit()
    world.north.publish("north/private", visibility="private")
    world.north("PATCH", "/v1/models/north/private", json={"shared_with": ["south"]})
    assert code(world.operator("DELETE", "/v1/parties/south?confirm=north")) == (422, "request.unconfirmed")
    shown = world.operator("DELETE", "/v1/parties/south?confirm=south").json()
    assert (shown["models"], shown["jobs"], shown["sites"], shown["tokens"]) == (1, 1, 1, 2)
    for actor in (world.south, world.sites["south"]):
        assert code(actor.get("/v1/whoami")) == (401, "auth.invalid")
    assert world.north.get("/v1/models/south/digits").status_code == 404
    assert "south" not in [party["name"] for party in world.north.get("/v1/parties").json()["items"]]
    assert world.north.get("/v1/models/north/private").json()["shared_with"] == []
    assert world.operator("DELETE", "/v1/parties/south?confirm=south").status_code == 404
    assert code(world.operator.post("/v1/parties", {"name": "south"})) == (409, "party.exists")
    assert state(world, job, "evaluate", "south") == ["expired"]
    world.evaluate("north")
    world.compose()
    ended = world.job(job)
    assert (ended["state"], ended["missing"]) == ("partial", [{"party": "south", "reason": "no_answer"}])
    assert {member["repo"] for member in ended["models"]} == {"north/digits", "south/digits"}
    with world.hub.database.reading() as session:
        assert session.scalars(select(Party.name).where(Party.removed_at.is_not(None))).all() == ["south"]
        assert session.scalars(select(Model).join(Party).where(Party.name == "south")).one().deleted_at is not None
    assert world.operator.get(f"/v1/jobs/{own['id']}").status_code == 404
    assert ("party.remove", "south") in actions(world)


@on_sqlite
def test_a_party_that_has_gone_before_it_was_asked_is_missing(world):
    job = world.ask().json()
    with operate.running(world.settings) as hub:
        service.remove_party(hub, "south")
    world.fit()
    assert state(world, job, "evaluate", "south") == ["expired"]


@on_sqlite
def test_a_removal_that_is_killed_is_finished_by_the_same_call(world, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_arguments, **_options):
        raise Killed

    world.ask()
    for name in ("_each_job", "delete_model"):
        with monkeypatch.context() as patch:
            patch.setattr(service, name, killed)
            with pytest.raises(Killed):
                service.remove_party(world.hub, "south")
        assert world.operator.get("/v1/parties/south/tokens").status_code == 200
    service.remove_party(world.hub, "south")
    assert world.operator.get("/v1/parties/south/tokens").status_code == 404


def test_a_site_is_suspended_renamed_and_removed_by_its_party(world):
    world.ask()
    admin = world.actor("north", "admin")
    site = "/v1/parties/north/sites/north-site"
    for path in (f"{site}/suspend", f"{site}/resume"):
        assert code(world.north.post(path)) == (403, "auth.forbidden")
        assert code(world.actor("south", "admin").post(path)) == (403, "auth.forbidden")
    leased = world.sites["north"].lease()
    assert admin.post(f"{site}/suspend").json()["tasks"] == 1
    assert code(world.sites["north"].get("/v1/whoami")) == (403, "auth.suspended")
    assert code(world.ask(publish_as="second")) == (409, "job.no_site")
    world.later(1)
    assert admin.post(f"{site}/resume").status_code == 200
    assert world.sites["north"].lease()["id"] == leased["id"]
    assert code(admin.post("/v1/parties/north/sites", {"name": "north-site"})) == (409, "site.exists")
    assert admin.post(f"{site}/rename", {"name": "radiology"}).status_code == 200
    assert world.sites["north"].get("/v1/whoami").json()["site"] == "radiology"
    site = "/v1/parties/north/sites/radiology"
    assert admin("DELETE", f"{site}?confirm=no").status_code == 422
    assert admin("DELETE", f"{site}?confirm=radiology").json()["site"] == "radiology"
    assert code(world.sites["north"].get("/v1/whoami")) == (401, "auth.invalid")
    assert admin("DELETE", f"{site}?confirm=radiology").status_code == 404
    token = admin.post("/v1/parties/north/sites", {"name": "radiology"}).json()["token"]
    again = type(world.north)(world.client, token)
    world.later(1)
    assert again.lease()["id"] == leased["id"]
    with world.hub.database.reading() as session:
        assert session.scalars(select(Site.name).join(Party).where(Party.name == "north")).all() == ["radiology"]


@on_sqlite
def test_a_quota_is_set_by_the_operator_and_shown_with_what_is_used(world):
    world.ask()
    shown = world.north.get("/v1/parties/north/quota").json()
    assert (shown["own_limits"], shown["max_jobs"], shown["jobs"]) == (False, world.settings.max_party_jobs, 1)
    assert shown["bytes"] > 0
    assert world.south.get("/v1/parties/north/quota").status_code == 403
    limits = {"max_bytes": 1000, "max_jobs": 1}
    assert world.north("PUT", "/v1/parties/north/quota", json=limits).status_code == 403
    set_to = world.operator("PUT", "/v1/parties/north/quota", json=limits).json()
    assert (set_to["max_bytes"], set_to["max_jobs"], set_to["own_limits"]) == (1000, 1, True)
    assert code(world.ask(publish_as="second")) == (409, "quota.jobs")
    assert code(world.north.publish("north/other", model=world.model(seed=8))) == (413, "quota.bytes")


@pytest.fixture
def at_the_hub(world, monkeypatch):
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", world.settings.database_url)
    monkeypatch.setenv("SUTURE_HUB_STORE", world.settings.store)
    return world


@on_sqlite
def test_the_commands_say_what_becomes_of_it_before_they_act(at_the_hub, capsys):
    world = at_the_hub
    for change in (commands.suspend_party, commands.remove_party, lambda name: commands.rename_party(name, "other")):
        with pytest.raises(SutureError) as asked:
            change("south")
        assert asked.value.code == "command.unconfirmed"
        said = capsys.readouterr().err
        assert "south has 1 site, 2 tokens" in said
        assert said.count("  - ") >= 4
    commands.suspend_party("south", yes=True)
    assert "south: suspended" in capsys.readouterr().out
    commands.resume_party("south", format=Format.json)
    assert json.loads(capsys.readouterr().out)["party"] == "south"
    commands.suspend_site("south", "south-site", yes=True)
    commands.resume_site("south", "south-site")
    commands.rename_site("south", "south-site", "main", yes=True)
    commands.remove_site("south", "main", yes=True)
    commands.rename_party("south", "sued", yes=True)
    commands.remove_party("sued", yes=True)
    assert [entry for entry in actions(world) if entry[0].startswith(("site.r", "party.r"))] == [
        ("party.resume", "south"),
        ("site.resume", "south/south-site"),
        ("site.rename", "south/south-site"),
        ("site.remove", "south/main"),
        ("party.rename", "south"),
        ("party.remove", "sued"),
    ]


@on_sqlite
def test_the_command_of_quotas(at_the_hub, capsys):
    commands.quota("north", gib=2, jobs=3)
    capsys.readouterr()
    commands.quota("north", gib=4, format=Format.json)
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["max_bytes"], shown["max_jobs"], shown["own_limits"]) == (4 * 2**30, 3, True)
    commands.quota()
    assert "of 4 GiB" in capsys.readouterr().out
    commands.quota("north", reset=True, format=Format.json)
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["max_jobs"], shown["own_limits"]) == (at_the_hub.settings.max_party_jobs, False)
    for wrong in ({"gib": 1.0}, {"party": "north", "gib": 1.0, "reset": True}):
        with pytest.raises(SutureError):
            commands.quota(**wrong)
