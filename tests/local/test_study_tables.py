"""Tables as hospitals have them: what differs in writing alone is one thing, and what cannot be told is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from suture_contract.errors import SutureError
from suture_local.study.data import Study
from suture_local.study.reading import parties_study
from suture_local.study.tables import TableColumns


def _table(path: Path, labels: list[object], seed: int = 0, **columns: list[object]) -> Path:
    """Write a table with a feature `x` and the column `ill`."""
    rng = np.random.default_rng(seed)
    own = {"x": [f"{value:.3f}" for value in rng.normal(size=len(labels))], **columns, "ill": labels}
    lines = [",".join(own), *(",".join(map(str, row)) for row in zip(*own.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _study(tmp_path: Path, **means: tuple[str, ...]) -> Study:
    files = {party: next(tmp_path.glob(f"{party}.*")) for party in ("a", "b")}
    return parties_study("tables", files, "classification", TableColumns("ill", **means))


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (["0.0", "1.0"], None),
        (["no", "YES"], "'YES' was taken for 'yes'"),
        (["False", "True"], "the labels true and false were taken for 1 and 0"),
    ],
)
def test_labels_written_differently_are_one(tmp_path: Path, theirs: list[str], said: str | None) -> None:
    ours = ["no", "yes"] if "YES" in theirs else ["0", "1"]
    _table(tmp_path / "a.csv", ours * 20)
    _table(tmp_path / "b.csv", theirs * 20, seed=1)
    study = _study(tmp_path)
    assert list(study.labels) == ours
    assert [np.bincount(own.targets).tolist() for own in study.divide(0).values()] == [[20, 20]] * 2
    assert said is None or any(said in note for note in study.notes)


@pytest.mark.parametrize(
    ("theirs", "code", "said"),
    [
        (["nein", "ja"], "study.labels", "a shares no label with the others: it has 0, 1, they have ja, nein"),
        ([f"{value / 7:.3f}" for value in range(40)], "study.label", "amounts"),
    ],
)
def test_labels_that_cannot_be_matched_are_refused(tmp_path: Path, theirs: list[str], code: str, said: str) -> None:
    _table(tmp_path / "a.csv", ["0", "1"] * 20)
    _table(tmp_path / "b.csv", theirs * (40 // len(theirs)) if code == "study.labels" else ["0", "1", *theirs], seed=1)
    with pytest.raises(SutureError, match=said) as raised:
        _study(tmp_path)
    assert raised.value.code == code


def test_patients_stay_together_and_are_no_feature(tmp_path: Path) -> None:
    for party in ("a", "b"):
        patients = [f"p{number // 4}" for number in range(80)]
        labels = [number // 4 % 2 for number in range(80)]
        _table(tmp_path / f"{party}.csv", labels, seed=ord(party), patient_id=patients, split=["train"] * 80)
    study = _study(tmp_path)
    assert study.channels == ("x",)
    for own in study.divide(0).values():
        assert own.group is not None
        assert all(len(set(own.split[own.group == patient])) == 1 for patient in set(own.group))
    assert any("'patient_id' says whose a row is" in note for note in study.notes)
    assert any("'split' names splits" in note for note in study.notes)


def test_tables_in_other_formats_and_writings_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"Größe": rng.normal(170, 9, 40).round(1), "sex": ["m", "f"] * 20, "ILL": [0, 1, 1, 0] * 10})
    frame.to_csv(tmp_path / "a.csv", sep=";", decimal=",", index=False, encoding="cp1252")
    frame.assign(Größe=rng.normal(165, 9, 40).round(1), sex=["M", "F"] * 20).rename(
        columns={"Größe": "größe", "ILL": "ill"}
    ).to_excel(tmp_path / "b.xlsx", index=False)
    study = _study(tmp_path)
    assert study.channels == ("Größe", "sex=f", "sex=m")
    assert study.labels == ("0", "1")
    for own in study.divide(0).values():
        assert [len(np.unique(own.inputs[:, column])) for column in (1, 2)] == [2, 2]
        assert 0.5 < own.inputs[:, 0].std() < 2
    notes = "\n".join(study.notes)
    assert "a: the table was read so: separated by semicolons, decimal commas" in notes
    assert "b: the column 'größe' was taken for 'Größe'" in notes
    assert "b: 'sex': 'M' was taken for 'm'" in notes


@pytest.mark.parametrize("role", ["categories", "ignored", "zero_is_missing"])
def test_a_column_that_no_table_has_is_named(tmp_path: Path, role: str) -> None:
    for party in ("a", "b"):
        _table(tmp_path / f"{party}.csv", [0, 1] * 20, seed=ord(party), stage=[1, 2, 3, 4] * 10)
    with pytest.raises(SutureError, match="no table has a column 'stag'") as raised:
        _study(tmp_path, **{role: ("stag",)})
    assert "stage" in (raised.value.hint or "")
    assert _study(tmp_path, **{role: ("Stage",)}).channels is not None


def test_what_is_wrong_in_a_table_is_told(tmp_path: Path) -> None:
    _table(tmp_path / "a.csv", [0, 1] * 20)
    (tmp_path / "b.csv").write_text("x,x,ill\n1,2,0\n3,4,1\n", encoding="utf-8")
    with pytest.raises(SutureError, match="the column 'x' occurs more than once"):
        _study(tmp_path)
    (tmp_path / "b.csv").write_text("y,ill\n1,0\n3,1\n", encoding="utf-8")
    with pytest.raises(SutureError, match="no column of features in common: a has x, ill; b has y, ill"):
        _study(tmp_path)
    (tmp_path / "b.csv").write_text("x,sick\n1,0\n3,1\n", encoding="utf-8")
    with pytest.raises(SutureError, match="there is no column 'ill'; the table has x, sick"):
        _study(tmp_path)
    (tmp_path / "b.csv").write_text("x,ill\n1,0\n3\n", encoding="utf-8")
    with pytest.raises(SutureError, match="too many or too few cells"):
        _study(tmp_path)
    _table(tmp_path / "b.csv", ["", 0, 1] * 20, seed=1)
    assert any("b: 20 of 60 rows have no label" in note for note in _study(tmp_path).notes)


def test_the_same_rows_at_two_parties_are_told(tmp_path: Path) -> None:
    _table(tmp_path / "a.csv", [0, 1] * 20)
    _table(tmp_path / "b.csv", [0, 1] * 20)
    with pytest.raises(SutureError, match="a and b have the same rows"):
        _study(tmp_path)
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    others = _table(tmp_path / "b.csv", [0, 1] * 20, seed=1).read_text(encoding="utf-8").splitlines()
    (tmp_path / "b.csv").write_text("\n".join([*others, *lines[1:21]]) + "\n", encoding="utf-8")
    assert any("20 different rows are at a and at b" in note for note in _study(tmp_path).notes)


def test_few_test_patients_are_told(tmp_path: Path) -> None:
    _table(tmp_path / "a.csv", [0, 1] * 40)
    _table(tmp_path / "b.csv", [0, 1, 0], seed=1)
    notes = "\n".join(_study(tmp_path).notes)
    assert "b: of 3 samples about 1 are tested in a seed. Its figures mean little" in notes
    assert "a: of" not in notes


def test_images_of_other_ranges_are_brought_to_one_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party, top in (("a", 1000.0), ("b", 2000.0)):
        np.savez(tmp_path / f"{party}.npz", images=rng.uniform(-1000, top, (30, 8, 8)), labels=np.arange(30) % 2)
    study = parties_study("scans", {party: tmp_path / f"{party}.npz" for party in ("a", "b")}, "classification", None)
    own, other = (study.divide(0)[party].inputs for party in ("a", "b"))
    assert own.max() == pytest.approx(2 / 3, abs=0.01)
    assert other.max() == pytest.approx(1, abs=0.01)
    assert any("the same for all parties" in note for note in study.notes)


def test_folders_of_splits_and_labels_of_other_spelling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for party, folders in (("a", ("train/normal", "train/ill", "val/normal", "val/ill")), ("b", ("Normal", "ILL"))):
        for folder in folders:
            (tmp_path / party / folder).mkdir(parents=True)
            for number in range(6):
                values = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(values).save(tmp_path / party / folder / f"{folder[:3]}{number}.png")
    study = parties_study("scans", {party: tmp_path / party for party in ("a", "b")}, "classification", None)
    assert study.labels == ("ill", "normal")
    assert {party: np.bincount(own.targets).tolist() for party, own in study.divide(0).items()} == {
        "a": [12, 12],
        "b": [6, 6],
    }


def test_each_usual_range_is_read_on_its_own_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tops = {"a": 1.0, "b": 255.0}
    for party, top in tops.items():
        images, patients = rng.uniform(0, top, (30, 8, 8)), np.arange(30) // 2
        arrays = {"images": images, "labels": np.arange(30) // 2 % 2, "group": patients, "patient_id": np.arange(30)}
        np.savez(tmp_path / f"{party}.npz", **arrays)
    files = {party: tmp_path / f"{party}.npz" for party in tops}
    for own in parties_study("scans", files, "classification", None).divide(0).values():
        assert own.inputs.max() == pytest.approx(1, abs=0.01)
        assert own.group is not None
        assert len(set(own.group)) == 15, "group counts, whatever else names patients"
    np.savez(tmp_path / "b.npz", images=rng.uniform(-1000, 2000, (30, 8, 8)), labels=np.arange(30) % 2)
    with pytest.raises(SutureError, match="on several scales: a 0") as raised:
        parties_study("scans", files, "classification", None)
    assert raised.value.code == "study.ranges"


def test_a_column_of_persons_stands_above_one_of_stays(tmp_path: Path) -> None:
    for party in ("a", "b"):
        patients = [f"p{number // 4}" for number in range(80)]
        labels = [number // 4 % 2 for number in range(80)]
        stays = list(range(80))
        _table(tmp_path / f"{party}.csv", labels, seed=ord(party), patient_id=patients, encounter_id=stays)
    study = _study(tmp_path)
    assert study.channels == ("x",)
    for own in study.divide(0).values():
        assert own.group is not None
        assert len(set(own.group)) == 20
