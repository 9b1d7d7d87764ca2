"""What a person is shown of a held result: made by real work of every kind, at 80 columns and in a pipe."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load
from tests import cli_json
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.console.terminal import console
from suture_contract.kinds import CANDIDATES, STITCHES
from suture_worker.compute.work import work
from suture_worker.egress.held import Held
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Terms

NOISE = Terms(min_samples=11, epsilon=8.0, delta=1e-5)


@pytest.fixture
def held(site, data):
    """A function that does a task, and holds its result; it shows it, too."""
    box = Outbox(site.state / "outbox", min_samples=11, min_per_class=site.policy.min_per_class)

    def hold(folder, terms=None):
        if terms is not None:
            folder.note_terms(terms)
        assert work(site, folder.id) == "done", folder.log.read_text()
        box.hold(folder.assignment.task, folder)
        return folder

    yield hold
    box.close()


@pytest.fixture
def show(site, monkeypatch):
    def run(task, *options, width=None):
        if width is not None:
            monkeypatch.setattr(type(console), "is_terminal", property(lambda _: True))
            monkeypatch.setattr(console, "_width", width)
        words = ["site", "outbox", "show", task, str(site.path), *options]
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, ended.output
        if width is not None:
            assert max(map(len, ended.stdout.splitlines())) <= width
        if "--format" in options:
            return cli_json.checked(words, ended.stdout)
        return ended.stdout

    return run


def test_a_result_of_every_kind_is_shown_in_words(site, assign, held, show, quick):
    folder = held(assign("fit", options=quick))
    files = {name: (folder.results / name).read_bytes() for name in (CANDIDATES, STITCHES)}
    told = json.loads(files[CANDIDATES])
    for text in (show("task_fit"), show("task_fit", width=80)):
        assert "fit for north, job job_1" in text
        assert "it trusts north (key " in text
        assert f"{len(told['candidates'])} ways to use the models, fitted to 60 samples of 60 patients" in text
        assert "the plain average of the two models" in text
        assert "gate of north/net n" in text
        assert "features that fewer than 11 patients carry" in text
        assert "{" not in text
    tensors = show("task_fit", "--format", "json")["tensors"]
    weights = [one for one in tensors if one["name"].endswith("weight")]
    assert all(f"{one['shape'][0]} x {one['shape'][1]} + " in text for one in weights)
    stitched = load(files[STITCHES])
    assert {one["name"]: (one["low"], one["high"]) for one in tensors} == {
        name: (float(values.min()), float(values.max())) for name, values in stitched.items()
    }

    held(assign("evaluate", files=files))
    document = show("task_evaluate", "--format", "json")["documents"]["document"]
    plain = document["splits"]["test"]["scores"]["c02"]
    text = show("task_evaluate", width=80)
    assert "test split, 36 samples of 36 patients: accuracy, with 95 % intervals" in text
    assert f"{100 * plain['value']:.2f} %" in text
    assert f"{100 * plain['low']:.2f} to {100 * plain['high']:.2f}" in text
    assert "{" not in text

    folder = held(assign("match", options=quick))
    told = json.loads((folder.results / "document.json").read_text())
    text = show("task_match", width=80)
    assert f"north/net {told['placements'][0]['0']}, south/net {told['placements'][0]['1']}" in text
    assert f"{told['norms'][0]:.3g}" in text

    held(assign("contribute", placements=told["placements"], norms=told["norms"]), NOISE)
    text = show("task_contribute", width=80)
    assert "noise, epsilon 8 and delta 1e-05 spent for one patient and contribution" in text
    assert "train 60 samples of 60 patients; validation 24 samples of" in text
    means = [one for one in show("task_contribute", "--format", "json")["tensors"] if one["name"].endswith("mean")]
    assert f"{means[0]['low']:.4g}" in text


def test_what_is_kept_back_is_named_with_the_reason(site, assign, make, write_json, show):
    known = make.candidates(make.leased("fit"))
    folder = assign("evaluate", files={CANDIDATES: json.dumps(known).encode()})
    document = make.evaluation()
    document |= {"training": "all", "train": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 60, "patients": 10}}
    each = {"scores": dict.fromkeys(document["splits"]["test"]["scores"], 0.5)}
    document["splits"]["test"]["classes"] = {"0": {"n": 35, **each}, "1": {"n": 5, **each}}
    folder.results.mkdir()
    write_json(folder.results / "document.json", document)
    box = Outbox(site.state / "outbox", min_samples=11)
    box.hold(folder.assignment.task, folder)
    box.close()
    assert show(folder.id, "--format", "json")["withheld"] == [
        "of measured numbers all but 4 decimals and six digits",
        "test split, labels dark, bright: fewer than 11 patients, or others that would give these away by subtraction",
        "the own model on training samples: fewer than 11 patients",
    ]
    text = show(folder.id, width=80)
    assert "the own model on training samples: fewer than 11 patients" in text
    assert "by label" not in text


def test_what_was_released_by_wider_limits_is_held_anew_when_the_limits_become_narrower(
    site, assign, make, write_json, show
):
    known = make.candidates(make.leased("fit"))
    folder = assign("evaluate", files={CANDIDATES: json.dumps(known).encode()})
    folder.results.mkdir()
    document = make.evaluation()
    document["splits"]["test"]["scores"]["c02"] |= {"value": 0.8765, "low": 0.8, "high": 0.9}
    write_json(folder.results / "document.json", document)
    task = folder.assignment.task

    def held(decimals):
        """The value that would leave, and whether a person has decided about it."""
        box = Outbox(site.state / "outbox", min_samples=11, decimals=decimals)
        box.hold(task, folder)
        box.close()
        document = show(folder.id, "--format", "json")["documents"]["document"]
        return document["splits"]["test"]["scores"]["c02"]["value"], box.held.verdict(task.id) is not None

    assert held(4) == (0.8765, False)
    box = Held(site.state / "outbox" / "held")
    box.decide(box.manifest(task.id), released=True)
    assert held(4) == (0.8765, True), "what was decided stays decided"
    assert held(2) == (0.88, False)
