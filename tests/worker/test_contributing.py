"""What a site contributes to another's fit: only by a rule of its own, as that rule asks, each time on the account."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from suture_contract.documents import CandidateSet
from suture_contract.errors import SutureError
from suture_stitching.fitting.contribute import Contribution
from suture_worker.agent.admission import Admission
from suture_worker.compute.preview import estimate
from suture_worker.compute.work import work
from suture_worker.config import PolicyConfig, Rule
from suture_worker.egress.release_check import ReleaseCheck
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.explain import explain
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import Allow, Decline, decide

GATE = ReleaseCheck(min_samples=11, min_per_class=11, decimals=4)
TRUST = {"members_from": ("north", "south", "east"), "signed_by": ("tests",)}
NOISE = {"epsilon": 2.0, "delta": 1e-5}


def allowing(site, *rules, **policy):
    """The site with these rules, each of which lets south ask for contributions of `patches`."""
    made = [
        Rule(**{"parties": ("south",), "actions": ("contribute",), "datasets": ("patches",), **(TRUST | rule)})
        for rule in rules
    ]
    return site.model_copy(update={"policy": PolicyConfig(allow=tuple(made), **policy)})


@pytest.fixture
def task(make):
    def of(**changes):
        return LeasedTask.parse({**make.leased("contribute", requester="south"), **changes})

    return of


# Rules


def test_no_other_rule_lets_anything_be_contributed(site, task, make):
    assert decide(task(), site).code == "policy.denied"
    everything = allowing(site, {"actions": ("fit", "evaluate")})
    assert decide(task(), everything).code == "policy.denied"
    allowed = allowing(site, {})
    assert isinstance(decide(task(), allowed), Allow)
    for kind in ("match", "fit", "evaluate", "compose"):
        assert isinstance(decide(LeasedTask.parse(make.leased(kind, requester="south")), allowed), Decline)
    other = LeasedTask.parse(make.leased("contribute", requester="south", dataset="other"))
    assert decide(other, allowed).code == "dataset.unknown"


def test_where_models_can_be_joined_is_found_by_whom_may_fit(site, make):
    found = LeasedTask.parse(make.leased("match"))
    assert isinstance(decide(found, site), Allow)
    assert decide(found, allowing(site, {"parties": ("north",)})).code == "policy.denied"


def test_the_first_rule_that_holds_says_what_is_asked(site, assign, make):
    folder = assign("contribute", requester="south")
    site = allowing(site, {"members_from": ("east",)}, {"min_samples": 50, **NOISE}, {}, min_samples=20)
    admission = Admission(site)
    assert isinstance(admission.admit(folder.assignment.task, folder), Allow)
    assert folder.terms == Terms(min_samples=50, **NOISE)
    assert isinstance(Admission(allowing(site, {})).admit(folder.assignment.task, folder), Allow)
    assert folder.terms == Terms(min_samples=11, trusted=make.TRUSTED)


def test_every_lease_of_a_contribution_is_spent(site, assign, task):
    site = allowing(site, {"contributions_per_month": 2, **NOISE})
    folder = assign("contribute", requester="south")
    ledger = Ledger(site.state / "ledger.jsonl")
    admission = Admission(site)
    asked = folder.assignment.task
    for _ in range(2):
        assert isinstance(admission.admit(asked, folder), Allow)
    assert ledger.used("south", "patches", action="contribute") == 1
    assert ledger.used("south", "patches") == 0, "no evaluation"
    assert [(entry.epsilon, entry.delta) for entry in ledger.entries()] == [(2.0, 1e-5)]
    again = asked.model_copy(update={"fence": 2})
    assert isinstance(admission.admit(again, folder), Allow)
    assert isinstance(admission.admit(again, folder), Allow)
    declined = admission.admit(asked.model_copy(update={"fence": 3}), folder)
    assert isinstance(declined, Decline)
    assert "2 of 2 contributions of this month are used" in declined.reason


def test_what_would_happen_is_explained(site):
    site = allowing(site, {"contributions_per_month": 3, "min_samples": 80, "approval": "ask", **NOISE})
    found = explain(site, party="south", action="contribute", dataset="patches")
    assert (found.outcome, found.left, found.told) == ("waits for approval", 3, "waiting for approval")
    assert "3 of 3 contributions are left this month" in found.why
    assert "fewer than 80 patients, with noise: epsilon 2, delta 1e-05" in found.why[-1]
    silent = site.model_copy(update={"policy": site.policy.model_copy(update={"disclose_refusals": False})})
    refused = explain(silent, party="north", action="contribute", dataset="patches")
    assert (refused.outcome, refused.told) == ("declined", "nothing: it looks as if there were no answer")


# The work


def matched(site, assign, quick):
    folder = assign("match", options=quick)
    assert work(site, folder.id) == "done", folder.log.read_text()
    (draft,) = GATE.check(folder.assignment.task, folder)
    return json.loads(draft.content)["document"]


def contributed(site, folder, **terms):
    folder.note_terms(Terms(**{"min_samples": 11, **terms}))
    assert work(site, folder.id) == "done", folder.log.read_text()
    file, document = GATE.check(folder.assignment.task, folder)
    return file, json.loads(document.content)["document"]


@pytest.mark.timeout(120)
def test_the_whole_way_at_the_sites(site, data, assign, make, members, quick):
    where = matched(site, assign, quick)
    assert where.keys() == {"n", "patients", "placements", "norms"}
    assert all(norm == float(f"{norm:.3g}") for norm in where["norms"])
    asked = {"requester": "south", "placements": where["placements"], "norms": where["norms"]}
    folder = assign("contribute", **asked)

    # What the operator is shown before is what leaves then.
    admission = Admission(allowing(site, {"approval": "ask", **NOISE}))
    assert admission.admit(folder.assignment.task, folder) is None
    (request,) = admission.inbox.requests()
    assert (request.party, request.action, request.dataset) == ("south", "contribute", "patches")
    takes = request.estimate
    assert any(f"features: {takes.numbers} numbers" in line for line in request.leaves)
    assert "with noise: epsilon 2, delta 1e-05 for each patient and contribution" in request.leaves[-1]
    assert Ledger(site.state / "ledger.jsonl").entries() == []
    admission.inbox.decide(request, approved=True)
    assert isinstance(admission.admit(folder.assignment.task, folder), Allow)
    assert folder.terms == Terms(min_samples=11, **NOISE)
    file, document = contributed(site, folder)
    found = Contribution.load(file.content)
    counts = dict(found.described.n)
    assert (file.name, document) == ("moments.safetensors", {"n": counts, "patients": counts})
    assert takes.features == tuple(
        next(len(one.mean) for (place, _, _), one in found.moments.items() if place == index)
        for index in range(len(where["placements"]))
    )
    header = int.from_bytes(file.content.read_bytes()[:8], "little")
    assert 4 * takes.numbers == file.size - 8 - header
    assert found.described.n["train"] + found.described.n["validation"] < 120
    assert found.norms() == pytest.approx(where["norms"], rel=0.01), "the same data here"

    given = file.content.read_bytes()
    ref = {"sha256": hashlib.sha256(given).hexdigest(), "size": len(given), **document}
    spoilt = {**ref, "n": {"train": 1, "validation": 1}}
    fit = assign(
        "fit",
        options=quick,
        contributions={"south": ref, "east": spoilt, "west": ref},
        files={"moments.south": given, "moments.east": given, "moments.west": given[:-4]},
    )
    assert work(site, fit.id) == "done", fit.log.read_text()
    drafts = GATE.check(fit.assignment.task, fit)
    candidates = CandidateSet.model_validate_json(drafts[0].content)
    assert [(one.party, dict(one.n)) for one in candidates.contributions] == [("south", document["n"])]
    assert {one.others for one in candidates.candidates} == {None, 0.25, 0.5, 0.75}
    log = fit.log.read_text()
    assert "the contribution of east is left out" in log
    assert "the contribution of west is left out" in log


@pytest.mark.timeout(120)
def test_noise_is_what_the_rule_says_and_few_samples_stay(site, data, assign, quick):
    where = matched(site, assign, quick)
    asked = {"requester": "south", "placements": where["placements"], "norms": where["norms"]}
    file, document = contributed(site, assign("contribute", **asked), **NOISE)
    assert {name: document[name] for name in NOISE} == NOISE
    privacy = Contribution.load(file.content).described.privacy
    assert (privacy.epsilon, privacy.delta, list(privacy.clips)) == (2.0, 1e-5, where["norms"])
    folder = assign("contribute", **asked)
    folder.note_terms(Terms(min_samples=1000))
    assert work(site, folder.id) == "declined"
    assert folder.outcome.code == "policy.too_few_samples"
    assert not (folder.results / "moments.safetensors").exists()


def test_a_place_that_no_model_has_is_the_asker_s_fault(site, data, assign):
    folder = assign("contribute", requester="south", placements=[{"0": "n999", "1": "n5"}], norms=[1.0])
    folder.note_terms(Terms(min_samples=11))
    assert work(site, folder.id) == "failed"
    assert folder.outcome.code == "moments.placements"
    assert estimate(folder) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"placements": [], "norms": []},
        {"norms": [1.0, 1.0]},
        {"norms": [math.inf]},
        {"norms": [0.0]},
        {"placements": [{"0": "n4", "7": "n5"}]},
        {"placements": [{"0": "n4"}]},
        {"placements": [{"0": "n4", "1": "os.system"}]},
    ],
)
def test_what_is_asked_is_checked_before_anything_acts_on_it(make, spec):
    with pytest.raises(SutureError) as caught:
        LeasedTask.parse(make.leased("contribute", requester="south", **spec))
    assert caught.value.code == "task.invalid"
    assert isinstance(Assignment(task=LeasedTask.parse(make.leased("contribute"))), Assignment)


def test_the_folder_keeps_the_terms_where_no_child_can_write(site, assign):
    folder = assign("contribute", requester="south")
    folder.note_terms(Terms(min_samples=11))
    assert TaskFolder(folder.path.parent, folder.id).terms == Terms(min_samples=11)
    assert (folder.path / "terms.json").parent not in (folder.results, folder.scratch, folder.checkpoint)
