"""A party contributes moments to another's fit, and one declines: the whole way with real processes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from tests.flow.test_flow import MODELS, QUICK, SECONDS

from suture.hub import Hub
from suture_local import digits
from suture_local.installation import Installation
from suture_local.story import PartyData
from suture_stitching.fitting.contribute import Contribution

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.flow
RULE = """
[[policy.allow]]
parties = ["north"]
actions = ["contribute"]
datasets = ["digits"]
min_samples = 50
contributions_per_month = 1
epsilon = 8
delta = 1e-5
"""


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, PartyData], exported: dict[str, Path]
) -> Iterator[Installation]:
    """North may ask south, and nobody may ask east."""
    root = tmp_path_factory.mktemp("contributing")
    with Installation(root) as here:
        here.start_hub()
        allow: dict[str, dict[str, list[str]]] = {"north": {"north": ["fit", "evaluate"]}, "south": {}, "east": {}}
        for party in allow:
            here.add_party(party)
        for party, rules in allow.items():
            path = root / party / "data" / "digits.npz"
            digits.save(path, data["south" if party == "east" else party])
            dataset = digits.described(path)
            file = here.add_site(party, {"digits": dataset}, allow=rules, limits={"threads": 1})
            if party == "south":
                file.write_text(file.read_text() + RULE)
            here.start_site(party)
        here.wait_until_ready()
        for party in digits.PARTIES:
            hub, key = Hub(here.url, here.token(party)), here.signing_key(party)
            hub.publish_file(exported[party], f"{party}/digits", key=key, visibility="all", show=lambda _: None)
        here.wait_until_online(*allow)
        yield here


def test_one_contributes_one_declines_and_the_fit_goes_on(here: Installation) -> None:
    north = Hub(here.url, here.token("north"))
    job = north.stitch(
        MODELS, "digits", contribute_from=["south", "east"], publish_as="both", evaluate_within=SECONDS, **QUICK
    )
    status = job.wait(SECONDS, progress=False)
    assert status.state == "complete"
    assert [(task.kind, task.party, task.state) for task in status.tasks] == [
        ("match", "north", "done"),
        ("contribute", "south", "done"),
        ("contribute", "east", "declined"),
        ("fit", "north", "done"),
        ("evaluate", "north", "done"),
        ("compose", "north", "done"),
    ]

    report = job.report()
    assert report.contributions is not None
    (south,) = report.contributions
    assert (south.party, south.epsilon, south.delta) == ("south", 8, 1e-5)
    assert sum("of the moments from others" in candidate.label for candidate in report.candidates) >= 3

    # What left south is what its log says, byte for byte: one file of moments, and how many samples they are of.
    outbox = here.site_file("south").parent / "state" / "outbox"
    left = [json.loads(line) for line in (outbox / "egress.jsonl").read_text().splitlines()]
    assert {entry["kind"] for entry in left} == {"progress", "file", "result"}
    (file,) = [entry for entry in left if entry["kind"] == "file"]
    kept = outbox / "documents" / file["sha256"]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == file["sha256"]
    contribution = Contribution.load(kept)
    assert dict(contribution.described.n) == dict(south.n)
    assert contribution.described.privacy is not None
    ledger = [json.loads(line) for line in (here.site_file("south").parent / "state/ledger.jsonl").read_text().split()]
    assert [(entry["action"], entry["epsilon"]) for entry in ledger] == [("contribute", 8)]
