"""A site handed hostile models: every one ends as a failed task with its code, and the worker lives on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suture_worker.work import work

HOSTILE = Path(__file__).parents[1] / "security" / "corpus" / "hostile"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pt2-archive", "model.not_portable"),
        ("operator-by-attribute", "model.operator"),
        ("batch-norm-that-rewrites-its-weights", "model.arguments"),
        ("factory-of-terabytes", "model.over_budget"),
        ("lstm-wrong-state", "model.run_failed"),
        ("truth-value-of-seven", "model.tensors"),
    ],
)
def test_a_hostile_member_is_refused_by_the_child(site, data, assign, name, code):
    folder = assign("fit")
    folder.member(1).write_bytes((HOSTILE / f"{name}.safetensors").read_bytes())
    assert work(site, folder.id) == "failed"
    assert folder.outcome.code == code, folder.log.read_text()
    # The file's own words stay in the site's log.
    assert json.loads(folder.outcome.model_dump_json())["correlation_id"]
