"""`suture.json`: every field there and back, what older documents said, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests import strategies

from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata

quick = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

#: As the first release wrote it: the names of channels in a list, metrics without their data.
FIRST = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {
        "image": {
            "modality": "MR",
            "num_channels": 2,
            "spatial_shape": [None, 64, 64],
            "spacing": [3, 1, 1],
            "channels": ["T1", "T2"],
        }
    },
    "outputs": {"prediction": {"num_channels": 2}},
    "labels": ["no", "yes"],
    "license": "CC-BY-4.0",
    "training_data": {"description": "scans", "n": 12},
    "eval_metrics": {"auroc": 0.9},
}


def read(**changes: Any) -> ModelMetadata:
    content = {key: value for key, value in {**FIRST, **changes}.items() if value is not None}
    return ModelMetadata.from_json(json.dumps(content))


@quick
@given(strategies.documents())
def test_what_is_written_is_read_again(document):
    metadata = ModelMetadata.model_validate(document)
    text = metadata.to_json()
    assert ModelMetadata.from_json(text) == metadata
    assert ModelMetadata.from_json(text).to_json() == text
    assert ModelMetadata.model_validate(json.loads(json.dumps(json.loads(text)))) == metadata
    for field in ("description", "limitations", "citation", "doi", "labels", "eval_metrics", "license", "task"):
        found = getattr(metadata, field)
        assert (list(found) if isinstance(found, tuple) else found) == document[field], field


def test_channels_are_named_as_in_a_monai_bundle_and_as_before():
    before = read()
    assert before.inputs["image"].channels == ("T1", "T2")
    written = json.loads(before.to_json())["inputs"]["image"]
    assert written["channel_def"] == {"0": "T1", "1": "T2"}
    assert "channels" not in written
    out_of_order = {**FIRST["inputs"]["image"], "channel_def": {"1": "T2", "0": "T1"}}
    del out_of_order["channels"]
    assert read(inputs={"image": out_of_order}) == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"inputs": {"image": {"num_channels": 2, "channel_def": {"0": "a", "2": "b"}}}}, "without a gap"),
        ({"inputs": {"image": {"num_channels": 2, "channel_def": {"0": "a"}}}}, "channel_def: one entry per channel"),
        ({"inputs": {"image": {"num_channels": 1, "channel_def": ["a"], "channels": ["a"]}}}, "channels"),
        ({"doi": "https://doi.org/10.1000/182"}, "doi"),
        ({"doi": "10.1000/1 82"}, "doi"),
        ({"doi": "10.1000/182\n"}, "doi"),
        ({"license": "MIT\n---\n"}, "license"),
        ({"limitations": "left\u202eright"}, "limitations"),
        ({"eval_data": {"n": 0}}, "eval_data.n"),
        ({"eval_data": {"n": 5, "split": "train"}}, "eval_data.split"),
        ({"eval_data": {"n": 5, "patients": 3}}, "eval_data.patients"),
        ({"eval_data": {"n": 5}, "eval_metrics": None}, "eval_data: there are no eval_metrics"),
        ({"eval_data": {"n": 5}, "eval_metrics": {}}, "eval_data: there are no eval_metrics"),
    ],
)
def test_what_is_refused_names_its_field(changes, field):
    with pytest.raises(SutureError) as caught:
        read(**changes)
    assert caught.value.code == "metadata.invalid"
    assert field in str(caught.value)


def test_metrics_say_what_they_were_measured_on():
    metadata = read(eval_data={"n": 268, "description": "scans of 2025"})
    assert metadata.eval_data is not None
    assert (metadata.eval_data.n, metadata.eval_data.split) == (268, "test")
