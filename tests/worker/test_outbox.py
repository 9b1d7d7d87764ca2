"""The gate: what a child wrote leaves only in its schema, rounded, from enough samples, and is noted first."""

from __future__ import annotations

import hashlib
import json
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import save_file

from suture_contract.documents import CandidateSet, Evaluation, Missing, Report
from suture_contract.errors import SutureError
from suture_contract.model.format import MAX_VALUES
from suture_contract.model.metadata import ModelMetadata, OutputSpec
from suture_worker.egress import tensors
from suture_worker.egress.log import verify
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Assignment, Run, TaskFolder, TaskProgress, Terms
from suture_worker.leased_task import Claim, LeasedTask

CLAIM = Claim("task_fit", 7)
#: What a composition consists of.
COMPOSED = ["model.safetensors", "suture.json", "report.json", "README.md"]


@pytest.fixture
def outbox(site):
    box = Outbox(site.state / "outbox", min_samples=11)
    yield box
    box.close()


@pytest.fixture
def entries(site):
    return lambda: verify(site.state / "outbox" / "egress.jsonl")


@pytest.fixture
def prepared(site):
    """A task's folder as a child leaves it."""

    def prepare(task) -> tuple[LeasedTask, TaskFolder]:
        parsed = LeasedTask.parse(task)
        folder = TaskFolder(site.state / "tasks", parsed.id)
        folder.create(Assignment(task=parsed, dataset=None))
        folder.note_terms(Terms(min_samples=11))
        folder.begin_run(Run(device="cpu", threads=1, memory_bytes=1, cpu_seconds=1, min_samples=11, dataset=None))
        return parsed, folder

    return prepare


@pytest.fixture
def fitted(prepared, make, write_json):
    def fit(n=60, tensors=None, metadata=None, change=lambda task: task, **changes):
        task = change(make.leased("fit"))
        parsed, folder = prepared(task)
        write_json(folder.results / "document.json", {"n": n})
        write_json(folder.results / "candidates.json", make.candidates(task, **{"n": n, **changes}))
        save_file(tensors or make.stitches(), folder.results / "stitches.safetensors", metadata=metadata)
        return parsed, folder

    return fit


@pytest.fixture
def evaluated(prepared, make, write_json):
    def evaluate(document=None, own=0):
        task = make.leased("evaluate", own=own)
        parsed, folder = prepared(task)
        write_json(folder.candidates / "candidates.json", make.candidates(task))
        write_json(folder.results / "document.json", document or make.evaluation(own))
        return parsed, folder

    return evaluate


def refused(outbox, task, folder):
    with pytest.raises(SutureError) as caught:
        outbox.result(task, folder)
    return caught.value


# Messages


def test_progress_says_a_known_word_and_numbers(outbox, entries):
    message = outbox.progress(CLAIM, TaskProgress(step="solve", done=3, total=9, seconds_left=4.56789))
    assert json.loads(message.content) == {"fence": 7, "step": "solve", "done": 3, "total": 9, "seconds_left": 4.6}
    assert entries()[0].body.encode() == message.content


def test_any_other_word_is_replaced(outbox):
    message = outbox.progress(CLAIM, TaskProgress(step="reading PATIENT-0042.png", done=3, total=9))
    assert json.loads(message.content)["step"] == "working"


def test_an_error_is_a_code_and_an_id(outbox, entries):
    message = outbox.failure(CLAIM, "dataset.missing_path", "0123456789abcdef", retryable=False)
    content = {"fence": 7, "code": "dataset.missing_path", "correlation_id": "0123456789abcdef", "retryable": False}
    assert json.loads(message.content) == content
    assert entries()[0].sha256 == hashlib.sha256(message.content).hexdigest()


@pytest.mark.parametrize(
    "code", ["PATIENT-0042", "dataset", "no such file: /data/PATIENT", "a.b c", "", "a." + 99 * "b"]
)
def test_a_code_that_is_no_code_does_not_leave(outbox, entries, make, code):
    with pytest.raises(SutureError):
        outbox.failure(CLAIM, code, "0123456789abcdef", retryable=False)
    with pytest.raises(SutureError):
        outbox.decline(LeasedTask.parse(make.leased("fit")), code)
    assert entries() == []


@pytest.mark.parametrize(
    ("kind", "disclosed", "code"),
    [
        ("evaluate", True, "policy.denied"),
        ("evaluate", False, "policy.undisclosed"),
        ("fit", False, "policy.denied"),
    ],
)
def test_a_site_may_let_nobody_know_that_it_declined(tmp_path, make, kind, disclosed, code):
    outbox = Outbox(tmp_path / "quiet", min_samples=11, disclose_refusals=disclosed)
    task = LeasedTask.parse(make.leased(kind))
    assert json.loads(outbox.decline(task, "policy.denied").content) == {"fence": task.fence, "code": code}
    outbox.close()


