"""What the inbox shows is what leaves: the screen's fields and those of the very bytes, for every kind of task."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save

from suture_contract.kinds import CANDIDATES, FILES, MOMENTS, STITCHES
from suture_worker.agent.admission import Admission
from suture_worker.compute.work import work
from suture_worker.egress.described import EACH
from suture_worker.egress.release_check import ReleaseCheck
from suture_worker.folder import Terms
from suture_worker.leased_task import LeasedTask

pytestmark = pytest.mark.usefixtures("looked_at_once")

GATE = ReleaseCheck(min_samples=11, min_per_class=11, decimals=4, subgroups={"patches": {"sex": ("f", "m")}})
#: Keys that name no field: candidates, splits, metrics, and members or labels by their index.
FREE = re.compile(r"c[0-9]{2}|train|validation|test|auroc|[0-9]+", re.ASCII)
#: Said by a site that trusts or adds noise, never both.
EITHER = {"privacy", "trusted"}


def shown(lines):
    """The fields that the screen names, by the file that holds them, and all files it names."""
    found = {}
    for line in lines[:-1]:
        place, _, fields = line.partition(": ")
        file, *inside = place.split(" > ")
        paths = found.setdefault(file, set())
        if file in ("document", CANDIDATES):
            inside = [one.removeprefix(EACH) for one in inside]
            paths |= {(*inside, field) for field in fields.split(", ")}
    return found


def told(content, path=()):
    """The fields in what leaves."""
    if isinstance(content, dict):
        for key, value in content.items():
            # The train split has a score of its own.
            free = FREE.fullmatch(key) and not (key == "train" and not path)
            yield from told(value, path if free else (*path, key))
    elif isinstance(content, list) and all(isinstance(one, dict) for one in content):
        for one in content:
            yield from told(one, path)
    else:
        yield path


def left(task, folder):
    """The fields of all that leaves, by file."""
    found = {}
    for draft in GATE.check(task, folder):
        if draft.name in (None, CANDIDATES):
            content = json.loads(draft.content)
            found[draft.name or "document"] = set(told(content["document"] if draft.name is None else content))
        else:
            found[draft.name] = set()
    return found


def asked(site, folder):
    """What an operator is shown of a task that waits for approval."""
    rules = tuple(rule.model_copy(update={"approval": "ask"}) for rule in site.policy.allow)
    admission = Admission(site.model_copy(update={"policy": site.policy.model_copy(update={"allow": rules})}))
    assert admission.admit(folder.assignment.task, folder) is None
    (request,) = admission.inbox.requests()
    return shown(request.leaves)


def agree(screen, bytes_left, *, all_of=()):
    assert screen.keys() == bytes_left.keys()
    for file, paths in bytes_left.items():
        assert paths <= screen[file], paths - screen[file]
    for file in all_of:
        missing = {path for path in screen[file] - bytes_left[file] if path[0] not in EITHER}
        assert not missing


def test_every_field_of_an_evaluation_is_shown_and_all_that_is_shown_may_leave(site, assign, make, write_json):
    files = {CANDIDATES: json.dumps(make.candidates(make.leased("fit"))).encode()}
    folder = assign("evaluate", files=files, metrics=["auroc", "calibration_curve"])
    document = make.evaluation()
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    document |= {"training": "matches", "train": {**value, "n": 50, "patients": 25}}
    for split in document["splits"].values():
        for id, score in split["scores"].items():
            score = {**score, "difference": value, "calibration": {"ece": 0.1, "brier": 0.2}}
            split["scores"] = {**split["scores"], id: {**score, "against": {} if id == "c02" else {"c02": value}}}
        split["patients"] = split["n"]
        each = {"n": 20, "patients": 20, "scores": dict.fromkeys(split["scores"], 0.5)}
        split["classes"] = dict.fromkeys("01", each)
    test, values = document["splits"]["test"], dict.fromkeys(split["scores"], value)
    part = {"n": 20, "patients": 20}
    bins = [{**part, "upto": upto, "predicted": upto, "events": 2} for upto in (0.5, 1.0)]
    test |= {"metrics": {"auroc": values}, "curves": dict.fromkeys(split["scores"], bins)}
    test["subgroups"] = [
        {**part, "column": "sex", "value": sex, "scores": values, "metrics": {"auroc": values}} for sex in "fm"
    ]
    document["asked"] = list(folder.assignment.task.spec.metrics)
    known = json.loads(files[CANDIDATES])
    known["members"] = make.refs(
        {"spec": {"members": [one.model_dump() for one in folder.assignment.task.spec.members]}}
    )
    write_json(folder.candidates / CANDIDATES, known)
    screen = asked(site, folder)
    folder.results.mkdir()
    write_json(folder.results / "document.json", document)
    bytes_left = left(folder.assignment.task, folder)
    assert ("splits", "classes", "n") in bytes_left["document"]
    agree(screen, bytes_left, all_of=["document"])


def test_every_field_of_a_fit_is_shown(site, assign, make, write_json):
    folder = assign("fit")
    task = folder.assignment.task
    screen = asked(site, folder)
    folder.results.mkdir()
    members = make.refs({"spec": {"members": [one.model_dump() for one in task.spec.members]}})
    candidates = {**make.candidates(make.leased("fit")), "members": members}
    gate = {"points": {"0": "n4"}, "weight": "g0.weight", "bias": "g0.bias", "near": 1.0, "far": 2.0, "withdraws": 0}
    candidates["candidates"].append({"id": "c04", "kind": "routed", "members": [0, 1], "gate": gate, "others": 0.5})
    write_json(folder.results / CANDIDATES, candidates)
    write_json(folder.results / "document.json", {"n": 60})
    more = {"g0.weight": np.ones((1, 2), np.float32), "g0.bias": np.ones(1, np.float32)}
    (folder.results / STITCHES).write_bytes(save(make.stitches(**more)))
    bytes_left = left(task, folder)
    assert ("candidates", "gate", "near") in bytes_left[CANDIDATES]
    agree(screen, bytes_left)


@pytest.mark.timeout(120)
def test_every_field_of_a_match_and_a_contribution_is_shown(site, data, assign, quick):
    folder = assign("match", options=quick)
    screen = asked(site, folder)
    assert work(site, folder.id) == "done", folder.log.read_text()
    bytes_left = left(folder.assignment.task, folder)
    agree(screen, {"document": {path for path in bytes_left["document"] if path}})
    (draft,) = GATE.check(folder.assignment.task, folder)
    where = json.loads(draft.content)["document"]
    noisy = Terms(min_samples=11, epsilon=4.0, delta=1e-5)
    given = assign("contribute", placements=where["placements"], norms=where["norms"])
    given.note_terms(noisy)
    assert work(site, given.id) == "done", given.log.read_text()
    bytes_left = left(given.assignment.task, given)
    assert MOMENTS in bytes_left
    agree(shown(given.assignment.task.side.leaves(None, noisy)), bytes_left, all_of=["document"])


def test_whatever_reads_data_has_its_documents_named(make):
    sides = {kind: LeasedTask.parse(make.leased(kind)).side for kind in FILES}
    assert {kind for kind, side in sides.items() if side.documents} == set(FILES) - {"compose"}
    assert {kind for kind, side in sides.items() if side.reads_data} == set(FILES) - {"compose"}
