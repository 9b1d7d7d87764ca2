"""Subgroups of tables and arrays: whose rows they are, and what a description may say of them."""

from __future__ import annotations

import numpy as np
import pytest

from suture_contract.errors import SutureError
from suture_stitching.data import DatasetSpec, open_dataset

SUBGROUPS = {"sex": ["female", "male"], "age": [50, 65]}
AGES = ["below 50", "50 to below 65", "65 or more"]


@pytest.fixture(params=["csv", "parquet", "npz"])
def described(request, tmp_path):
    n = 60
    sex = np.where(np.arange(n) % 3 == 0, "female", "male")
    sex[5] = "other"
    age, value = np.arange(n) + 20.0, np.random.default_rng(0).normal(size=n)
    label = np.arange(n) % 2
    path = tmp_path / f"patients.{request.param}"
    fields = {}
    if request.param == "npz":
        np.savez(path, images=np.stack([age, value], 1).astype(np.float32), labels=label, sex=sex, age=age)
    elif request.param == "csv":
        rows = [f"{s},{a:g},{v},{x}" for s, a, v, x in zip(sex, age, value, label, strict=True)]
        path.write_text("sex,age,value,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
        fields = {"columns": {"label": "label"}}
    else:
        import pyarrow.parquet

        table = pyarrow.table({"sex": sex, "age": age, "value": value, "label": label.astype(str)})
        pyarrow.parquet.write_table(table, path)
        fields = {"columns": {"label": "label"}}
    return {"path": path, "format": request.param, "labels": ["0", "1"], "subgroups": SUBGROUPS, **fields}, sex, age


def test_samples_are_of_the_subgroups_that_their_columns_say(described):
    spec, sex, age = described
    dataset = open_dataset(DatasetSpec.model_validate(spec))
    parts = {(part.column, part.value): part.samples for part in dataset.subgroups}
    assert list(parts) == [("sex", "female"), ("sex", "male"), *(("age", value) for value in AGES)]
    assert (parts["sex", "female"] == (sex == "female")).all()
    assert (parts["sex", "male"] == (sex == "male")).all()
    assert (parts["age", AGES[0]] == (age < 50)).all()
    assert (parts["age", AGES[1]] == ((age >= 50) & (age < 65))).all()
    # A column of numbers stays a feature, one of texts is none.
    assert dataset.input_shape == (2,)
    x, _ = next(dataset.batches("test", 1000))
    assert (dataset.has("test", dataset.subgroups[2]) == (x[:, 0] < 50).numpy()).all()


@pytest.mark.parametrize(
    ("subgroups", "code"),
    [
        ({"sex": ["female"], "scanner": ["a"]}, "dataset.missing_column"),
        ({"sex": ["diverse"]}, "dataset.subgroups"),
        ({"sex": [1, 2]}, "dataset.subgroups"),
    ],
)
def test_what_the_data_do_not_have_is_refused(described, subgroups, code):
    spec, *_ = described
    with pytest.raises(SutureError) as error:
        open_dataset(DatasetSpec.model_validate({**spec, "subgroups": subgroups}))
    assert error.value.code == code
    assert "female" not in str(error.value), "an error says no value of a patient"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"subgroups": {"age": [65, 50]}}, "must rise"),
        ({"subgroups": {"sex": ["female", "female"]}}, "names a value twice"),
        ({"subgroups": {"sex": []}}, "at least 1 item"),
        ({"format": "image_folder"}, "only for tables and arrays"),
    ],
)
def test_a_description_that_cannot_be_is_refused(described, changes, problem):
    spec, *_ = described
    with pytest.raises(ValueError, match=problem):
        DatasetSpec.model_validate({**spec, **changes})