# Fit


def test_a_fit_leaves_as_two_files_and_a_number(outbox, entries, fitted):
    task, folder = fitted()
    candidates, stitches, result = outbox.result(task, folder)
    assert json.loads(result.content) == {"fence": 1, "document": {"n": 60}}
    assert stitches.content == folder.results / "stitches.safetensors"
    left = CandidateSet.model_validate_json(candidates.content)
    match = left.candidates[3].matches[0]
    assert match.stitches[0].r2 == 0.1235
    assert match.alpha == 1 / 3, "the mixing weight is part of the model, not measured"
    noted = [(entry.kind, entry.name, entry.sha256) for entry in entries()]
    assert noted == [
        ("file", "candidates.json", candidates.sha256),
        ("file", "stitches.safetensors", hashlib.sha256(stitches.content.read_bytes()).hexdigest()),
        ("result", None, result.sha256),
    ]


def test_the_exact_bytes_of_documents_are_kept(outbox, site, fitted):
    for message in outbox.result(*fitted()):
        kept = site.state / "outbox" / "documents" / message.sha256
        assert isinstance(message.content, bytes) == kept.exists()
        if kept.exists():
            assert kept.read_bytes() == message.content


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"labels": ["dark", "bright", "PATIENT-0042"]}, "labels"),
        ({"members": [{"repo": "north/net", "revision": "0" * 40, "sha256": "f" * 64}] * 2}, "members"),
        ({"comment": "PATIENT-0042"}, "comment"),
        ({"seed": "PATIENT"}, "seed"),
        ({"candidates": []}, "candidates"),
        ({"tensors": "missing"}, "stitches.safetensors"),
        ({"tensors": "extra"}, "stitches.safetensors"),
        ({"tensors": "double"}, "stitches.safetensors"),
        ({"tensors": "nan"}, "stitches.safetensors"),
        ({"tensors": "rank"}, "stitches.safetensors"),
        ({"metadata": {"note": "PATIENT-0042"}}, "stitches.safetensors"),
        ({"metadata": {"input_shape": "PATIENT"}}, "stitches.safetensors"),
    ],
)
def test_a_fit_that_holds_more_does_not_leave(outbox, entries, fitted, make, changes, where):
    tensors = {
        "missing": {"s0.weight": np.ones((2, 3), np.float32)},
        "extra": make.stitches(images=np.ones((4, 4), np.float32)),
        "double": make.stitches(**{"s0.weight": np.ones((2, 3))}),
        "nan": make.stitches(**{"s0.bias": np.array([1, np.nan], np.float32)}),
        "rank": make.stitches(**{"s0.bias": np.ones((2, 1), np.float32)}),
    }
    changes = {key: tensors[value] if key == "tensors" else value for key, value in changes.items()}
    error = refused(outbox, *fitted(**changes))
    assert error.code == "outbox.refused"
    assert where in str(error)
    assert "PATIENT" not in str(error)
    assert entries() == [], "nothing was noted as having left"


def test_bytes_after_the_stitches_do_not_leave(outbox, fitted):
    task, folder = fitted()
    with (folder.results / "stitches.safetensors").open("ab") as file:
        file.write(b"PATIENT!")
    assert "belong to no tensor" in str(refused(outbox, task, folder))


def test_a_fit_on_too_few_samples_does_not_leave(outbox, entries, fitted):
    assert refused(outbox, *fitted(n=10)).code == "policy.too_few_samples"
    assert entries() == []


def corrected(make, shares):
    items = make.candidates(make.leased("fit"))["candidates"]
    return [*items, {"id": f"c{len(items):02}", "kind": "corrected", "members": [0, 1], "site_prior": shares}]


def declares(task, *priors):
    """What the members of a task say of their shares of labels."""
    for member, shares in zip(task["spec"]["members"], priors, strict=True):
        member["metadata"] = {**member["metadata"], "label_prior": shares}
    return task


@pytest.mark.parametrize(
    ("priors", "shares", "leaves"),
    [
        (({"dark": 0.7, "bright": 0.3}, {"dark": 0.123456, "bright": 0.876544}), [0.123456, 0.876544], False),
        (({"dark": 0.123456, "bright": 0.876544}, {"dark": 0.7, "bright": 0.3}), [0.123456, 0.876544], True),
        (({"dark": 0.123456, "bright": 0.876544}, {"dark": 0.7, "bright": 0.3}), [0.5, 0.5], False),
        (({"dark": 0.7, "bright": 0.3}, None), [0.7, 0.3], False),
    ],
)
def test_only_shares_that_the_requesters_model_declares_leave(outbox, fitted, make, priors, shares, leaves):
    task, folder = fitted(change=lambda task: declares(task, *priors), candidates=corrected(make, shares))
    if not leaves:
        assert "site_prior" in str(refused(outbox, task, folder))
        return
    messages = outbox.result(task, folder)
    assert CandidateSet.model_validate_json(messages[0].content).candidates[-1].site_prior == tuple(shares)


