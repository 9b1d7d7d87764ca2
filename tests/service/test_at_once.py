"""Two callers at once who add or change the same: both are answered, and one row comes of it.

Each test has the first wait, where it has looked and before it writes, for the second to come as far. Who locks what it
is about to change never gets there: then the first goes on after a moment.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from suture_service.access import repository as access
from suture_service.errors import of_database
from suture_service.jobs import repository as jobs
from suture_service.membership import service as membership
from suture_service.models import service as models
from suture_service.parties import repository as parties
from suture_service.people import repository as people
from suture_service.sites import repository as sites
from suture_service.sites import service as adding
from suture_service.tables import AccessRequest, ReceivedFile, Site, Token

REPO = "/v1/models/north/digits"


@pytest.fixture
def meeting(monkeypatch):
    """Have two callers meet after a function of a module has looked, as often as they call it."""

    def meet(module, name):
        look, both = getattr(module, name), threading.Barrier(2)

        def met(*values, **named):
            answer = look(*values, **named)
            with suppress(threading.BrokenBarrierError):
                both.wait(0.2)
            return answer

        monkeypatch.setattr(module, name, met)

    return meet


def at_once(*calls):
    """The statuses of calls that begin at the same moment."""
    begin = threading.Barrier(len(calls))

    def run(call):
        begin.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        answers = list(pool.map(run, calls))
    return sorted(answer.status_code for answer in answers)


def count(world, table, **which):
    with world.hub.database.reading() as session:
        return session.query(table).filter_by(**which).count()


@pytest.fixture
def gated(world):
    world.north.publish("north/digits").raise_for_status()
    world.north("PATCH", REPO, json={"gated": "manual"}).raise_for_status()
    return world


def test_access_asked_for_and_given(gated, meeting):
    meeting(access, "find_request")
    asks = [lambda: gated.south.post(f"{REPO}/access", {"reason": "to stitch it with ours"})] * 2
    assert at_once(*asks) == [201, 201]
    steward = gated.actor("north", "steward")
    grant = "/api/models/north/digits/user-access-request/grant"
    assert at_once(*[lambda: steward.post(grant, {"user": "east"})] * 2) == [200, 200]
    assert count(gated, AccessRequest) == 2


def test_shares(gated, meeting):
    meeting(models, "get_model")
    for shared in (["east", "south"], []):
        calls = [lambda readers=shared: gated.north("PATCH", REPO, json={"shared_with": readers})] * 2
        assert at_once(*calls) == [200, 200]
        assert gated.north.get(REPO).json()["shared_with"] == shared


def test_two_that_share_with_each_other(world, meeting):
    """Who locks its own party must keep nobody from naming it."""
    world.north.publish("north/digits").raise_for_status()
    world.south.publish("south/digits").raise_for_status()
    meeting(models, "find_party")
    calls = [
        lambda: world.north("PATCH", REPO, json={"shared_with": ["south"]}),
        lambda: world.south("PATCH", "/v1/models/south/digits", json={"shared_with": ["north"]}),
    ]
    assert at_once(*calls) == [200, 200]


def test_an_upload(world, meeting):
    content = b"x" * 100
    entry = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    world.north.post("/api/repos/create", {"name": "repo"}).raise_for_status()
    body = {"operation": "upload", "hash_algo": "sha256", "transfers": ["basic"], "objects": [entry]}
    batch = world.north.post("/north/repo.git/info/lfs/objects/batch", body).json()
    address = batch["objects"][0]["actions"]["upload"]["href"]
    meeting(Session, "merge")
    assert at_once(*[lambda: world.client.put(address, content=content)] * 2) == [200, 200]
    assert count(world, ReceivedFile) == 1


def test_sites(world, meeting):
    meeting(sites, "find_site")
    add = [lambda: world.operator.post("/v1/parties/east/sites", {"name": "second"})] * 2
    assert at_once(*add) == [201, 409]
    assert (count(world, Site, name="second"), count(world, Token, name="second")) == (1, 1)


def test_sites_that_want_one_name(world, meeting):
    world.operator.post("/v1/parties/east/sites", {"name": "second"}).raise_for_status()
    meeting(membership, "find_site")
    calls = [
        lambda site=site: world.operator.post(f"/v1/parties/east/sites/{site}/rename", {"name": "new"})
        for site in ("east-site", "second")
    ]
    assert at_once(*calls) == [200, 409]


def test_names_of_parties(world, meeting):
    """A party that is called otherwise now keeps its old name, whoever asks for it at that moment."""
    meeting(parties, "ever_named")
    calls = [
        lambda: world.operator.post("/v1/parties/east/rename", {"name": "west"}),
        lambda: world.operator.post("/v1/parties", {"name": "west"}),
    ]
    assert at_once(*calls)[1] == 409
    assert at_once(*[lambda: world.operator.post("/v1/parties", {"name": "new"})] * 2) == [201, 409]


def test_people(start, meeting):
    world = start(oidc_issuer="https://id.example", oidc_client_id="hub")
    admin = world.actor("north", "admin")
    meeting(people, "is_known")
    person = {"name": "ann", "email": "ann@north.example", "roles": ["publisher"]}
    assert at_once(*[lambda: admin.post("/v1/parties/north/people", person)] * 2) == [201, 409]


def test_jobs_beyond_the_quota(start, meeting):
    world = start(max_party_jobs=2)
    world.ask().raise_for_status()
    meeting(jobs, "count_active")
    assert at_once(*[world.ask] * 2) == [201, 409]


def test_what_no_lock_was_thought_of_for(world, meeting, monkeypatch):
    """It is refused with what to do next; what no other caller can have caused stays a failure of the hub."""
    monkeypatch.setattr(adding, "lock_party", lambda *_: None)

    def add(name):
        return world.operator.post("/v1/parties/east/sites", {"name": name})

    with monkeypatch.context() as blind:
        blind.setattr(sites, "find_site", lambda *_, **__: None)
        refused = add("east-site")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "request.conflict")
    assert "look at what is there now" in refused.json()["error"]["hint"]

    def fail(*_values, **_named):
        raise IntegrityError("INSERT", {}, Exception("NOT NULL constraint failed: sites.name"))

    monkeypatch.setattr(sites, "find_site", fail)
    assert add("third").status_code == 500


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_database_may_speak_another_language(world):
    """PostgreSQL tells its errors in that of its operator: what goes by English words takes these for others."""
    for code, words, refusal in (
        ("unique_violation", "doppelter Schlüsselwert verletzt Unique-Constraint »uq_sites_name«", "request.conflict"),
        ("disk_full", "konnte Datei nicht erweitern: Auf dem Gerät ist kein Speicherplatz mehr", "hub.full"),
    ):
        with pytest.raises(DBAPIError) as raised, world.hub.database.writing() as session:
            session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{code}'; END $$"))
        assert of_database(raised.value).code == refusal
