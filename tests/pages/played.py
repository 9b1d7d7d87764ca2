"""A hub on which something has happened: models of three parties, a lineage, jobs in several states, a withdrawal."""

from __future__ import annotations

import json
from typing import Any

from tests.service.conftest import World, metadata_of
from tests.stitching.reports import report

CARD = """---
license: apache-2.0
tags: [digits]
---
# north/digits

Reads **handwritten digits** from 4 by 4 pictures.

| metric | value |
|---|---:|
| accuracy | 0.91 |

| hospital | patients | images | sensitivity | specificity | area under the curve | calibration error |
|---|---|---|---|---|---|---|
| north | 1203 | 20331 | 0.91 | 0.88 | 0.93 | 0.02 |

    import suture; print(suture.Hub().load("north/digits")(torch.zeros(1, 1, 4, 4)).softmax(1).argmax().item())

## Limitations

Trained on one scanner only; see [the description](suture.json) and the [method](https://example.org/method).
"""
LONG = "a_file_whose_name_is_as_long_as_those_that_scanners_write_20240131_1200.json"
DESCRIPTION = "Reads handwritten digits from small pictures of one scanner, at two resolutions."


def play(world: World) -> dict[str, Any]:
    """Fill a hub; return the ids of what is there, and who may sign in."""
    everything = ("admin", "publisher", "requester", "steward", "auditor")
    people = {
        "north": world.actor("north", *everything),
        "south": world.actor("south", *everything),
        "reader": world.actor("north"),
        "operator": world.actor("operators", "operator", "admin", "auditor"),
    }
    north, south = people["north"], people["south"]
    content = metadata_of(description=DESCRIPTION, training_data={"n": 1200, "description": "One scanner."})
    for repo, party, card in (("north/digits", north, CARD.encode()), ("south/digits", south, None)):
        model = world.model(seed=ord(repo[0]))
        assert party.publish(repo, model=model, metadata=content, card=card).status_code == 201
    world._published |= {"north", "south"}
    assert world.east.publish("east/reader", visibility="all").status_code == 201
    assert world.east.post("/v1/models/east/reader/access").status_code in (409, 422)
    assert world.east("PATCH", "/v1/models/east/reader", json={"gated": "manual"}).status_code == 200
    assert south("PATCH", "/v1/models/south/digits", json={"gated": "manual"}).status_code == 200
    assert north.post("/v1/models/south/digits/access", {"reason": "to stitch it with ours"}).status_code == 201
    accepted = {"state": "accepted", "answer": "gladly", "days": 90}
    assert south("PUT", "/v1/models/south/digits/access/north", json=accepted).status_code == 200
    assert people["operator"].post("/v1/models/south/digits/access", {"reason": "to look"}).status_code == 201
    _protocols(north)
    done = world.ask(publish_as="both").json()
    world.fit()
    for party in ("north", "south"):
        world.evaluate(party)
    task = world.sites["north"].lease()
    made = json.loads(report(chosen="c03").model_dump_json(by_alias=True, exclude_none=True)) | {
        "lineage": {"job": done["id"], "members": _members(task)}
    }
    world.put_composed(task, report=made, lineage={"candidate": "c03"}, card=b"# north/both\n\nStitched.\n")
    assert world.sites["north"].tell(task, "result", document={"chosen": "c03"}).status_code == 200
    at_work = world.ask(publish_as="next").json()
    leased = world.sites["north"].lease()
    told = {"step": "moments", "done": 12, "total": 40, "seconds_left": 95.0}
    assert world.sites["north"].tell(leased, "progress", **told).status_code == 200
    queued = world.ask(publish_as="later").json()
    cancelled = world.ask(publish_as="never").json()
    assert world.north.post(f"/v1/jobs/{cancelled['id']}/cancel").status_code == 200
    return {"people": people, "done": done["id"], "at_work": at_work["id"], "queued": queued["id"], "task": leased}


def _protocols(north: Any) -> None:
    """A repository without a model, with a name of a file such as scanners write them."""
    assert north.post("/api/repos/create", {"name": "protocols"}).status_code == 200
    file = {"path": f"mr/{LONG}", "content": "e30=", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "Add a protocol"}}, {"key": "file", "value": file}]
    content = "\n".join(map(json.dumps, lines)).encode()
    assert north("POST", "/api/models/north/protocols/commit/main", content=content).status_code == 200


def _members(task: Any) -> list[dict[str, str]]:
    return [{key: member[key] for key in ("repo", "revision", "sha256")} for member in task["spec"]["members"]]