def gated(make, near=0.1429):
    items = make.candidates(make.leased("fit"))["candidates"]
    points = items[3]["matches"][0]["points"]
    items[3]["gate"] = {"points": points, "weight": "g0.weight", "bias": "g0.bias", "near": near, "far": 0.2857}
    return items


def test_gates_leave_with_their_tensors(outbox, fitted, make):
    metadata = {"input_shape": "1,6,6"}
    tensors = make.stitches(**{"g0.weight": np.ones((5, 5), np.float32), "g0.bias": np.ones(5, np.float32)})
    messages = outbox.result(*fitted(candidates=gated(make), tensors=tensors, metadata=metadata))
    candidate = CandidateSet.model_validate_json(messages[0].content).candidates[3]
    assert candidate.gate.near == 0.1429
    refusal = refused(outbox, *fitted(candidates=gated(make, near=1 / 7), tensors=tensors, metadata=metadata))
    assert "near: has more than 6 digits" in str(refusal)


def test_a_link_to_another_file_does_not_leave(outbox, fitted, tmp_path):
    task, folder = fitted()
    secret = tmp_path / "candidates.json"
    (folder.results / "candidates.json").replace(secret)
    (folder.results / "candidates.json").symlink_to(secret)
    assert refused(outbox, task, folder).code == "outbox.refused"


def test_a_missing_file(outbox, fitted):
    task, folder = fitted()
    (folder.results / "document.json").unlink()
    assert "document.json: is missing" in str(refused(outbox, task, folder))


# Evaluate


def test_an_evaluation_leaves_rounded(outbox, site, evaluated):
    task, folder = evaluated()
    (message,) = outbox.result(task, folder)
    content = json.loads(message.content)
    evaluation = Evaluation.model_validate(content["document"])
    score = evaluation.splits["test"].scores["c03"]
    assert (score.value, score.low, score.high) == (0.8123, 0.7123, 0.9123)
    assert b"0.81234" not in message.content
    assert (site.state / "outbox" / "documents" / message.sha256).read_bytes() == message.content


def trained(n):
    return {"training": "matches", "train": {"value": 0.98765432, "low": 0.9, "high": 1.0, "n": n}}


def test_what_is_said_of_training_leaves_rounded_and_not_for_few_samples(outbox, evaluated, make):
    (message,) = outbox.result(*evaluated({**make.evaluation(), **trained(500)}))
    told = Evaluation.model_validate(json.loads(message.content)["document"])
    assert (told.training, told.train.value, told.train.n) == ("matches", 0.9877, 500)


def test_of_few_training_samples_nothing_is_said(outbox, evaluated, make):
    (message,) = outbox.result(*evaluated({**make.evaluation(), **trained(3)}))
    told = Evaluation.model_validate(json.loads(message.content)["document"])
    assert (told.training, told.train) == ("matches", None)


def compare(document):
    document["splits"]["test"]["scores"]["c03"]["against"] = {"c00": {"value": 0.1, "low": 0.0, "high": 0.2}}


def change(**changes):
    def apply(document):
        document.update(changes)

    return apply


def drop(document):
    del document["splits"]["test"]["scores"]["c03"]


def add(document):
    document["splits"]["test"]["scores"]["c77"] = document["splits"]["test"]["scores"]["c00"]


def comment(document):
    document["splits"]["test"]["scores"]["c00"] = {"value": 1, "low": 1, "high": 1, "note": "PATIENT"}


@pytest.mark.parametrize(
    "spoil", [change(own=1), change(splits={}), change(metric="PATIENT"), drop, add, comment, compare]
)
def test_an_evaluation_of_anything_else_does_not_leave(outbox, entries, evaluated, make, spoil):
    document = make.evaluation()
    spoil(document)
    assert refused(outbox, *evaluated(document)).code == "outbox.refused"
    assert entries() == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_on_samples_of_too_few_patients_does_not_leave(outbox, evaluated, make, split):
    document = make.evaluation()
    document["splits"][split]["patients"] = 10
    assert refused(outbox, *evaluated(document)).code == "policy.too_few_samples"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_an_evaluation_on_too_few_samples_does_not_leave(outbox, evaluated, make, split):
    document = make.evaluation()
    document["splits"][split]["n"] = 10
    assert refused(outbox, *evaluated(document)).code == "policy.too_few_samples"


