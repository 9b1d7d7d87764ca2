"""What a person is shown of data, and which description is suggested for them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.stitching.kinds import DRAWN, LABELS, described, folders, grey, refused, table

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.look import contact_sheet, look
from suture_stitching.data.suggest import suggest


def test_doubts_are_said_and_samples_drawn(tmp_path):
    same = grey()
    root = folders(tmp_path / "d", lambda path, index: (same if index < 5 else grey()).save(path))
    dataset = open_dataset(described(root))
    seen = look(dataset)
    assert seen.twice == 10
    assert "another split" in " ".join(seen.doubts)
    assert seen.read == 20
    assert 0.3 < seen.mean < 0.7
    assert contact_sheet(dataset).size[0] > 100


@pytest.mark.parametrize(
    ("name", "alike"),
    [("video{0}_{1:04}.png", 20), ("p{0:02}-frame{1}.png", 20), ("scan{1:04}.png", 0), ("{0}{1}.png", 0)],
)
def test_files_that_may_share_a_patient_are_a_doubt(tmp_path, name, alike):
    def save(path, index):
        grey().save(path.with_name(name.format(index // 2, index)))

    root = folders(tmp_path / "d", save)
    seen = look(open_dataset(described(root)))
    assert seen.alike == alike
    assert any("same patient" in doubt for doubt in seen.doubts) == bool(alike)
    if alike:
        assert look(open_dataset(described(root, group=r"([a-z]+\d+)[_-]"))).alike == 0


@pytest.mark.parametrize("kind", ["folder", "table", "list"])
def test_what_is_suggested_opens(tmp_path, kind):
    import tomllib

    if kind == "folder":
        path = folders(tmp_path / "d", lambda path, index: grey(12).save(path))
    elif kind == "table":
        path = tmp_path / "t.csv"
        path.write_text(table(";", ",", extra="patient_id=P{}"), encoding="utf-8")
    else:
        folders(tmp_path / "d", lambda path, index: grey().save(path))
        path = tmp_path / "list.csv"
        lines = [f"d/{label}/{index:02}.png;{label}" for label in LABELS for index in range(10)]
        path.write_text("\n".join(["path;label", *lines]), encoding="utf-8")
    found = suggest(path)
    assert found.open is None
    fields = tomllib.loads(found.toml("mine"))["datasets"]["mine"]
    dataset = open_dataset(DatasetSpec.model_validate(fields))
    assert sum(dataset.n(split) for split in SPLITS) in (20, 40)


def test_a_list_of_volumes_asks_for_a_window(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / kind).mkdir()
        for index in range(10):
            values = DRAWN.integers(0, 2 if kind == "labelsTr" else 100, (6, 6, 6)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / kind / f"s_{index}.nii.gz")
    training = [{"image": f"./imagesTr/s_{n}.nii.gz", "label": f"./labelsTr/s_{n}.nii.gz"} for n in range(10)]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "spleen"}, "training": training}), encoding="utf-8")
    told = refused(path, "dataset.invalid", task="segmentation")
    assert "window" in told
    assert "damaged" not in told
    found = suggest(path)
    assert found.open is None
    assert found.fields["window"][0] == [96, 96, 96]
    assert found.fields["labels"][0] == ["background", "spleen"]


ROWS = [f"P{row},{row},{'mw'[row % 2]},2020-01-{row % 28 + 1:02},free text {row},{row % 2}" for row in range(40)]
HEADER = "PatientenNr,Alter,Geschlecht,Aufnahme,Befund,tot"


@pytest.mark.parametrize("ending", ["csv", "parquet", "xlsx"])
def test_a_column_of_text_is_suggested_or_said_to_be_left_out(tmp_path, ending):
    import tomllib

    path = tmp_path / "t.csv"
    path.write_text("\n".join([HEADER, *ROWS]), encoding="utf-8")
    if ending != "csv":
        pandas = pytest.importorskip("pandas")
        frame, path = pandas.read_csv(path), tmp_path / f"t.{ending}"
        frame.to_parquet(path) if ending == "parquet" else frame.to_excel(path, index=False)
    text = suggest(path, label="tot").toml("mine")
    fields = tomllib.loads(text)["datasets"]["mine"]
    assert fields["columns"] == {"label": "tot", "group": "PatientenNr", "features": ["Alter", "Geschlecht"]}
    assert fields["categories"] == {"Geschlecht": ["m", "w"]}
    assert "left out, for they are no numbers: Aufnahme" in text
    assert "Befund (text)" in text
    dataset = open_dataset(DatasetSpec.model_validate(fields))
    assert dataset.grouped
    assert dataset.input_shape == (2,)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        *[
            (name, True)
            for name in ("PatientenNr", "Patienten-Nr", "Patienten-Nr.", "PatNr", "pat_nr", "Fall-Nr", "PID")
        ],
        *[(name, True) for name in ("Patient_Nummer", "PATIENT ID", "SubjectCode", "record_id", "Probanden-ID", "MRN")],
        *[
            (name, False)
            for name in ("fall", "case", "patients_seen", "pain", "age", "Fallzahl", "number", "ID_Klinik")
        ],
    ],
)
def test_how_columns_of_patients_are_called(name, whose):
    from suture_stitching.data.words import names_patient

    assert names_patient(name) is whose


def test_of_several_sheets_the_first_is_suggested(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "two.xlsx"
    frame = pandas.DataFrame({"x": range(20), "ill": [0, 1] * 10})
    with pandas.ExcelWriter(path) as book:
        frame.to_excel(book, sheet_name="Daten", index=False)
        frame.to_excel(book, sheet_name="Legende", index=False)
    found = suggest(path, label="ill")
    assert found.open is None
    assert "Daten, Legende" in found.toml("mine")
    assert found.fields["sheet"][0] == "Daten"


def test_what_no_description_mends_is_refused_with_its_reason(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").write_text("Dear all,\nthe data lie on the other drive.\nBest\n", encoding="utf-8")
    (tmp_path / "table.txt").write_text(
        "x;ill\n" + "".join(f"{row},5;{row % 2}\n" for row in range(40)), encoding="utf-8"
    )
    np.savez(tmp_path / "o.npz", images=np.array([{"a": 1}] * 4, dtype=object), labels=np.arange(4) % 2)
    np.savez(tmp_path / "p.npz", images=np.zeros((4, 1, 8, 8)), labels=np.array(["a", {}] * 2, dtype=object))
    for name, code in (
        ("none", "dataset.empty"),
        ("notes.txt", "dataset.unknown_format"),
        ("o.npz", "dataset.pickled"),
        ("p.npz", "dataset.pickled"),
    ):
        with pytest.raises(SutureError) as error:
            suggest(tmp_path / name)
        assert error.value.code == code
    assert suggest(tmp_path / "table.txt", label="ill").open is None


def test_which_column_is_the_label_stays_the_question(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([HEADER, *ROWS]), encoding="utf-8")
    assert "which column is the label?" in suggest(path).toml("mine")


def test_whose_a_row_is_where_several_columns_may_say_it(tmp_path):
    path = tmp_path / "t.csv"
    import tomllib

    path.write_text("patient_id,mrn,encounter_id,age,label\n1,2,3,4,no\n1,2,4,5,yes\n", encoding="utf-8")
    text = suggest(path).toml("mine")
    assert tomllib.loads(text)["datasets"]["mine"]["columns"]["group"] == "patient_id"
    assert "whose a row is: one of patient_id, mrn" in text


@pytest.mark.parametrize("kind", ["csv", "npz", "list"])
def test_ids_that_differ_in_case_or_spaces_alone_are_a_doubt(tmp_path, kind):
    def opened(*own: str):
        ids = [*own, *(f"P{patient:02}" for patient in range(len(own), 20))]
        labels = [LABELS[row % 2] for row in range(20)]
        if kind == "npz":
            ages = np.arange(20, dtype=np.float32)[:, None]
            np.savez(tmp_path / "t.npz", images=ages, labels=np.array(labels), patient_id=np.array(ids))
            return open_dataset(described(tmp_path / "t.npz"))
        for row in range(20):
            grey().save(tmp_path / f"{row:02}.png")
        rows = [
            f"{row:02}.png,{id},{label}" if kind == "list" else f"{row},{id},{label}"
            for row, (id, label) in enumerate(zip(ids, labels, strict=True))
        ]
        head = ("file" if kind == "list" else "age") + ",patient_id,label"
        (tmp_path / "t.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
        return open_dataset(described(tmp_path / "t.csv"))

    assert look(opened("P00", "P00", "P01")).written_alike == 0
    seen = look(opened("P90", "p90", "P07"))
    assert seen.written_alike == 2
    (doubt,) = [doubt for doubt in seen.doubts if "case, spaces and zeros" in doubt]
    assert "P90" not in doubt
    spaced = look(opened("P9 1", "P9  1", "P07"))
    assert spaced.written_alike == 2


def test_the_hospital_a_row_is_from_is_nobodys_id(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{row % 3},{row},{LABELS[row % 2]}" for row in range(30)]
    path.write_text("\n".join(["hospital_id,age,label", *rows]), encoding="utf-8")
    assert not open_dataset(described(path)).grouped
    path.write_text("\n".join(["hospital_number,age,label", *rows]), encoding="utf-8")
    assert open_dataset(described(path)).grouped


def test_a_text_of_cells_with_lines_in_them_is_a_table(tmp_path):
    path = tmp_path / "t.txt"
    rows = [f'{row}\t"seen\nagain"\t{LABELS[row % 2]}' for row in range(30)]
    path.write_text("\n".join(["age\tnote\tlabel", *rows]), encoding="utf-8")
    assert suggest(path).open is None
