"""A site handed hostile models: every one ends as a failed task with its code, and the worker lives on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from suture_contract.model.graph import Graph, Input, Node, Ref, SameDevice
from suture_stitching.portable.runtime import save as save_model
from suture_worker.compute.work import work

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


def test_a_composition_tries_members_of_free_sizes_at_those_of_the_fit(site, make, members, assign, tmp_path):
    """As large as its input squared, a thousand times over: nothing to 6 pixels, terabytes to 6,000."""
    nodes = [Node("input", (0,)), Node("aten.sym_size.int", (Ref(0), 2)), Node("sym.mul", (Ref(1), Ref(1)))]
    nodes.append(Node("aten.zeros.default", ((Ref(2), 1000),), {"device": SameDevice()}))
    nodes += [Node("aten.sum.default", (Ref(3),)), Node("aten.add.Tensor", (Ref(0), Ref(4)))]
    graph = Graph((Input((None, 1, None, None), "float32"),), tuple(nodes), Ref(5))
    save_model(graph, {}, tmp_path / "grows.safetensors")
    codes = {}
    for size in (6, 60_000):
        task = make.leased("compose", members=members)
        files = {
            "candidates.json": json.dumps(make.candidates(task)).encode(),
            "stitches.safetensors": save({"s0.bias": torch.ones(2)}, {"input_shape": f"1,{size},{size}"}),
        }
        folder = assign("compose", dataset=None, files=files)
        folder.member(1).write_bytes((tmp_path / "grows.safetensors").read_bytes())
        assert work(site, folder.id) == "failed"
        codes[size] = folder.outcome.code
    assert codes[60_000] == "model.over_budget"
    assert codes[6] != "model.over_budget"