def test_numbers_that_are_not_finite_do_not_leave(outbox, evaluated, make):
    task, folder = evaluated()
    text = (folder.results / "document.json").read_text()
    (folder.results / "document.json").write_text(text.replace("0.81234567", "NaN", 1))
    assert refused(outbox, task, folder).code == "outbox.refused"


# Compose


@pytest.fixture
def composed(prepared, make, write_json, composed_model):
    def compose(chosen="c03", **changes):
        missing = [{"party": "east", "reason": "declined"}]
        evaluations = {"north": make.evaluation(0), "south": make.evaluation(1, n=30)}
        for document in evaluations.values():
            for split in document["splits"].values():
                split["scores"] = {**split["scores"], "c03": {"value": 0.91234567, "low": 0.9, "high": 0.95}}
        task = make.leased("compose", evaluations=evaluations, missing=missing)
        parsed, folder = prepared(task)
        write_json(folder.candidates / "candidates.json", make.candidates(task, **changes))
        write_json(folder.results / "document.json", {"chosen": chosen})
        write_json(folder.results / "report.json", {"note": "PATIENT-0042"})
        write_json(folder.results / "suture.json", {"description": "PATIENT-0042"})
        (folder.results / "model.safetensors").write_bytes(composed_model)
        return parsed, folder

    return compose


def test_a_composition_leaves_as_model_metadata_report_and_card(outbox, entries, composed):
    model, metadata, report, card, result = outbox.result(*composed())
    assert [model.name, metadata.name, report.name, card.name] == COMPOSED
    described = ModelMetadata.from_json(metadata.content)
    assert described.lineage.candidate == "c03"
    assert [member.repo for member in described.lineage.members] == ["north/net", "south/net"]
    assert described.labels == ("dark", "bright")
    assert described.outputs == {"class": OutputSpec(format="probabilities", num_channels=2)}
    assert described.license == "CC-BY-4.0"
    assert described.eval_metrics == {"accuracy at north": 0.9123, "accuracy at south": 0.9123}
    told = Report.model_validate_json(report.content)
    assert (told.chosen, told.requester, told.lineage.job) == ("c03", "north", "job_1")
    assert told.missing == (Missing(party="east", reason="declined"),)
    assert told.parties["south"].n == 30
    assert told.parties["south"].rows["stitched"].value == 0.9123
    assert json.loads(result.content)["document"] == {"chosen": "c03"}
    text = card.content.decode()
    assert "| verdict | " in text
    assert "east declined to evaluate" in text
    assert "PATIENT" not in text
    assert [entry.name for entry in entries()] == [*COMPOSED, None]


def test_nothing_a_child_wrote_beside_the_model_leaves(outbox, composed):
    for message in outbox.result(*composed())[1:]:
        assert b"PATIENT" not in message.content


def test_another_choice_than_the_rule_s_does_not_leave(outbox, entries, composed):
    assert refused(outbox, *composed(chosen="c02")).code == "outbox.refused"
    assert entries() == []


def test_candidates_of_other_members_do_not_leave(outbox, composed, make):
    others = [{**ref, "sha256": "f" * 64} for ref in make.refs(make.leased("compose"))]
    assert "members" in str(refused(outbox, *composed(members=others)))


def test_a_model_that_is_cut_short_does_not_leave(outbox, composed):
    task, folder = composed()
    content = (folder.results / "model.safetensors").read_bytes()
    (folder.results / "model.safetensors").write_bytes(content[:-1])
    assert refused(outbox, task, folder).code == "model.truncated"


def test_a_model_of_another_size_does_not_leave(outbox, composed, make):
    labels = ["dark", "bright", "grey"]
    metadata = {**make.METADATA, "labels": labels, "outputs": {"class": {"num_channels": 3}}}
    task, folder = composed(labels=labels)
    members = tuple(m.model_copy(update={"metadata": ModelMetadata(**metadata)}) for m in task.spec.members)
    task = task.model_copy(update={"spec": task.spec.model_copy(update={"members": members})})
    assert refused(outbox, task, folder).code == "metadata.mismatch"


def test_a_header_of_many_values_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "json", parser := Mock())
    text = b'{"a":[' + b"[]," * MAX_VALUES + b"[]]}"
    (tmp_path / "stitches.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(SutureError, match="not a safetensors file") as refused:
        tensors.header_of(tmp_path / "stitches.safetensors")
    assert refused.value.code == "outbox.refused"
    parser.loads.assert_not_called()
