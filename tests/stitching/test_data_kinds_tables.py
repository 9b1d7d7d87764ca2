"""Arrays, signals and tables of every program: read rightly, or refused with what to say in their description."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from tests.stitching.kinds import COLUMNS, DRAWN, LABELS, LEADS, PICTURE, described, refused, table, values

from suture_contract.model.metadata import InputSpec
from suture_stitching.data import SPLITS, open_dataset


@pytest.mark.parametrize(
    ("images", "reads", "shape"),
    [
        (np.zeros((20, 8, 8, 4), np.uint8), InputSpec(num_channels=4, spatial_shape=(8, 8)), (4, 8, 8)),
        (np.zeros((20, 5, 6, 7, 1), np.uint8), InputSpec(num_channels=1, spatial_shape=(5, 6, 7)), (1, 5, 6, 7)),
        (np.zeros((20, 5, 6, 7), np.uint8), InputSpec(num_channels=1, spatial_shape=(5, 6, 7)), (1, 5, 6, 7)),
        (np.zeros((20, 40, 3), np.float32), LEADS, (3, 40)),
        (np.zeros((20, 3, 40), np.float32), LEADS, (3, 40)),
        (np.zeros((20, 40, 3), np.float32), None, None),
        (np.zeros((20, 5, 6, 7), np.uint8), None, None),
        (np.zeros((20, 3, 3), np.float32), InputSpec(format="signal", num_channels=3, spatial_shape=(None,)), None),
    ],
)
def test_axes_are_plain_from_what_models_read_or_asked_for(tmp_path, images, reads, shape):
    images = images + np.arange(20).reshape(20, *[1] * (images.ndim - 1)).astype(images.dtype)
    np.savez(tmp_path / "a.npz", X=images, y=(np.arange(20) % 2).reshape(20, 1).astype(float))
    if shape is None:
        assert "axes" in refused(tmp_path / "a.npz", "dataset.axes", input=reads)
    else:
        assert values(tmp_path / "a.npz", input=reads)[0].shape == (20, *shape)


@pytest.mark.parametrize("form", ["npz", "hdf5"])
def test_arrays_named_by_split(tmp_path, form):
    arrays = {}
    for split, n in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = DRAWN.integers(0, 255, (n, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2).reshape(n, 1)
    path = tmp_path / f"a.{'npz' if form == 'npz' else 'h5'}"
    if form == "npz":
        np.savez(path, **arrays)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    dataset = open_dataset(described(path, input=PICTURE))
    assert [dataset.n(split) for split in SPLITS] == [12, 4, 6]


def test_signals_in_files_and_in_rows(tmp_path):
    signals = DRAWN.normal(size=(20, 3, 40)).astype(np.float32)
    for index, signal in enumerate(signals):
        folder = tmp_path / "s" / LABELS[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        if index % 4 < 2:
            np.save(folder / f"{index:02}.npy", signal.T)
        else:
            np.savetxt(folder / f"{index:02}.csv", signal.T, delimiter=",", header="I,II,III", comments="")
    x, _ = values(tmp_path / "s", input=LEADS, format="signal_folder")
    assert {one.round(4).tobytes() for one in x} == {one.round(4).tobytes() for one in signals}
    import pyarrow
    import pyarrow.parquet

    columns = {f"lead{lead}": [signal[lead].tolist() for signal in signals] for lead in range(3)}
    table = pyarrow.table({**columns, "label": [LABELS[index % 2] for index in range(20)]})
    pyarrow.parquet.write_table(table, tmp_path / "s.parquet")
    assert values(tmp_path / "s.parquet", input=LEADS)[0].shape == (20, 3, 40)


@pytest.mark.parametrize(
    "content",
    [
        table().encode(),
        table(";").encode("utf-16"),
        table(";", ",").encode("cp1252"),
        table("\t").encode("utf-8-sig"),
        table(", ").encode(),
        b"# exported\n" + table().encode(),
        gzip.compress(table().encode()),
        table(extra="Unnamed: 0={}").encode(),
        table(extra="patient_id=P{}").encode(),
    ],
)
def test_tables_as_programs_write_them(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    dataset = open_dataset(described(tmp_path / "t.csv", labels=("no", "yes"), input=COLUMNS))
    assert dataset.channels == ("age", "bp", "hr")
    x = np.concatenate([x.numpy() for split in SPLITS for x, _ in dataset.batches(split, 40)])
    assert np.array_equal(np.sort(x[:, 1]), np.float32(100 + np.arange(40) / 8))


def test_what_a_table_holds_that_is_no_number(tmp_path):
    path, given = tmp_path / "t.csv", {"labels": ("no", "yes"), "input": COLUMNS}
    path.write_text(table(cell="?"), encoding="utf-8")
    assert "'hr' is empty" in refused(path, "dataset.missing_values", **given)
    path.write_text(table(cell="F"), encoding="utf-8")
    assert "categories" in refused(path, "dataset.not_numbers", **given)
    assert values(path, **given, categories={"hr": ("M", "F")})[0][:, 2].tolist() == [1.0] * 40
    assert (
        "F" not in refused(path, "dataset.unknown_category", **given, categories={"hr": ("x", "y")}).partition("(")[0]
    )
    path.write_text(table(cell="2024-01-02"), encoding="utf-8")
    assert "dates" in refused(path, "dataset.not_numbers", **given)
    path.write_text(table(extra="event={}"), encoding="utf-8")
    assert "event, age, bp, hr" in refused(path, "dataset.wrong_shape", **given)
    path.write_bytes(b"PK\x03\x04 and more")
    assert "Excel" in refused(path, "dataset.unreadable", **given)


@pytest.mark.parametrize("kind", ["xlsx", "dta", "sav"])
def test_tables_of_other_programs(tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    rows = range(40)
    frame = pandas.DataFrame(
        {"age": rows, "bp": [row / 2 for row in rows], "label": [("no", "yes")[row % 2] for row in rows]}
    )
    path = tmp_path / f"t.{kind}"
    if kind == "xlsx":
        pytest.importorskip("openpyxl")
        frame.to_excel(path, index=False)
    elif kind == "dta":
        frame.to_stata(path, write_index=False)
    else:
        pytest.importorskip("pyreadstat").write_sav(frame, str(path))
    x, y = values(path, labels=("no", "yes"))
    assert x.shape == (40, 2)
    assert sorted(x[:, 1]) == [row / 2 for row in rows]
    assert int(y.sum()) == 20


@pytest.mark.parametrize("labels", [[1, 2], [-1, 1], ["yes", "no"]])
def test_labels_that_are_others_are_asked_about(tmp_path, labels):
    np.savez(
        tmp_path / "a.npz", images=DRAWN.integers(0, 255, (20, 1, 8, 8), dtype=np.uint8), labels=np.array(labels * 10)
    )
    assert "aliases" in refused(tmp_path / "a.npz", "dataset.unknown_label")
    first, second = map(str, labels)
    given = {"labels": (first, second), "aliases": {first: LABELS[0], second: LABELS[1]}}
    assert open_dataset(described(tmp_path / "a.npz", **given)).labels == LABELS


def test_columns_of_few_bits_are_no_images(tmp_path):
    rows = np.stack([np.arange(20, 60), np.arange(40) % 3], 1).astype(np.uint8)
    np.savez(tmp_path / "t.npz", images=rows, labels=np.arange(40) % 2)
    x, _ = values(tmp_path / "t.npz", labels=("no", "yes"), input=InputSpec(format="table", num_channels=2))
    assert sorted(map(tuple, x.tolist())) == sorted(map(tuple, rows.astype(float).tolist()))


@pytest.mark.parametrize(("separator", "decimal"), [(";", "."), (";", ","), ("\t", ".")])
def test_thousands_that_are_set_apart_are_no_decimals(tmp_path, separator, decimal):
    path = tmp_path / "t.csv"

    def write(*cells: str) -> None:
        rows = [separator.join((cell, str(row), ("no", "yes")[row % 2])) for row, cell in enumerate(cells * 5)]
        path.write_text("\n".join([separator.join(("platelets", "age", "label")), *rows]), encoding="utf-8")

    labels = {"labels": ("no", "yes")}
    write("950", f"1{decimal}234", "87", f"12{decimal}500")
    message = refused(path, "dataset.not_numbers", **labels)
    assert "'platelets'" in message
    assert f"1{decimal}234" in message
    assert values(path, **labels, columns={"features": ["age"]})[0].max() == 19
    for decimals in (
        ("950", f"1{decimal}234", f"0{decimal}875"),
        ("950", f"1{decimal}234", f"1{decimal}5"),
        (f"950{decimal}0", f"1{decimal}234", "1"),
        ("1", f"1{decimal}234", f"2{decimal}345"),
        ("-12", f"1{decimal}234", f"-2{decimal}345"),
    ):
        write(*decimals, *decimals[:1])
        column = values(path, **labels)[0][:, 0]
        assert np.float32(1.234) in column


def test_a_sheet_has_one_header_and_each_name_once(tmp_path):
    pandas = pytest.importorskip("pandas")
    labels = {"labels": ("no", "yes")}
    rows = [[20 + row, 100 + row, 40 + row, ("no", "yes")[row % 2]] for row in range(20)]
    path = tmp_path / "t.xlsx"
    frame = pandas.DataFrame(rows, columns=["age", "bp", "age", "label"])
    frame.to_excel(path, index=False)
    assert "'age' occurs more than once" in refused(path, "dataset.duplicate", **labels)
    frame.columns = ["age", "bp", "hr", "label"]
    frame.to_excel(path, index=False, startrow=2)
    assert "remove titles and empty rows" in refused(path, "dataset.unreadable", **labels)
    head = pandas.DataFrame([["Export of 2024", None, None, None], list(frame.columns), *rows])
    head.to_excel(path, index=False, header=False)
    assert "remove titles and empty rows" in refused(path, "dataset.unreadable", **labels)
    frame.to_excel(path, index=False)
    assert values(path, **labels)[0].shape == (20, 3)


def test_a_label_called_as_what_is_empty(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("age,label\n" + "".join(f"{row},{('None', 'polyp')[row % 2]}\n" for row in range(20)))
    assert "NA, None" in refused(path, "dataset.missing_values", labels=("None", "polyp"))
