import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, Columns, DatasetSpec, open_dataset

LABELS = ("well", "ill")
rng = np.random.default_rng(1)
COLUMNS = {
    "age": rng.integers(20, 90, 40).tolist(),
    "pressure": rng.random(40).tolist(),
    "smokes": (rng.random(40) > 0.5).tolist(),
    "label": [LABELS[i % 2] for i in range(40)],
}


@pytest.fixture(params=["csv", "parquet"])
def kind(request):
    return request.param


def write(folder, kind, **changes):
    table = pyarrow.table({name: values for name, values in {**COLUMNS, **changes}.items() if values is not None})
    path = folder / f"patients.{kind}"
    (pyarrow.csv.write_csv if kind == "csv" else pyarrow.parquet.write_table)(table, path)
    return path


def spec(path, **changes):
    return DatasetSpec(**{"path": path, "format": path.suffix[1:], "labels": LABELS, **changes})


def refused(path, code, **changes):
    with pytest.raises(SutureError) as error:
        open_dataset(spec(path, **changes))
    assert error.value.code == code, error.value
    return str(error.value)


def everything(dataset):
    inputs, targets = zip(*(batch for split in SPLITS for batch in dataset.batches(split, 7)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def test_each_row_is_a_sample_and_each_other_column_a_feature(tmp_path, kind):
    dataset = open_dataset(spec(write(tmp_path, kind, split=["train"] * 20 + ["validation"] * 10 + ["test"] * 10)))
    assert dataset.input_shape == (3,)
    assert dataset.channels == ("age", "pressure", "smokes")
    inputs, targets = everything(dataset)
    assert inputs[:, 0].tolist() == COLUMNS["age"]
    assert inputs[:, 2].tolist() == [float(value) for value in COLUMNS["smokes"]]
    assert np.allclose(inputs[:, 1], COLUMNS["pressure"])
    assert targets.tolist() == [i % 2 for i in range(40)]


def test_features_are_read_in_the_order_asked_for(tmp_path, kind):
    dataset = open_dataset(spec(write(tmp_path, kind), columns=Columns(features=("smokes", "age"))))
    assert dataset.channels == ("smokes", "age")
    assert dataset.input_shape == (2,)


def test_the_split_is_the_same_for_any_order_of_the_rows(tmp_path, kind):
    (tmp_path / "other").mkdir()
    order = rng.permutation(40)
    straight = open_dataset(spec(write(tmp_path, kind)))
    turned = {name: [values[i] for i in order] for name, values in COLUMNS.items()}
    shuffled = open_dataset(spec(write(tmp_path / "other", kind, **turned)))
    for split in SPLITS:
        a, b = (torch.cat([x for x, _ in d.batches(split, 9)]).tolist() for d in (straight, shuffled))
        assert sorted(a) == sorted(b)


@pytest.mark.parametrize("labels", [[i % 2 for i in range(40)], [float(i % 2) for i in range(40)]])
def test_labels_may_be_indices(tmp_path, kind, labels):
    assert open_dataset(spec(write(tmp_path, kind, label=labels))).counts("train") == {"well": 10, "ill": 10}


def test_regression_has_values_for_labels(tmp_path, kind):
    dataset = open_dataset(spec(write(tmp_path, kind, label=COLUMNS["pressure"]), task="regression", labels=()))
    targets = next(dataset.batches("test", 5))[1]
    assert (targets.shape, targets.dtype) == ((5, 1), torch.float32)


def test_missing_values_name_the_column_and_how_many(tmp_path, kind):
    age = [None, None, *COLUMNS["age"][2:]]
    path = write(tmp_path, kind, age=age)
    message = refused(path, "dataset.missing_values")
    assert "'age' is empty in 2 of 40 rows" in message


def test_missing_values_may_become_the_mean_of_the_training_rows(tmp_path, kind):
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    age = [None, *COLUMNS["age"][1:39], None]
    inputs, _ = everything(open_dataset(spec(write(tmp_path, kind, age=age, split=split), missing="mean")))
    expected = np.mean(COLUMNS["age"][1:20])
    assert np.allclose(inputs[[0, 39], 0], expected)
    assert inputs[1:39, 0].tolist() == COLUMNS["age"][1:39]


def test_a_column_without_any_training_value_has_no_mean(tmp_path, kind):
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    age = [None] * 20 + COLUMNS["age"][20:]
    path = write(tmp_path, kind, age=age, split=split)
    assert "'age'" in refused(path, "dataset.missing_values", missing="mean")
    assert "'age'" in refused(write(tmp_path, kind, age=pyarrow.nulls(40)), "dataset.missing_values", missing="mean")


def test_bad_columns_are_named(tmp_path, kind):
    assert "'age'" in refused(write(tmp_path, kind, age=["old"] * 40), "dataset.not_numbers")
    infinite = [float("inf"), *COLUMNS["pressure"][1:]]
    message = refused(write(tmp_path, kind, pressure=infinite), "dataset.not_finite")
    assert "'pressure'" in message
    assert "row 0" in message
    assert "'label'" in refused(write(tmp_path, kind, label=None), "dataset.missing_column")
    assert "'height'" in refused(
        write(tmp_path, kind), "dataset.missing_column", columns=Columns(features=("age", "height"))
    )
    some = [None, *COLUMNS["label"][1:]]
    assert "'label' is empty in 1 of 40" in refused(write(tmp_path, kind, label=some), "dataset.missing_values")
    refused(write(tmp_path, kind, split=["holdout"] * 40), "dataset.unknown_split")


def test_an_unknown_label_names_the_row_and_not_the_value(tmp_path, kind):
    labels = list(COLUMNS["label"])
    labels[7] = "mrs smith"
    message = refused(write(tmp_path, kind, label=labels), "dataset.unknown_label")
    assert "sample 7" in message
    assert "smith" not in message
    assert "sample 9" in refused(
        write(tmp_path, kind, label=[2 if i == 9 else i % 2 for i in range(40)]), "dataset.unknown_label"
    )


def test_a_broken_table_is_refused_without_quoting_it(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("age,label\n50,well\n51,ill,mrs smith\n")
    assert "smith" not in refused(path, "dataset.unreadable")
    path.write_text("age,age,label\n50,1,well\n")
    assert "'age'" in refused(path, "dataset.duplicate")
    path.write_text("age,label\n")
    refused(path, "dataset.empty")
    path.write_text("")
    refused(path, "dataset.unreadable")
    path = tmp_path / "patients.parquet"
    path.write_bytes(b"PAR1 not really")
    refused(path, "dataset.unreadable")


def test_a_text_cell_among_numbers_is_refused_not_taken_as_missing(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("age,label\n" + "50,well\n" * 20 + "unknown,ill\n" * 20)
    assert "'age'" in refused(path, "dataset.not_numbers")


CYST, STONE = [i % 2 for i in range(40)], [i % 3 == 0 for i in range(40)]
SEVERAL = {"task": "multilabel", "labels": ("cyst", "stone")}


def test_several_labels_have_a_column_each(tmp_path, kind):
    path = write(tmp_path, kind, label=None, stone=STONE, cyst=CYST, number=list(range(40)))
    dataset = open_dataset(spec(path, **SEVERAL))
    assert dataset.channels == ("age", "pressure", "smokes", "number")
    inputs, targets = everything(dataset)
    assert targets.dtype == torch.float32
    order = inputs[:, 3].int().tolist()
    assert targets.tolist() == [[float(CYST[i]), float(STONE[i])] for i in order]
    assert sum(dataset.counts(split)["cyst"] for split in SPLITS) == 20
    for split in SPLITS:
        assert dataset.counts(split)["stone"] > 0


@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_a_label_that_is_neither_0_nor_1_is_named_by_its_row_and_not_shown(tmp_path, kind, value):
    path = write(tmp_path, kind, label=None, cyst=[*CYST[:17], value, *CYST[18:]], stone=STONE)
    message = refused(path, "dataset.label_out_of_range", **SEVERAL)
    assert "sample 17 has " in message
    assert str(value) not in message.partition(": ")[2] or value == -1


def test_a_label_without_a_column_or_value_is_refused(tmp_path, kind):
    path = write(tmp_path, kind, label=None, cyst=CYST)
    assert "'stone'" in refused(path, "dataset.missing_column", **SEVERAL)
    path = write(tmp_path, kind, label=None, cyst=CYST, stone=[None, *STONE[1:]])
    assert "'stone' is empty in 1 of 40" in refused(path, "dataset.missing_values", **SEVERAL)
    path = write(tmp_path, kind, label=None, cyst=CYST, stone=["no"] * 40)
    assert "'stone'" in refused(path, "dataset.not_numbers", **SEVERAL)


@pytest.mark.parametrize("patients", [[f"p{i // 4}" for i in range(40)], [i // 4 for i in range(40)]])
def test_the_rows_of_a_group_are_in_one_split(tmp_path, kind, patients):
    number = list(range(40))
    dataset = open_dataset(
        spec(write(tmp_path, kind, patient=patients, number=number), columns=Columns(group="patient"))
    )
    assert dataset.channels == ("age", "pressure", "smokes", "number")
    seen = []
    for split in SPLITS:
        rows = torch.cat([x for x, _ in dataset.batches(split, 9)])[:, 3].int().tolist()
        seen.append({row // 4 for row in rows})
        assert len(rows) == 4 * len(seen[-1]) > 0
    assert sum(map(len, seen)) == 10


def test_splits_that_divide_a_group_are_refused(tmp_path, kind):
    patients, splits = [f"p{i // 4}" for i in range(40)], ["train"] * 22 + ["validation"] * 8 + ["test"] * 10
    path = write(tmp_path, kind, patient=patients, split=splits)
    message = refused(path, "dataset.group_divided", columns=Columns(group="patient"))
    assert "sample 22 is in validation, others of its group are in train" in message
    assert "p5" not in message
    refused(
        write(tmp_path, kind, patient=[None, *patients[1:]]), "dataset.missing_values", columns=Columns(group="patient")
    )
    refused(path, "dataset.contradiction", columns=Columns(group="patient", features=("age", "patient")))
