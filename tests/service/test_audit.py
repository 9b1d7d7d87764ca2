"""The audit log: what is in it, who may read it, and that no change goes unnoticed."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

from suture_contract.errors import SutureError
from suture_service.audit import chain


def entries(world):
    with world.hub.database.reading() as session:
        return [chain.as_dict(entry) for entry in chain.walk(session)]


def verify(world, expected=None):
    with world.hub.database.reading() as session:
        return chain.verify(session, expected)


def change(world, statement, **values):
    with world.hub.database.writing() as session:
        session.execute(text(statement), values)


def test_who_what_when_and_from_where(world):
    world.north.publish("north/digits").raise_for_status()
    answer = world.north("PATCH", "/v1/models/north/digits", json={"visibility": "private", "shared_with": ["south"]})
    assert answer.status_code == 200
    publish, changed = entries(world)[-2:]
    assert (publish["actor"], publish["action"], publish["what"]) == ("north", "model.commit", "north/digits")
    assert publish["owner"] == "north"
    assert publish["token_id"].startswith("tok_")
    assert publish["address"] == "testclient"
    assert publish["detail"]["branch"] == "main"
    assert changed["request_id"] == answer.headers["x-request-id"]
    assert changed["detail"] == {"visibility": "private", "gated": "open", "shared_with": ["south"]}
    assert verify(world).id == len(entries(world))


def test_a_job_leaves_its_trace(world):
    job = world.ask().json()
    world.north.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    acts = [(entry["actor"], entry["action"]) for entry in entries(world) if entry["what"] == job["id"]]
    assert acts == [("north", "job.ask"), ("north", "job.cancelled")]


def test_what_did_not_happen_is_not_in_it(world):
    before = len(entries(world))
    assert world.operator.post("/v1/parties", {"name": "north"}).status_code == 409
    assert world.north.publish("north/digits", model=b"nonsense").status_code == 422
    assert len(entries(world)) == before


def test_tokens_are_in_it_by_id_alone(world):
    made = world.actor("north", "admin").post("/v1/parties/north/tokens", {"roles": ["publisher"]}).json()
    assert made["token"] not in str(entries(world))
    assert entries(world)[-1]["what"] == made["id"]


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("UPDATE audit SET actor = 'south' WHERE id = 3", "entry 3"),
        ("UPDATE audit SET detail = '{\"roles\": []}' WHERE id = 4", "entry 4"),
        ("DELETE FROM audit WHERE id = 2", "entry 3"),
        ("UPDATE audit SET id = -id WHERE id = 1", "entry -1"),
        ("UPDATE audit SET digest = :zeros WHERE id = 5", "entry 5"),
    ],
)
def test_a_changed_entry_is_found(world, statement, place):
    verify(world)
    change(world, statement, **({"zeros": "0" * 64} if ":zeros" in statement else {}))
    with pytest.raises(SutureError) as error:
        verify(world)
    assert (error.value.code, error.value.where) == ("audit.broken", place)


def test_a_log_that_was_cut_or_rewritten_differs_from_what_was_noted(world):
    noted = verify(world)
    change(world, "DELETE FROM audit WHERE id = :id", id=noted.id)
    verify(world)
    with pytest.raises(SutureError, match="later ones were removed"):
        verify(world, noted)
    world.operator.post("/v1/parties", {"name": "west"})
    with pytest.raises(SutureError, match="written anew"):
        verify(world, noted)


def test_a_head_that_no_log_has_had_is_not_among_its_entries(world):
    verify(world, chain.Head(0, "0" * 64))  # as an empty log has it
    with pytest.raises(SutureError, match="no log begins"):
        verify(world, chain.Head(0, "1" * 64))


def test_writers_at_once_make_one_chain(world):
    def add(index):
        world.operator.post("/v1/parties", {"name": f"party-{index}"}).raise_for_status()

    before = verify(world).id
    threads = [threading.Thread(target=add, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(world).id == before + 8


def test_an_auditor_reads_what_concerns_its_party(world):
    world.north.publish("north/digits").raise_for_status()
    world.south.publish("south/digits").raise_for_status()
    assert world.north.get("/v1/audit").status_code == 403
    seen = world.actor("north", "auditor").get("/v1/audit").json()["items"]
    assert {entry["owner"] for entry in seen} == {"north"}
    assert seen[0]["id"] > seen[-1]["id"]
    assert seen[-1]["actor"] == chain.OPERATOR
    everything = world.actor("operators", "operator", "auditor")
    assert {entry["owner"] for entry in everything.get("/v1/audit").json()["items"]} >= {"north", "south"}
    only = everything.get("/v1/audit?action=model.commit&limit=1").json()
    assert [entry["what"] for entry in only["items"]] == ["south/digits"]
    rest = everything.get(f"/v1/audit?action=model.commit&cursor={only['next']}").json()
    assert [entry["what"] for entry in rest["items"]] == ["north/digits"]
