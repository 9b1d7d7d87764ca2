"""Nothing but the moments that were asked for leaves with a contribution: the gate as in `test_smuggling`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tests.worker import conftest as make
from tests.worker.test_smuggling import ANYTHING, SECRET, fuzzed, header_of, leaves, places, put, written

from suture_contract.contributions import Described
from suture_worker import folder as folders
from suture_worker.egress.release_check import to_json
from suture_worker.folder import Terms
from suture_worker.leased_task import LeasedTask

TASK = make.leased("contribute")
SAMPLES = {"train": 60, "validation": 20}
DOCUMENT: dict[str, Any] = {"n": SAMPLES}
NOISE = {"epsilon": 1.0, "delta": 1e-5}
#: Five features, at one grid.
SIZES = {"mean": 5, "scatter": 15}


def described(**changes: Any) -> str:
    members = tuple(member["sha256"] for member in TASK["spec"]["members"])
    content = {"members": members, "placements": TASK["spec"]["placements"], "n": SAMPLES, **changes}
    return Described.model_validate(content).to_json()


def tensors(**changes: np.ndarray) -> dict[str, np.ndarray]:
    found = {
        f"0.4x4.{split}.{part}": np.ones(size, np.float32)
        for split in ("train", "validation")
        for part, size in SIZES.items()
    }
    return {**found, **{f"0.4x4.{name.replace('_', '.')}": value for name, value in changes.items()}}


MOMENTS = save(tensors(), metadata={"described": described()})


@pytest.fixture(autouse=True, scope="module")
def without_noise():
    """The rule that allowed it asks for 20 samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders.TaskFolder, "terms", Terms(min_samples=20))
        yield


def contribute(document: Any = DOCUMENT, content: bytes = MOMENTS) -> list[bytes] | None:
    return leaves(TASK, {"document.json": document, "moments.safetensors": content})


def test_an_honest_child_s_moments_leave():
    left = contribute()
    assert left is not None
    assert left[0] == MOMENTS
    assert json.loads(left[1])["document"] == DOCUMENT


@fuzzed
@given(data=st.data())
def test_a_document_says_how_many_samples_and_nothing_else(data):
    path = data.draw(st.sampled_from(places(DOCUMENT)))
    left = contribute(json.dumps(put(DOCUMENT, path, data.draw(ANYTHING))).encode())
    assert left is None or left[1] == to_json({"fence": TASK["fence"], "document": DOCUMENT})


@pytest.mark.parametrize(
    "document",
    [
        {"n": {"train": 60, "validation": 19}},
        {"n": {"train": 60}},
        {"n": {**SAMPLES, "test": 60}},
        {"n": SAMPLES, "note": SECRET},
        {"n": SAMPLES, **NOISE},
    ],
)
def test_samples_and_noise_are_as_the_rule_asks(document):
    assert contribute(document) is None
    if "train" in document["n"] and document["n"].keys() == SAMPLES.keys() and "note" not in document:
        privacy = {**NOISE, "clips": TASK["spec"]["norms"]} if "epsilon" in document else None
        told = described(n=document["n"], privacy=privacy)
        assert contribute(document, save(tensors(), metadata={"described": told})) is None


def test_without_the_noise_that_the_rule_asks_for_nothing_leaves(monkeypatch):
    monkeypatch.setattr(folders.TaskFolder, "terms", Terms(min_samples=20, **NOISE))
    assert contribute() is None
    told = {"n": SAMPLES, **NOISE}
    assert contribute(told) is None, "the file says that it has none"
    weak = described(privacy={**NOISE, "epsilon": 9, "clips": TASK["spec"]["norms"]})
    assert contribute(told, save(tensors(), metadata={"described": weak})) is None
    own = described(privacy={**NOISE, "clips": [1000.0]})
    assert contribute(told, save(tensors(), metadata={"described": own})) is None, "clips of another than the asker"
    right = described(privacy={**NOISE, "clips": TASK["spec"]["norms"]})
    assert contribute(told, save(tensors(), metadata={"described": right})) is not None


