"""The hospitals' tables are what the page beside them says, and are passed on as their licence asks."""

from __future__ import annotations

import csv
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from suture_local import heart

ROOT = Path(__file__).parents[2]
PAGE = heart.table("va").with_name("README.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("party", heart.PARTIES)
def test_a_table_has_the_patients_and_columns_that_its_page_names(party: str) -> None:
    with heart.table(party).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (stated,) = (cells(line) for line in PAGE.splitlines() if line.startswith(f"| `{party}.csv` "))
    assert [len(rows), sum(row["disease"] == "1" for row in rows)] == [int(stated[2]), int(stated[3])]
    assert all((row["num"] != "0") == (row["disease"] == "1") for row in rows)
    named = [cells(line)[0] for line in PAGE.partition("## Columns")[2].splitlines() if line.startswith("| `")]
    assert list(rows[0]) == named
    assert set(heart.FEATURES) < set(named)


def test_who_asks_to_be_named_is_named_and_so_is_the_licence() -> None:
    for name in ("Janosi", "Steinbrunn", "Pfisterer", "Detrano", "CC BY 4.0", "10.24432/C52P4X"):
        assert name in PAGE
    for place in ("Cleveland Clinic", "Budapest", "Zurich", "Basel", "Long Beach"):
        assert place in PAGE
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-4.0"
    assert "local/suture_local/heart/README.md" in project["license-files"]
    assert "CC BY 4.0" in (ROOT / "README.md").read_text(encoding="utf-8").rpartition("Licensed under")[2]


def test_a_seed_divides_the_patients_and_fills_no_cell_from_a_test_patient() -> None:
    one, two, other = heart.parties(0), heart.parties(0), heart.parties(1)
    for party, data in one.items():
        assert (data.inputs == two[party].inputs).all()
        assert data.inputs.shape == (len(data.labels), len(heart.FEATURES))
        assert np.isfinite(data.inputs).all()
        assert {name: round((data.split == name).mean(), 1) for name in ("train", "test")} == {
            "train": 0.5,
            "test": 0.3,
        }
        assert (
            data.inputs[data.split == "test"].shape != other[party].inputs[other[party].split == "test"].shape
            or (data.of("test")[0] != other[party].of("test")[0]).any()
        )
    # Pressure is empty for a quarter of one hospital's patients: all of them get the mean of those it learns from.
    column = one["va"].inputs[:, heart.FEATURES.index("trestbps")]
    values, counts = np.unique(column, return_counts=True)
    filled = values[counts.argmax()]
    known = column[(one["va"].split == "train") & (column != filled)]
    assert counts.max() == 56
    assert filled == pytest.approx(known.mean(), rel=1e-5)


def test_networks_are_of_different_kind_and_read_the_tables_as_they_are() -> None:
    kinds = set()
    for party, data in heart.parties(0).items():
        network = heart.network(party, data, 0)
        kinds.add(type(network))
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(data.inputs))
        assert logits.shape == (len(data.labels), len(heart.LABELS))
        assert logits.abs().max() < 10
    assert len(kinds) == len(heart.PARTIES)


def test_what_the_story_says_of_its_numbers_is_so() -> None:
    said = heart.STORY.opening + heart.STORY.remark
    total = sum(len(data.labels) for data in heart.parties(0).values())
    assert f"{total} patients" in said
    switzerland = heart.parties(0)["switzerland"].labels
    ill, share = int(switzerland.sum()), switzerland.mean()
    assert re.search(rf"Of Switzerland's {len(switzerland)} patients {ill} are ill.* {100 * share:.0f} %", said)
