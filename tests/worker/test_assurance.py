"""Trust or noise: a rule says which, or is not in force; and the rules in force are those of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.errors import SutureError
from suture_contract.kinds import CANDIDATES, STITCHES
from suture_contract.privacy import Privacy
from suture_worker.agent.admission import Admission
from suture_worker.check import _policy
from suture_worker.compute.work import work
from suture_worker.config import load_site, refreshed
from suture_worker.egress.outbox import Outbox
from suture_worker.egress.release_check import ReleaseCheck
from suture_worker.folder import Outcome
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.explain import explain
from suture_worker.rules.in_force import InForce, rules_in_force
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import Allow, Decline, decide

GATE = ReleaseCheck(min_samples=11, min_per_class=11, decimals=4)
TRUSTING = 'members_from = ["north", "south"]\nsigned_by = ["tests"]\n'
NOISY = "epsilon = 4.0\ndelta = 1e-5\n"


def edit(site, rule, party=None):
    """Write the site anew, with one rule of north for `patches`; return what its site.toml says now."""
    first = site.path.with_suffix(".first")
    if not first.exists():
        first.write_text(site.path.read_text())
    text = first.read_text().split("\n[[policy.allow]]")[0]
    allow = '\n[[policy.allow]]\nparties = ["north"]\nactions = ["fit", "evaluate"]\ndatasets = ["patches"]\n'
    text = text.replace('device = "cpu"', f'device = "cpu"\nparty = "{party}"') if party else text
    site.path.write_text(text + allow + rule)
    return load_site(site.path)


def asking(site):
    return explain(site, party="north", action="fit", dataset="patches")


@pytest.mark.parametrize("rule", ["", 'members_from = ["north", "south"]\n', 'signed_by = ["tests"]\n'])
def test_a_rule_with_neither_is_not_in_force_and_says_why(site, make, rule):
    site = edit(site, rule)
    for kind in ("fit", "evaluate", "match", "compose"):
        assert isinstance(decide(LeasedTask.parse(make.leased(kind)), site), Decline)
    found = asking(site)
    assert (found.outcome, found.told, found.assurance) == ("declined", "policy.denied", None)
    assert "policy.allow[0] is not in force: it says neither whose models it trusts" in found.why[0]
    assert "epsilon = 8" in found.why[0]
    assert "members_from" in found.why[0]
    (failed,) = [check for check in _policy(site) if not check.ok]
    assert failed.name == "policy.allow[0]"
    assert failed.detail.count(". ") == 1, "two sentences"
    assert "signed_by" in failed.hint
    with pytest.raises(SutureError, match="not in force"):
        InForce(site, []).refresh()
    assert "not in force" in rules_in_force(site.state).problem


@pytest.mark.parametrize(
    ("rule", "party", "holds", "words"),
    [
        (TRUSTING, None, "trust", "trust: exact, with models of north or south signed by tests"),
        (NOISY, None, "noise", "noise, epsilon 4 and delta 1e-05 spent for one patient and job"),
        (TRUSTING + NOISY, None, "noise", "only models of north or south signed by tests are run"),
        ('members_from = ["north"]\n', "north", "own", "your own party, alone"),
    ],
)
def test_what_holds_is_explained(site, rule, party, holds, words):
    found = asking(edit(site, rule, party))
    assert (found.outcome, found.assurance) == ("automatic", holds)
    assert any(words in line for line in found.why)


def test_models_of_the_own_party_need_no_key_and_those_of_others_do(site, make):
    site = edit(site, 'members_from = ["south"]\nsigned_by = ["tests"]\n', party="north")
    task = LeasedTask.parse(make.leased("fit"))
    assert isinstance(decide(task, site, signers=(None, "tests")), Allow)
    assert isinstance(decide(task, site, signers=("tests", None)), Decline)
    assert isinstance(decide(task, edit(site, TRUSTING), signers=(None, "tests")), Decline), "no own party is named"


def test_what_a_rule_asks_for_reaches_the_fit_and_is_told(site, data, assign, quick, make):
    """Under noise and under trust: from the rule by way of a child to the document that leaves, and to the ledger."""
    noisy = edit(site, NOISY)
    admission, ledger = Admission(noisy), Ledger(site.state / "ledger.jsonl")
    folder = assign("fit", options=quick)
    task = folder.assignment.task
    assert isinstance(admission.admit(task, folder), Allow)
    assert work(noisy, folder.id) == "done", folder.log.read_text()
    drafts = {draft.name: draft for draft in GATE.check(task, folder)}
    told = CandidateSet.model_validate_json(drafts[CANDIDATES].content)
    assert (told.privacy, told.trusted) == (Privacy(epsilon=4, delta=1e-5), None)
    assert admission.spend(task, folder) is None
    assert admission.spend(task, folder) is None, "the same result spends once"
    (entry,) = ledger.entries()
    assert (entry.job, entry.action, entry.epsilon, entry.share) == (task.job.id, "fit", 4, 0.75)

    given = {
        name: Path(draft.content).read_bytes() if isinstance(draft.content, Path) else draft.content
        for name, draft in drafts.items()
    }
    files = {name: given[name] for name in (CANDIDATES, STITCHES)}
    measured = assign("evaluate", files=files)
    asked = measured.assignment.task
    assert isinstance(admission.admit(asked, measured), Allow)
    assert work(noisy, measured.id) == "done", measured.log.read_text()
    (document,) = GATE.check(asked, measured)
    found = Evaluation.model_validate(json.loads(document.content)["document"])
    assert found.privacy == Privacy(epsilon=4, delta=1e-5)
    assert admission.spend(asked, measured) is None
    assert sum(entry.share or 0 for entry in ledger.entries()) == 1
    # Another draw of the same would spend more than there is.
    document = measured.results / "document.json"
    document.write_text(document.read_text().replace('"value":', '"value": ', 1))
    refused = admission.spend(asked, measured)
    assert isinstance(refused, Decline)
    assert "the job's account of noise is spent" in refused.reason

    # What was done on other terms than those in force does not leave.
    admission.use(edit(site, TRUSTING))
    folder.finish(Outcome(state="done"))
    declined = admission.admit(task, folder)
    assert isinstance(declined, Decline)
    assert "other terms" in declined.reason


def test_an_exact_fit_names_whom_it_trusts(site, data, assign, quick, make):
    site = edit(site, TRUSTING)
    folder = assign("fit", options=quick)
    task = folder.assignment.task
    assert isinstance(Admission(site).admit(task, folder), Allow)
    assert folder.terms.trusted == make.TRUSTED
    assert work(site, folder.id) == "done", folder.log.read_text()
    drafts = {draft.name: draft for draft in GATE.check(task, folder)}
    assert CandidateSet.model_validate_json(drafts[CANDIDATES].content).trusted == make.TRUSTED
    # A child cannot say it was trusted, nor that there was noise.
    path = folder.results / CANDIDATES
    honest = json.loads(path.read_text())
    for lie in ({"trusted": [{"party": "north"}]}, {"privacy": {"epsilon": 1.0, "delta": 1e-5}}):
        path.write_text(json.dumps({**honest, **lie}))
        with pytest.raises(SutureError) as caught:
            GATE.check(task, folder)
        assert caught.value.code == "outbox.refused"


# The rules in force


def test_an_edited_file_is_in_force_at_once_and_a_bad_one_stops(site):
    before = edit(site, TRUSTING)
    used = []
    rules = InForce(before, [used.append])
    rules.refresh()
    assert used == [before]
    assert refreshed(before) is before
    site.path.write_text(site.path.read_text().replace("min_samples = 11", "min_samples = twelve"))
    with pytest.raises(SutureError) as caught:
        rules.refresh()
    assert caught.value.code == "site.not_toml"
    assert rules_in_force(site.state).version == before.version
    assert rules_in_force(site.state).problem
    assert used == [before], "nothing goes by a file that is not in order"
    after = edit(site, NOISY)
    rules.refresh()
    assert used[-1].policy.allow == after.policy.allow
    assert (rules_in_force(site.state).version, rules_in_force(site.state).problem) == (after.version, None)
    assert asking(after).in_force.version == after.version


def test_what_needs_a_new_start_leases_nothing_until_then(site):
    before = edit(site, TRUSTING)
    site.path.write_text(site.path.read_text().replace("http://127.0.0.1:9", "http://127.0.0.1:8"))
    with pytest.raises(SutureError) as caught:
        refreshed(before)
    assert caught.value.code == "site.restart"
    assert "[hub]" in caught.value.message


def test_the_log_says_by_which_rules_a_message_left(site, make):
    site = edit(site, TRUSTING)
    outbox = Outbox(site.state / "outbox", min_samples=11)
    outbox.use(site)
    outbox.decline(LeasedTask.parse(make.leased("fit")), "policy.denied")
    outbox.close()
    from suture_worker.egress.log import verify

    assert [entry.rules for entry in verify(site.state / "outbox" / "egress.jsonl")] == [site.version.sha256]
