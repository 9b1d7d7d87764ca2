"""Subgroups of tables, arrays and files: whose samples they are, and what a description may say of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

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
    ],
)
def test_a_description_that_cannot_be_is_refused(described, changes, problem):
    spec, *_ = described
    with pytest.raises(ValueError, match=problem):
        DatasetSpec.model_validate({**spec, **changes})


@pytest.fixture(params=["list", "excel", "datalist", "labels.csv", "masks"])
def files(request, tmp_path):
    """Images that a list of some kind says sex and age of; of one of them it says neither."""
    n, rng = 40, np.random.default_rng(0)
    sex = ["female" if i % 3 == 0 else "male" for i in range(n)]
    age = [str(30 + i) for i in range(n)]
    sex[4] = age[4] = ""
    masks = request.param == "masks"
    for i in range(n):
        folder = tmp_path / "data" / ("images" if masks else "ab"[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:02}.png")
        if masks:
            (tmp_path / "data" / "masks").mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 2, (8, 8), dtype=np.uint8)).save(
                tmp_path / "data" / "masks" / f"{i:02}.png"
            )
    names = [f"images/{i:02}.png" if masks else f"{'ab'[i % 2]}/{i:02}.png" for i in range(n)]
    rows = [[name, "ab"[i % 2], sex[i], age[i]] for i, name in enumerate(names)]
    text = "\n".join(",".join(row) for row in [["file", "label", "sex", "age"], *rows]) + "\n"
    path, root = tmp_path / f"files.{'xlsx' if request.param == 'excel' else 'csv'}", {"root": tmp_path / "data"}
    if request.param == "datalist":
        path = tmp_path / "files.json"
        said = [{"image": f, "label": x, **({"sex": s, "age": int(a)} if s else {})} for f, x, s, a in rows]
        path.write_text(json.dumps({"training": said}), encoding="utf-8")
    elif request.param == "excel":
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame(rows, columns=["file", "label", "sex", "age"])
        table["age"] = pandas.to_numeric(table["age"])
        table.to_excel(path, index=False)
    elif request.param in ("labels.csv", "masks"):
        path, root = tmp_path / "data", {}
        (path / "labels.csv").write_text(text, encoding="utf-8")
    else:
        path.write_text(text, encoding="utf-8")
    kind = {"excel": "list", "labels.csv": "image_folder", "masks": "image_folder"}.get(request.param, request.param)
    described = {"path": path, "format": kind, "labels": ["a", "b"], "subgroups": {"sex": ["female", "male"]}, **root}
    return {**described, "task": "segmentation" if masks else "classification"}, names, sex, age


def test_files_are_of_the_subgroups_that_their_list_says(files):
    spec, names, sex, age = files
    dataset = open_dataset(DatasetSpec.model_validate({**spec, "subgroups": {"sex": ["female", "male"], "age": [50]}}))
    parts = {(part.column, part.value): part.samples for part in dataset.subgroups}
    place = [names.index(name) for name in dataset.samples]
    assert list(parts) == [("sex", "female"), ("sex", "male"), ("age", "below 50"), ("age", "50 or more")]
    for value in ("female", "male"):
        assert parts["sex", value].tolist() == [sex[i] == value for i in place]
    assert parts["age", "below 50"].tolist() == [bool(age[i]) and int(age[i]) < 50 for i in place]
    assert parts["age", "50 or more"].tolist() == [bool(age[i]) and int(age[i]) >= 50 for i in place]


def test_a_column_that_no_list_has_is_refused(files):
    spec, *_ = files
    with pytest.raises(SutureError) as error:
        open_dataset(DatasetSpec.model_validate({**spec, "subgroups": {"scanner": ["x"]}}))
    assert error.value.code == "dataset.missing_column"
    if spec["path"].is_dir():
        (spec["path"] / "labels.csv").unlink()
        with pytest.raises(SutureError, match="no column 'sex'"):
            open_dataset(DatasetSpec.model_validate(spec))
