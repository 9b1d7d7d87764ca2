"""The whole way with real processes: publish, ask, contribute, fit, evaluate, compose, pull; on PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from suture.errors import NotFound
from suture.job import JobFailed
from suture_contract.documents import Evaluation
from suture_contract.errors import Cancelled
from suture_contract.files import write_text
from suture_stitching.fitting.contribute import Contribution

if TYPE_CHECKING:
    from pathlib import Path

    from tests.flow.conftest import Place

    from suture_local.story import PartyData

pytestmark = pytest.mark.flow
MODELS = ["north/digits", "south/digits"]
SECONDS = 240
#: A fit that is over soon: what is fitted well is tested with the engine.
QUICK: dict[str, Any] = {"alphas": [0.5], "max_matches": 2, "refine_candidates": 1, "refine_steps": 20}
#: What south allows in the end.
CONTRIBUTING = """
[[policy.allow]]
parties = ["north"]
actions = ["contribute"]
datasets = ["digits"]
min_samples = 50
contributions_per_month = 1
epsilon = 8
delta = 1e-5
"""


def egress_of(state: Path) -> list[dict[str, Any]]:
    """What left a site, by its log."""
    return [json.loads(line) for line in (state / "outbox" / "egress.jsonl").read_text().splitlines()]


def test_two_parties_get_an_ensemble_and_its_report(
    place: Place, data: dict[str, PartyData], exported: dict[str, Path], tmp_path: Path
) -> None:
    north = place.hubs["north"]
    job = north.stitch(MODELS, "digits", ["south"], publish_as="both", evaluate_within=SECONDS, **QUICK)
    status = job.wait(SECONDS, progress=False)
    assert status.state == "complete"
    assert status.missing == ()
    assert status.result is not None
    assert {(task.kind, task.party, task.state) for task in status.tasks} == {
        ("fit", "north", "done"),
        ("evaluate", "north", "done"),
        ("evaluate", "south", "done"),
        ("compose", "north", "done"),
    }
    kinds = [event.kind for event in job.events()]
    assert {"job", "task", "progress"} <= set(kinds)

    revision = north.pull("north/both", tmp_path / "both")
    assert revision.id == status.result.revision
    assert revision.job == job.id
    lineage = revision.metadata.lineage
    assert lineage is not None
    assert (lineage.job, lineage.requester) == (job.id, "north")
    assert lineage.members == status.models
    assert north.verify_lineage(revision) == []

    report = north.report("north/both")
    assert report == job.report()
    assert report.lineage.members == lineage.members
    for party, images in data.items():
        column = report.parties[party]
        peer = next(repo for repo in MODELS if not repo.startswith(party))
        assert set(column.rows) == {"chosen", "own", f"peer:{peer}", "ensemble", "routed", "stitched"}
        assert column.n == (images.split == "test").sum()
        assert all(row.low <= row.value <= row.high for row in column.rows.values())
        assert column.verdict in ("adopt", "care", "reject")
    assert report.chosen == lineage.candidate
    assert any(candidate.front for candidate in report.candidates)

    # The report says of the stitched ensemble what the pulled file does.
    model = north.load("north/both")
    for party, images in data.items():
        test = images.split == "test"
        with torch.no_grad():
            probabilities = model(torch.from_numpy(images.inputs[test]))
        torch.testing.assert_close(probabilities.sum(1), torch.ones(len(probabilities)))
        labels = torch.tensor([int(label) for label in revision.metadata.labels or ()])
        right = labels[probabilities.argmax(1)] == torch.from_numpy(images.labels[test])
        kind = next(candidate.kind for candidate in report.candidates if candidate.id == report.chosen)
        assert right.double().mean().item() == pytest.approx(report.parties[party].rows[kind].value, abs=0.005)
    # It is a model like any other: the other party can read it, too, once it is shared.
    assert "both" in [model.id.partition("/")[2] for model in north.models()]


def test_only_numbers_left_the_other_site(place: Place) -> None:
    """After the test above: everything that left south is in its log, byte for byte, and is an evaluation."""
    state = place.here.site_file("south").parent / "state"
    left = egress_of(state)
    assert {entry["kind"] for entry in left} - {"progress"} == {"result"}
    (result,) = [entry for entry in left if entry["kind"] == "result"]
    body = (state / "outbox" / "documents" / result["sha256"]).read_bytes()
    assert hashlib.sha256(body).hexdigest() == result["sha256"]
    evaluation = Evaluation.model_validate(json.loads(body)["document"])
    assert set(evaluation.splits) == {"validation", "test"}
    assert not list((place.here.root / "hub").rglob("*.npz"))


def test_who_declines_and_who_is_away_is_named_as_missing(place: Place) -> None:
    job = place.hubs["north"].stitch(
        MODELS, "digits", ["south/other", "east"], publish_as="partly", evaluate_within=3, **QUICK
    )
    status = job.wait(SECONDS, progress=False)
    assert status.state == "partial"
    assert {(missing.party, missing.reason) for missing in status.missing} == {
        ("south", "declined"),
        ("east", "no_answer"),
    }
    report = place.hubs["north"].report("north/partly")
    assert set(report.parties) == {"north"}
    assert {(missing.party, missing.reason) for missing in report.missing} == {
        ("south", "declined"),
        ("east", "no_answer"),
    }


def test_a_dataset_the_site_does_not_know_fails_the_job_and_says_so(place: Place) -> None:
    job = place.hubs["north"].stitch(MODELS, "unknown", ["south"])
    with pytest.raises(JobFailed) as caught:
        job.wait(SECONDS, progress=False)
    assert caught.value.code == "dataset.unknown"
    assert job.status.result is None


def test_a_party_may_not_fit_where_the_site_does_not_allow_it(place: Place) -> None:
    job = place.hubs["south"].stitch(MODELS, "digits", ["north"])
    with pytest.raises(JobFailed) as caught:
        job.wait(SECONDS, progress=False)
    assert caught.value.code.startswith("policy.")


def test_a_cancelled_job_stops_and_the_site_goes_on(place: Place) -> None:
    north = place.hubs["north"]
    job = north.stitch(MODELS, "digits", [])
    for _event in job.events():
        if any(task.state == "leased" for task in job.refresh().tasks):
            break
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(SECONDS, progress=False)
    deadline = time.monotonic() + 120
    while {task.state for task in job.refresh().tasks} == {"leased"}:
        assert time.monotonic() < deadline, "the site hears of it at its next heartbeat"
        time.sleep(0.2)
    assert {task.state for task in job.status.tasks} == {"cancelled"}
    following = north.stitch(MODELS, "unknown", [])
    with pytest.raises(JobFailed):
        following.wait(SECONDS, progress=False)


def test_others_see_nothing_of_a_job(place: Place) -> None:
    """A party sees the jobs in which it was given a task, and no other."""
    jobs = place.hubs["north"].jobs()
    asked = [job.id for job in jobs if any(task.party == "east" for task in job.tasks)]
    (hidden, *_) = [job.id for job in jobs if job.id not in asked]
    with pytest.raises(NotFound):
        place.hubs["east"].job(hidden)
    assert [job.id for job in place.hubs["east"].jobs()] == asked


def test_one_contributes_one_declines_and_the_fit_goes_on(place: Place) -> None:
    """South's rule is written while its site runs; nobody may ask east, whose site starts only now."""
    here, north = place.here, place.hubs["north"]
    south_file = here.site_file("south")
    write_text(south_file, south_file.read_text() + CONTRIBUTING)
    here.start_site("east")
    here.wait_until_online("south", "east")
    job = north.stitch(
        MODELS, "digits", contribute_from=["south", "east"], publish_as="joined", evaluate_within=SECONDS, **QUICK
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
    state = south_file.parent / "state"
    (task,) = [task.id for task in status.tasks if (task.kind, task.party) == ("contribute", "south")]
    left = [entry for entry in egress_of(state) if entry["task"] == task]
    assert {entry["kind"] for entry in left} - {"progress"} == {"file", "result"}
    (file,) = [entry for entry in left if entry["kind"] == "file"]
    kept = state / "outbox" / "documents" / file["sha256"]
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == file["sha256"]
    contribution = Contribution.load(kept)
    assert dict(contribution.described.n) == dict(south.n)
    assert contribution.described.privacy is not None
    ledger = [json.loads(line) for line in (state / "ledger.jsonl").read_text().split()]
    assert [entry["epsilon"] for entry in ledger if entry["action"] == "contribute"] == [8]
