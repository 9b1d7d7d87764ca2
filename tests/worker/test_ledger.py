"""The account of evaluations: each task once, whatever happens, and none for free."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime

import pytest

from suture_contract.errors import SutureError
from suture_worker.agent.admission import Admission
from suture_worker.config import Rule
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.ledger import Ledger
from suture_worker.rules.policy import Allow, Decline


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def task(make):
    def of(number=1, **changes):
        return LeasedTask.parse({**make.leased("evaluate", requester="south"), "id": f"task_{number}", **changes})

    return of


def test_a_task_is_counted_once_however_often_it_is_attempted(ledger, task):
    for attempt in (1, 2, 3):
        ledger.charge(task(attempt=attempt, fence=attempt), "patches")
    assert ledger.used("south", "patches") == 1
    assert ledger.used("south", "patches", apart_from=task().digest) == 0
    ledger.charge(task(2), "patches")
    assert ledger.used("south", "patches") == 2


def test_a_task_that_comes_again_with_other_content_is_another_one(ledger, task, make):
    ledger.charge(task(), "patches")
    others = {"sha256": "b" * 64, "size": 10}
    changed = make.leased("evaluate", requester="south", candidates={**make.FILES, "candidates.json": others})
    ledger.charge(LeasedTask.parse({**changed, "id": "task_1"}), "patches")
    assert ledger.used("south", "patches") == 2


def test_party_dataset_and_month_have_their_own_budgets(ledger, task):
    ledger.charge(task(), "patches")
    assert ledger.used("south", "other") == ledger.used("north", "patches") == 0
    (entry,) = ledger.entries()
    line = ledger.path.read_text()
    ledger.path.write_text(line.replace(entry.time.strftime("%Y-%m"), "2001-01", 1))
    assert ledger.used("south", "patches") == 0
    assert ledger.used("south", "patches", now=datetime(2001, 1, 31, 23, 59, tzinfo=UTC)) == 1


def test_a_line_cut_short_by_a_crash_counts_nothing_and_the_next_one_is_whole(ledger, task):
    ledger.charge(task(1), "patches")
    whole = ledger.path.read_bytes()
    ledger.charge(task(2), "patches")
    for length in range(len(whole), len(ledger.path.read_bytes())):
        ledger.path.write_bytes((whole * 2)[:length])
        assert ledger.used("south", "patches") == 1
    ledger.charge(task(3), "patches")
    assert [entry.task for entry in ledger.entries()] == ["task_1", "task_3"]


def test_a_full_disk_charges_nothing(ledger, task, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(OSError, match="disk is full"):
        ledger.charge(task(), "patches")
    monkeypatch.undo()
    assert ledger.entries() == []


def test_fits_with_noise_are_counted_by_what_was_told(ledger, make):
    terms = Terms(min_samples=11, epsilon=1, delta=1e-5)
    first, second = (
        LeasedTask.parse(
            {**make.leased("fit"), "id": f"task_{number}", "job": {"id": f"job_{number}", "requester": "south"}}
        )
        for number in (1, 2)
    )
    for _ in range(2):
        ledger.spend(first, "patches", terms, "a" * 64)
    assert ledger.used("south", "patches", action="fit") == 1
    assert ledger.used("south", "patches", action="fit", apart_from=first.digest) == 0
    ledger.spend(second, "patches", terms, "b" * 64)
    assert ledger.used("south", "patches", action="fit") == 2
    assert ledger.used("south", "patches") == 0, "no evaluation"


@pytest.fixture
def admission(site, portable):
    """The site's decisions where `south` may have one evaluation a month, and a folder with a task's models."""
    rule = Rule(
        parties=("south",), actions=("evaluate",), datasets=("patches",), epsilon=1, delta=1e-5, evaluations_per_month=1
    )
    policy = site.policy.model_copy(update={"allow": (rule,)})
    found = Admission(site.model_copy(update={"policy": policy}))

    def admit(task):
        folder = TaskFolder(site.state / "tasks", task.id)
        folder.create(Assignment(task=task, dataset="patches"))
        folder.note_terms(Terms(min_samples=11))
        for index, path in enumerate(portable):
            folder.member(index).write_bytes(path.read_bytes())
        return found.admit(task, folder)

    return found, admit


def test_a_budget_that_is_used_up_looks_like_no_rule(admission, task):
    decide, admit = admission[0].decide, admission[1]
    assert isinstance(admit(task(1)), Allow)
    assert isinstance(admit(task(1, attempt=2, fence=2)), Allow), "the same task, once more"
    decision = decide(task(2))
    assert isinstance(decision, Decline)
    assert decision.code == "policy.denied"
    assert "1 of 1 evaluations" in decision.reason


def test_two_tasks_at_the_same_time_do_not_share_the_last_evaluation(admission, task):
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(admission[1](task(n)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(decision, Allow) for decision in found) == 1


def test_questions_of_one_party_leave_room_for_those_of_others(admission, site, task, make, monkeypatch):
    monkeypatch.setattr("suture_worker.agent.admission.MAX_ASKED", 2)
    monkeypatch.setattr("suture_worker.agent.admission.estimate", lambda _: None)
    found, admit = admission
    rule = Rule(
        parties=("south", "north"), actions=("evaluate",), datasets=("patches",), epsilon=1, delta=1e-5, approval="ask"
    )
    found.use(site.model_copy(update={"policy": site.policy.model_copy(update={"allow": (rule,)})}))
    assert [admit(task(number)) for number in (1, 2)] == [None, None]
    declined = admit(task(3))
    assert isinstance(declined, Decline)
    assert declined.reason == "2 questions of south are waiting for the operator"
    assert admit(task(4, job={"id": "job_4", "requester": "north"})) is None


def test_when_nobody_knows_what_was_spent_nothing_is_given(admission, task, site):
    (site.state / "ledger.jsonl").write_text("PATIENT\n")
    with pytest.raises(SutureError) as caught:
        Ledger(site.state / "ledger.jsonl").used("south", "patches")
    assert caught.value.code == "ledger.damaged"
    decision = admission[0].decide(task())
    assert isinstance(decision, Decline)
    assert decision.code == "policy.denied"