def spoilt() -> dict[str, bytes]:
    header, data = header_of(MOMENTS)
    compact = json.dumps(header, separators=(",", ":")).encode()
    first = "0.4x4.train.mean"

    def other(name: str) -> bytes:
        renamed = {(name if key == first else key): value for key, value in tensors().items()}
        return save(renamed, metadata={"described": described()})

    def again(metadata: dict[str, str] | None = None, **changes: np.ndarray) -> bytes:
        return save(tensors(**changes), metadata=metadata or {"described": described()})

    more = {name.replace("4x4", "5x5"): value for name, value in tensors().items()}
    most = {name.replace("4x4", "6x6"): value for name, value in tensors().items()}
    return {
        "padding": written(compact + b" " * 64, data),
        "order of names": written(dict(reversed(header.items())), data),
        "a key of a tensor": written({**header, first: {**header[first], "note": SECRET}}, data),
        "bytes after": MOMENTS + SECRET.encode(),
        "cut short": MOMENTS[:-1],
        "no header": b"",
        "a list": written(b"[]", data),
        "a note": again({"described": described(), "note": SECRET}),
        "another description": again({"described": described().replace("60", "61")}),
        "spaces in the description": again({"described": described().replace(":", ": ")}),
        "other models": again({"described": described(members=["a" * 64, "b" * 64])}),
        "other places": again({"described": described(placements=[{"0": "n4", "1": "n6"}])}),
        "another place": other("1.4x4.train.mean"),
        "a name": other(f"0.{SECRET.lower()}.train.mean"),
        "zeros before a number": other("0.04x4.train.mean"),
        "other digits": other("0.４x4.train.mean"),
        "the test split": other("0.4x4.test.mean"),
        "another grid": other("0.5x5.train.mean"),
        "more grids than members": save({**tensors(), **more, **most}, metadata={"described": described()}),
        "no tensors": save({}, metadata={"described": described()}),
        "a whole scatter": again(train_scatter=np.ones((5, 5), np.float32)),
        "a longer triangle": again(train_scatter=np.ones(16, np.float32)),
        "another width": again(train_mean=np.ones(6, np.float32)),
        "float64": again(train_mean=np.ones(5)),
        "text": again(train_mean=np.frombuffer(SECRET.encode()[:5], np.uint8)),
        "infinity": again(train_mean=np.array([1, 1, np.inf, 1, 1], np.float32)),
        "no number": again(validation_scatter=np.full(15, np.nan, np.float32)),
    }


@pytest.mark.parametrize("way", spoilt())
def test_there_is_one_way_to_write_moments(way):
    content = spoilt()[way]
    assert content != MOMENTS
    assert contribute(content=content) is None


@given(position=st.integers(0, len(MOMENTS) - 1), value=st.integers(0, 255))
@fuzzed
def test_no_byte_of_the_header_can_be_another(position, value):
    changed = MOMENTS[:position] + bytes([value]) + MOMENTS[position + 1 :]
    left = contribute(content=changed)
    if left is None or changed == MOMENTS:
        return
    header, data = header_of(changed)
    assert header["__metadata__"] == header_of(MOMENTS)[0]["__metadata__"]
    # The numbers may be others, and those of the grid's sizes that both splits agree on: none here, by one byte.
    assert header == header_of(MOMENTS)[0]
    assert np.isfinite(np.frombuffer(data, "<f4")).all()


def test_where_models_can_be_joined_is_said_in_bounded_numbers():
    task = make.leased("match")
    honest = {"n": 60, "placements": make.PLACEMENTS, "norms": [2.5]}
    left = leaves(task, {"document.json": honest})
    assert left is not None
    assert leaves(task, {"document.json": {**honest, "norms": [2.5001]}}) == left
    for wrong in (
        {"n": 5},
        {"norms": []},
        {"norms": [float("inf")]},
        {"placements": [{"0": "n4", "5": "n5"}]},
        {"placements": [{"0": SECRET, "1": "n5"}]},
        {"note": SECRET},
    ):
        assert leaves(task, {"document.json": {**honest, **wrong}}) is None


def test_a_fit_names_only_those_who_contributed():
    from tests.worker.test_smuggling import STITCHES

    given_ = {"south": {"sha256": "a" * 64, "size": 10, "n": SAMPLES}}
    task = make.leased("fit", contributions=given_)
    assert LeasedTask.parse(task).files.keys() == {"moments.south"}

    def fit(contributions: Any) -> Any:
        candidates = make.candidates(task, contributions=contributions)
        return leaves(
            task, {"document.json": {"n": 60}, "candidates.json": candidates, "stitches.safetensors": STITCHES}
        )

    assert fit([{"party": "south", "n": SAMPLES}]) is not None
    for wrong in ("east", "patient-0042"):
        assert fit([{"party": wrong, "n": SAMPLES}]) is None
    assert fit([{"party": "south", "n": {**SAMPLES, "train": 42}}]) is None
    assert fit([{"party": "south", "n": SAMPLES, **NOISE}]) is None
    assert fit([{"party": "south", "n": SAMPLES}] * 2) is None
