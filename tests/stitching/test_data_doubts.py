"""Columns whose numbers are not what they look like, or are written otherwise: read rightly, or refused by kind."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tests.stitching.kinds import described, refused, values

from suture_stitching.data import SPLITS, open_dataset
from suture_stitching.data.look import look
from suture_stitching.data.suggest import suggest


def written(path, cells, *, name="hr", separator=";", label=None):
    """A table of a column of numbers, one of these cells, and labels."""
    rows = [
        separator.join((str(20 + row), str(cell), label[row] if label else ("benign", "malignant")[row % 2]))
        for row, cell in enumerate(cells)
    ]
    path.write_text("\n".join([separator.join(("age", name, "label")), *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize(("code", "times"), [(-999, 1), (-9, 1), (9999, 1), (999, 2), (99, 2)])
def test_codes_for_no_value_are_never_measured(tmp_path, code, times):
    measured = [1 + row % 15 for row in range(40)]
    cells = [code] * times + measured[times:]
    table = written(tmp_path / "t.csv", cells)
    message = refused(table, "dataset.no_value")
    assert f"the column 'hr' holds {code} in {times} of 40 rows" in message
    assert f"empty = {{ hr = [{code}] }}" in message
    assert "is empty in" in refused(table, "dataset.missing_values", empty={"hr": (code,)})
    x, _ = values(table, empty={"hr": (code,)}, missing="mean")
    assert x[:, 1].max() <= 15
    assert x[:, 1].min() >= 1
    assert code in values(table, empty={"hr": ()})[0][:, 1]
    suggested = suggest(table).fields
    assert suggested["empty"][0] == {"hr": [code]}
    assert suggested["missing"][0] == "mean"
    message = refused(
        table, "dataset.no_value", task="regression", labels=(), columns={"label": "hr", "features": ("age",)}
    )
    assert "leave these out" in message
    arrays = tmp_path / "t.npz"
    np.savez(arrays, images=np.array([cells, measured], np.float32).T, labels=np.arange(40) % 2)
    assert "the column '0'" in refused(arrays, "dataset.no_value")
    assert code in values(arrays, empty={"0": ()})[0]


@pytest.mark.parametrize(
    "cells",
    [[-999, -3, 5], [99, 20, 5], [999, 950, 12], [-9, -8, 7], [99, 1, 2], [-999] * 3],
    ids=["below zero", "near", "as large", "others below", "a lone 99", "all the same"],
)
def test_numbers_that_may_be_measured_are_read(tmp_path, cells):
    table = written(tmp_path / "t.csv", [*cells, *[cells[-1]] * 37])
    assert set(cells) <= set(values(table)[0][:, 1].tolist())


def test_what_empty_names_is_there(tmp_path):
    table = written(tmp_path / "t.csv", range(40))
    assert "no column 'rr', of which empty speaks" in refused(table, "dataset.missing_column", empty={"rr": (-9,)})


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1 234", "987"], "thousands that are set apart"),
        (["1'234", "987"], "thousands that are set apart"),
        (["1.234.567", "987"], "thousands that are set apart"),
        (["<5", "12", "> 90"], "bounds, a sign such as <"),
        (["45%", "12 %"], "shares in %"),
        (["80 mmHg", "75 mmHg"], "units behind its numbers"),
        (["1.5 mg/l", "0.9"], "units behind its numbers"),
        (["01.02.2024", "3.4.2024"], "dates or times"),
        (["12:30", "08:15:00"], "dates or times"),
        (["12", "13", "14", "see below"], "text in some of its rows"),
        (["low", "high"], "categories = "),
    ],
)
def test_what_cells_hold_is_said_by_its_kind(tmp_path, cells, said):
    table = written(tmp_path / "t.csv", [cells[row % len(cells)] for row in range(40)])
    message = refused(table, "dataset.not_numbers")
    assert said in message
    assert ("categories = " in message) == (cells[0] == "low")
    assert not any(cell in message for cell in cells)


def test_of_text_behind_what_is_read_at_once_its_kind_is_said(tmp_path):
    """Arrow takes the types of columns from the first megabyte."""
    table = written(tmp_path / "t.csv", [*["12"] * 60_000, "<5"])
    assert "bounds, a sign such as <" in refused(table, "dataset.not_numbers")


def test_decimal_commas_in_quotes_are_named(tmp_path):
    table = written(tmp_path / "t.csv", ['"36,6"', '"37,1"'] * 20, separator=",")
    assert "decimal commas" in refused(table, "dataset.not_numbers")


def test_fields_within_a_column_are_named(tmp_path):
    rows = {"age": list(range(40)), "lab": [{"value": 1}] * 40, "label": ["benign", "malignant"] * 20}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet")
    assert "give each a column of its own" in refused(tmp_path / "t.parquet", "dataset.not_numbers")


@pytest.mark.parametrize("late", [5, 1200])
def test_thousands_are_found_wherever_they_begin(tmp_path, late):
    cells = [str(100 + row % 900) if row < late else f"1.{100 + row % 900}" for row in range(1600)]
    assert "seem to be thousands" in refused(written(tmp_path / "t.csv", cells), "dataset.not_numbers")
    decimals = [f"{cell}.5" if row % 2 else cell for row, cell in enumerate(map(str, range(100, 900)))]
    assert values(written(tmp_path / "d.csv", decimals))[0][:, 1].max() == 899.5


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_excels_line_of_the_separator_is_no_header(tmp_path, first):
    table = written(tmp_path / "t.csv", range(40))
    plain = values(table)
    table.write_text(f"{first}\n{table.read_text(encoding='utf-8')}", encoding="utf-8")
    assert np.array_equal(values(table)[0], plain[0])


def test_a_title_above_the_header_is_said_to_be_one(tmp_path):
    table = written(tmp_path / "t.csv", range(40))
    table.write_text(f"Laboratory 2024;;\n{table.read_text(encoding='utf-8')}", encoding="utf-8")
    assert "the first row names 1 of 3 columns" in refused(table, "dataset.unreadable")


def test_lines_within_cells_reach_over_what_is_read_at_once(tmp_path):
    """Arrow reads a megabyte at a time."""
    text = "\n".join(["a finding of some words"] * 500)
    table = written(tmp_path / "t.csv", [f'"{text}"'] * 200, name="finding")
    x, _ = values(table, columns={"features": ("age",)})
    assert len(x) == 200


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_numbers_that_lost_their_zeros_are_a_doubt(tmp_path, kind):
    ids = [f"{row // 2:03}" if row % 2 else str(row // 2) for row in range(40)]
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        written(path, ids, name="patient_id")
    else:
        np.savez(path, images=np.arange(80.0).reshape(40, 2), labels=np.arange(40) % 2, patient_id=np.array(ids))
    assert any("case, spaces and zeros" in doubt for doubt in look(open_dataset(described(path))).doubts)


def test_ids_of_patients_that_became_floats_are_ids(tmp_path):
    given = {"images": np.arange(80.0).reshape(40, 2), "labels": np.arange(40) % 2}
    np.savez(tmp_path / "t.npz", **given, patient_id=np.arange(40) // 2 + 0.0)
    dataset = open_dataset(described(tmp_path / "t.npz"))
    assert sum(dataset.patients(split) for split in SPLITS) == 20
    np.savez(tmp_path / "t.npz", **given, patient_id=np.where(np.arange(40) == 3, np.nan, 1.0))
    assert "as many groups" in refused(tmp_path / "t.npz", "dataset.wrong_shape")
