"""What the operator is asked and answers, at the command line."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from tests import cli_json
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.console.terminal import console
from suture_contract.errors import SutureError
from suture_worker.decisions import operator
from suture_worker.egress.held import Held
from suture_worker.egress.outbox import Outbox
from suture_worker.egress.release_check import Draft
from suture_worker.folder import TaskProgress
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.inbox import AskedModel, Estimate, Inbox, Request


@pytest.fixture
def task(make):
    return LeasedTask.parse(make.leased("evaluate", requester="south", dataset="patches"))


@pytest.fixture
def request_of(task):
    def make_request(**changes):
        models = tuple(
            AskedModel(**member.ref.model_dump(), party=member.party, size=3 * 2**20) for member in task.spec.members
        )
        content = {
            "task": task.id,
            "digest": task.digest,
            "asked_at": datetime.now(UTC),
            "party": "south",
            "action": "evaluate",
            "dataset": "patches",
            "job": "job_1",
            "models": models,
            "candidates": 4,
            "leaves": ("metrics",),
            "estimate": Estimate(flops_per_sample=2_000_000_000, peak_bytes=2**20, seconds_per_1000=12.3),
        }
        return Request(**{**content, **changes})

    return make_request


@pytest.fixture
def inbox(site, request_of):
    box = Inbox(site.state / "inbox")
    box.ask(request_of())
    return box


@pytest.fixture
def narrow(monkeypatch):
    """A function that makes the terminal so many columns wide."""

    def at(width):
        monkeypatch.setattr(type(console), "is_terminal", property(lambda _: True))
        monkeypatch.setattr(console, "_width", width)

    return at


@pytest.fixture
def suture(site, monkeypatch):
    monkeypatch.setattr(console, "_width", 240)

    def run(*arguments, code=0):
        ended = CliRunner().invoke(app, ["site", *arguments, str(site.path)])
        assert ended.exit_code == code, ended.output
        words = ["site", *arguments, str(site.path), "--format", "json"]
        if code == 0 and cli_json.prints_json(words):
            cli_json.checked(words, CliRunner().invoke(app, words).stdout)
        return re.sub(r"\s+", " ", ended.output)

    return run


def test_a_request_is_shown_whole(inbox, suture):
    assert "task_evaluate south evaluate patches north/net, south/net" in suture("inbox", "list")
    shown = suture("inbox", "show", "task_evaluate")
    assert "south asks to evaluate with patches" in shown
    assert "runs 4 candidates" in shown
    assert "2 GFLOPs per sample and pass, 1.0 MiB of memory for two samples, about 12 s per 1000 samples" in shown
    assert "would leave metrics" in shown
    assert "0" * 64 in shown
    assert "3.0 MiB" in shown


def test_an_answer_counts_for_exactly_what_was_asked(inbox, suture, task, make):
    assert inbox.answer(task, "patches") is None
    suture("inbox", "approve", "task_evaluate", "--reason", "agreed on Monday")
    decision = inbox.answer(task, "patches")
    assert decision.approved
    again = LeasedTask.parse(
        {**make.leased("evaluate", requester="south", dataset="patches"), "attempt": 2, "fence": 2}
    )
    assert inbox.answer(again, "patches") == decision
    other = LeasedTask.parse(make.leased("evaluate", requester="south", dataset="patches", own=1))
    assert other.id == task.id
    assert inbox.answer(other, "patches") is None, "other content under the same id"
    assert "nothing is asked" in suture("inbox", "list")
    assert "decided already" in suture("inbox", "decline", "task_evaluate", code=5)


def test_every_answer_is_written_down(inbox, suture, site):
    suture("inbox", "decline", "task_evaluate", "--reason", "no contract", "--tell", "no_agreement")
    noted = json.loads((site.state / "inbox" / "decisions.jsonl").read_text())
    assert (noted["approved"], noted["reason"], noted["told"]) == (False, "no contract", "no_agreement")
    assert noted["by"]


def test_a_standing_approval_holds_for_party_action_and_dataset_until_it_is_withdrawn(inbox, suture, make, request_of):
    suture("inbox", "approve", "task_evaluate", "--remember", "30")
    other = LeasedTask.parse({**make.leased("evaluate", requester="south"), "id": "task_2"})
    assert inbox.answer(other, "patches").approved
    assert inbox.answer(other, "other") is None
    assert inbox.answer(LeasedTask.parse({**make.leased("evaluate"), "id": "task_3"}), "patches") is None
    assert inbox.answer(LeasedTask.parse({**make.leased("fit", requester="south"), "id": "task_4"}), "patches") is None
    # A model that is older than one that was seen here is not what was approved for a while.
    back = LeasedTask.parse({**make.leased("evaluate", requester="south"), "id": "task_6"})
    inbox.ask(request_of(task=back.id, digest=back.digest, older=("north/net: it was signed on 2026-01-01",)))
    assert inbox.answer(back, "patches") is None
    assert "older north/net: it was signed on 2026-01-01" in suture("inbox", "show", "task_6")
    suture("inbox", "approve", "task_6")
    assert inbox.answer(back, "patches").approved
    assert "south evaluate patches" in suture("inbox", "standing")
    suture("inbox", "forget", "south", "evaluate", "patches")
    assert inbox.answer(other, "patches").approved, "what was begun goes on"
    later = LeasedTask.parse({**make.leased("evaluate", requester="south"), "id": "task_5"})
    assert inbox.answer(later, "patches") is None
    assert "none" in suture("inbox", "standing")


def test_a_standing_approval_ends(inbox, suture, make, site):
    suture("inbox", "approve", "task_evaluate", "--remember", "1")
    path = site.state / "inbox" / "standing.json"
    content = json.loads(path.read_text())
    content["rules"][0]["until"] = "2001-01-01T00:00:00Z"
    path.write_text(json.dumps(content))
    assert (
        inbox.answer(LeasedTask.parse({**make.leased("evaluate", requester="south"), "id": "task_2"}), "patches")
        is None
    )


def test_what_is_not_asked(inbox, suture):
    assert "nothing is asked" in suture("inbox", "show", "task_none", code=5)
    assert "not the id" in suture("inbox", "approve", "../../etc", code=5)


# The outbox


@pytest.fixture
def held(site, task):
    box = Held(site.state / "outbox" / "held")
    (site.state / "stitches").write_bytes(b"\x00" * 100)
    parts = [
        Draft.of("file", "stitches.safetensors", site.state / "stitches"),
        Draft.of("result", None, b'{"document":{"n":60},"fence":1}'),
    ]
    box.keep(task, parts)
    return box


def test_what_would_leave_is_shown_byte_for_byte(held, suture, site):
    assert "stitches.safetensors (100 B), document (31 B)" in suture("outbox", "list")
    for number, content in ((0, b"\x00" * 100), (1, b'{"document":{"n":60},"fence":1}')):
        words = ["site", "outbox", "show", "task_evaluate", str(site.path), "--part", str(number)]
        assert CliRunner().invoke(app, words).stdout_bytes == content
    assert "the task's folder is damaged" in suture("outbox", "show", "task_evaluate", code=5)


def test_what_was_changed_after_it_was_shown_does_not_leave(held, task, suture, site):
    suture("outbox", "release", "task_evaluate")
    assert held.verdict(task.id).released
    (site.state / "outbox" / "held" / task.id / "1").write_bytes(b'{"document":{"n":61},"fence":1}')
    outbox = Outbox(site.state / "outbox", min_samples=11)
    with pytest.raises(SutureError) as caught:
        outbox.released(task)
    outbox.close()
    assert caught.value.code == "outbox.altered"
    assert "0 records" in suture("egress", "verify")


@pytest.mark.parametrize("released", [True, False])
def test_who_decided_what_was_held_is_kept_when_it_is_held_no_longer(held, task, suture, site, released):
    digests = [part.sha256 for part in held.manifest(task.id).parts]
    suture("outbox", "release" if released else "refuse", "task_evaluate", "--reason", "seen by two")
    held.drop(task.id)
    (line,) = (site.state / "outbox" / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    assert (kept["task"], kept["party"], kept["released"]) == ("task_evaluate", "south", released)
    assert (kept["by"], kept["reason"]) == (operator(), "seen by two")
    assert [part["sha256"] for part in kept["parts"]] == digests


@pytest.mark.parametrize("box", ["inbox", "held"])
def test_what_ends_while_it_is_listed_is_left_out(inbox, held, request, box):
    """The agent may act between the moment when the names are read and when each is."""
    listed = request.getfixturevalue(box)
    kept = listed.requests if box == "inbox" else listed.manifests
    before = len(kept())
    gone = listed.folder / ("task_gone.request.json" if box == "inbox" else "task_gone/manifest.json")
    gone.parent.mkdir(exist_ok=True)
    gone.symlink_to(gone.with_name("nowhere"))
    assert len(kept()) == before


def test_a_verdict_is_about_one_lease(held, task, suture, make):
    suture("outbox", "refuse", "task_evaluate", "--reason", "no")
    assert held.verdict(task.id).released is False
    again = LeasedTask.parse(
        {**make.leased("evaluate", requester="south", dataset="patches"), "attempt": 2, "fence": 2}
    )
    drafts = held.drafts(task)
    assert held.has(task, drafts)
    assert not held.has(again, drafts)
    held.keep(again, [Draft.of("result", None, b"{}")])
    assert held.verdict(task.id) is None


def test_what_left_can_be_listed_and_shown(held, task, suture, site, narrow):
    outbox = Outbox(site.state / "outbox", min_samples=11)
    outbox.released(task)
    for done in range(3):
        outbox.progress(task.claim, TaskProgress(step="fit", done=done, total=3))
    outbox.decline(task, "policy.denied")
    about = {"party": task.job.requester, "job": task.job.id}
    outbox._log.document(task.id, "file", "moments.safetensors", b"\xff\xfe", **about)
    outbox.close()
    listed = json.loads(suture("egress", "list", "--format", "json"))
    assert [(one["kind"], one["party"], one["job"]) for one in listed] == [
        (kind, task.job.requester, task.job.id) for kind in ("file", "result", "decline", "file")
    ]
    everything = json.loads(suture("egress", "list", "--heartbeats", "--format", "json"))
    assert {(one["party"], one["job"]) for one in everything} == {(task.job.requester, task.job.id)}
    assert len(everything) == 7
    assert "7 records, unbroken" in suture("egress", "verify")
    assert "file stitches.safetensors" in suture("egress", "list")
    narrow(80)
    assert "south job_1 decline policy.denied" in suture("egress", "list")
    assert suture("egress", "show", "2").strip() == '{"document":{"n":60},"fence":1}'
    assert "100 bytes" in suture("egress", "show", "1")
    # Sums over patients are kept, and are no text.
    assert "2 bytes" in suture("egress", "show", "7")
    assert json.loads(suture("egress", "show", "7", "--format", "json"))["content"] is None
    log = site.state / "outbox" / "egress.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    assert "records 2 to 7 are missing at the end" in suture("egress", "verify", code=5)
