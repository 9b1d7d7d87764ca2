"""Pictures and lists of them as hospitals keep them: each is read rightly, or refused with what to say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.stitching.kinds import DRAWN, LABELS, PICTURE, described, dicom, folders, grey, refused, values

from suture_stitching.data import SPLITS, open_dataset


def test_bits_that_a_type_has_and_values_do_not_take(tmp_path):
    deep = folders(tmp_path / "deep", lambda path, _: grey(12).save(path))
    assert "intensity = [0, 4095]" in refused(deep, "dataset.few_bits")
    x, _ = values(deep, intensity=(0, 4095))
    assert x.max() == 1.0
    assert 0.4 < x.mean() < 0.6
    full = folders(tmp_path / "full", lambda path, _: grey(16).save(path))
    assert values(full)[0].max() == 1.0
    arrays = tmp_path / "a.npz"
    np.savez(arrays, images=DRAWN.integers(0, 4096, (20, 1, 8, 8)).astype(np.uint16), labels=np.arange(20) % 2)
    assert "intensity" in refused(arrays, "dataset.few_bits")
    np.savez(arrays, images=DRAWN.uniform(0, 255, (20, 1, 8, 8)), labels=np.arange(20) % 2)
    assert "intensity" in refused(arrays, "dataset.value_range", value_range=(0.0, 1.0))
    assert values(arrays, intensity=(0, 255))[0].max() <= 1.0


def test_pages_are_never_left_out_in_silence(tmp_path):
    def save(path, index):
        grey().save(path.with_suffix(".tif"), save_all=True, append_images=[grey() for _ in range(3)])

    paged = folders(tmp_path / "paged", save)
    assert "4 pages" in refused(paged, "dataset.several_pages")
    second, third = (values(paged, page=page)[0] for page in (1, 2))
    assert not np.array_equal(second, third)


def test_orientation_marks_are_followed_by_image_and_mask(tmp_path):
    upright = np.zeros((8, 12), np.uint8)
    upright[5:] = 200
    for index in range(10):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        turned = Image.fromarray(np.rot90(upright))  # shown turned clockwise by the mark
        mark = turned.getexif()
        mark[0x0112] = 6
        turned.save(tmp_path / "images" / f"{index}.png", exif=mark)
        Image.fromarray((upright > 0).astype(np.uint8) * 255).save(tmp_path / "masks" / f"{index}_mask.png")
    x, y = values(tmp_path, task="segmentation")
    assert x.shape[2:] == (8, 12)
    assert np.array_equal(x[:, 0] > 0.5, y == 1)


def test_sizes_are_made_one_as_said(tmp_path):
    root = folders(tmp_path / "sizes", lambda path, index: grey(size=(20 + index, 30)).save(path))
    assert "resize = [8, 8]" in refused(root, "dataset.sizes_differ", input=PICTURE)
    assert values(root, resize=(8, 9))[0].shape == (20, 1, 8, 9)
    assert values(root, resize=16, crop=(16, 16))[0].shape == (20, 1, 16, 16)
    assert values(root, pad=(32, 32), crop=(32, 32))[0].shape == (20, 1, 32, 32)


@pytest.mark.parametrize("names", [("Benign", "MALIGNANT"), ("0", "1"), ("0_benign", "1_malignant")])
def test_class_folders_written_otherwise(tmp_path, names):
    root = folders(tmp_path / "c", lambda path, _: grey().save(path), names=names)
    _, y = values(root)
    assert [int((y == label).sum()) for label in (0, 1)] == [10, 10]


def test_splits_in_any_case_and_what_lies_beside(tmp_path):
    for split in ("Train", "VAL", "testing"):
        folders(tmp_path / "s" / split, lambda path, _: grey().save(path), n=3)
    for name in ("@eaDir/Train/benign/x.png", "__MACOSX/._x.png", "Train/benign/readme.txt", ".hidden/x.png"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"x")
    dataset = open_dataset(described(tmp_path / "s"))
    assert [dataset.n(split) for split in SPLITS] == [6, 6, 6]
    assert dataset.skipped == ("Train/benign/readme.txt",)


@pytest.mark.parametrize(
    "mask",
    [
        lambda m: Image.fromarray(m),
        lambda m: Image.fromarray(m * 255),
        lambda m: Image.fromarray(m * 255).convert("1"),
        lambda m: Image.fromarray(np.dstack([m * 255] * 3)),
        lambda m: Image.fromarray(np.dstack([m * 255, m * 0, m * 0])),
    ],
)
@pytest.mark.parametrize("names", ["masks/{}.png", "labels/{}.png", "images/{}_seg.png"])
def test_masks_of_two_labels(tmp_path, mask, names):
    drawn = []
    for index in range(10):
        m = DRAWN.integers(0, 2, (8, 8), dtype=np.uint8)
        drawn.append(m)
        for file, picture in ((f"images/{index:02}.png", grey()), (names.format(f"{index:02}"), mask(m))):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            picture.save(tmp_path / file)
    dataset = open_dataset(described(tmp_path, task="segmentation"))
    for split in SPLITS:
        for (_, y), index in zip(dataset.batches(split, 1), dataset._splits[split], strict=True):
            assert np.array_equal(y[0], drawn[index])


@pytest.mark.parametrize("form", ["csv", "semicolons", "utf-16", "gz", "bare", "absolute", "parquet"])
def test_a_list_says_what_files_are(tmp_path, form):
    (tmp_path / "img").mkdir()
    rows = []
    for index in range(20):
        grey().save(tmp_path / "img" / f"{index:02}.png")
        name = {"bare": f"{index:02}.png", "absolute": f"{tmp_path}/img/{index:02}.png"}.get(
            form, f"img/{index:02}.png"
        )
        rows.append((name, LABELS[index % 2], f"P{index // 2}", "60"))
    separator = ";" if form == "semicolons" else ","
    text = "\n".join(separator.join(row) for row in [("path", "label", "patient_id", "age"), *rows])
    path = tmp_path / "list.csv"
    if form == "parquet":
        import pyarrow
        import pyarrow.parquet

        path = tmp_path / "list.parquet"
        columns = dict(zip(("path", "label", "patient_id", "age"), map(list, zip(*rows, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif form == "gz":
        path = tmp_path / "list.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-16" if form == "utf-16" else "utf-8")
    dataset = open_dataset(described(path))
    assert dataset.input_shape == (1, 8, 8)
    assert sum(dataset.patients(split) for split in SPLITS) == 10
    assert sum(dataset.n(split) for split in SPLITS) == 20


def test_a_list_leads_nowhere_else(tmp_path):
    (tmp_path / "lists").mkdir()
    grey().save(tmp_path / "x.png")
    (tmp_path / "lists" / "list.csv").write_text("path,label\n../x.png,benign\n", encoding="utf-8")
    assert "root" in refused(tmp_path / "lists" / "list.csv", "dataset.missing_image", format="list")


def test_uncertain_and_blank_are_asked_for(tmp_path):
    (tmp_path / "img").mkdir()
    lines = ["path,benign,malignant"]
    for index in range(20):
        grey().save(tmp_path / "img" / f"{index:02}.png")
        lines.append(f"img/{index:02}.png,{(1, 0, -1)[index % 3]},{('', 1, 0)[index % 3]}")
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    assert "blank" in refused(tmp_path / "list.csv", "dataset.label_out_of_range", task="multilabel")
    blank = {"task": "multilabel", "blank": "negative"}
    assert "uncertain" in refused(tmp_path / "list.csv", "dataset.label_out_of_range", **blank)
    for word, count in (("positive", 13), ("negative", 7)):
        assert values(tmp_path / "list.csv", **blank, uncertain=word)[1][:, 0].sum() == count


@pytest.mark.parametrize(
    ("task", "labels", "code"),
    [
        ("multilabel", [[1, 2]], "dataset.label_out_of_range"),
        ("multilabel", [[1, None]], "dataset.label_out_of_range"),
        ("multilabel", [[1, -1]], "dataset.label_out_of_range"),
        ("multilabel", [[1]], "dataset.missing_labels"),
        ("multilabel", [["benign"]], "dataset.missing_labels"),
        ("multilabel", [["yes", "no"]], "dataset.not_numbers"),
        ("classification", [" "], "dataset.missing_labels"),
        ("classification", [["benign", "malignant"]], "dataset.missing_labels"),
        ("regression", ["much"], "dataset.not_numbers"),
        ("regression", ["NaN"], "dataset.not_finite"),
        ("regression", [float("nan")], "dataset.not_finite"),
        ("regression", [[1.0, 2.0]], "dataset.missing_labels"),
    ],
)
def test_labels_of_a_json_list_are_read_as_strictly_as_cells_of_a_table(tmp_path, task, labels, code):
    good = {"multilabel": [1, 0], "classification": "benign", "regression": 1.5}[task]
    listed = [{"image": f"{index}.png", "label": label} for index, label in enumerate([good] * 9 + labels)]
    for entry in listed:
        grey().save(tmp_path / entry["image"])
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    assert "training[9]" in refused(tmp_path / "dataset.json", code, task=task, format="datalist")


def test_a_json_list_reads_marks_and_refuses_a_file_twice(tmp_path):
    listed = [{"image": f"{index}.png", "label": [True, index % 2]} for index in range(10)]
    for entry in listed:
        grey().save(tmp_path / entry["image"])
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"training": listed}), encoding="utf-8")
    marks = values(path, task="multilabel", format="datalist")[1]
    assert sorted(map(tuple, marks.tolist())) == [(1.0, 0.0)] * 5 + [(1.0, 1.0)] * 5
    path.write_text(json.dumps({"training": [*listed, {"image": "./3.png", "label": [1, 0]}]}), encoding="utf-8")
    assert "training[10]" in refused(path, "dataset.duplicate", task="multilabel", format="datalist")


def _rows_of_patients(columns: list[str]) -> tuple[list[str], list[list[str]]]:
    """40 rows, two of each patient, of other numbers and of no stay together, whose label and value differ."""
    ids = {"patient_id": "P{patient}", "subject": "S{patient}", "mrn": "M{row}", "encounter_id": "E{row}"}
    rows = [
        [*(ids[name].format(patient=row // 2, row=row) for name in columns), str(30 + row), LABELS[row // 2 % 2]]
        for row in range(40)
    ]
    return [*columns, "age", "label"], rows


def _written(root: Path, kind: str, columns: list[str]) -> Path:
    head, rows = _rows_of_patients(columns)
    if kind == "csv":
        path = root / "t.csv"
        path.write_text("\n".join(map(",".join, [head, *rows])), encoding="utf-8")
        return path
    if kind == "npz":
        path = root / "t.npz"
        by_name = {name: np.array([row[place] for row in rows]) for place, name in enumerate(head)}
        np.savez(path, images=np.float32(by_name.pop("age"))[:, None], **by_name)
        return path
    for row in range(40):
        grey().save(root / f"{row:02}.png")
    files = [f"{row:02}.png" for row in range(40)]
    if kind == "list":
        path = root / "list.csv"
        lines = [["file", *head], *([file, *row] for file, row in zip(files, rows, strict=True))]
        path.write_text("\n".join(map(",".join, lines)), encoding="utf-8")
        return path
    path = root / "list.json"
    entries = [{"image": file, **dict(zip(head, row, strict=True))} for file, row in zip(files, rows, strict=True)]
    path.write_text(json.dumps({"training": entries}), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "npz", "list", "datalist"])
def test_a_column_of_persons_stands_above_one_of_stays(tmp_path, kind):
    path = _written(tmp_path, kind, ["encounter_id", "patient_id"])
    dataset = open_dataset(described(path, format=kind))
    assert sum(dataset.patients(split) for split in SPLITS) == 20
    message = refused(_written(tmp_path, kind, ["patient_id", "mrn"]), "dataset.patients_unclear", format=kind)
    assert "'patient_id'" in message
    assert "'mrn'" in message
    assert "columns = { group = " in message
    dataset = open_dataset(described(path, format=kind, columns={"group": "patient_id"}))
    assert sum(dataset.patients(split) for split in SPLITS) == 20
    # Two names for the same people leave nothing open.
    dataset = open_dataset(described(_written(tmp_path, kind, ["patient_id", "subject"]), format=kind))
    assert sum(dataset.patients(split) for split in SPLITS) == 20


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dicom_in_colour_is_scaled_by_its_bits(tmp_path, bits):
    colour = {"Rows": 8, "Columns": 8, "SamplesPerPixel": 3, "PlanarConfiguration": 0, "NumberOfFrames": 1}
    stored = {"PhotometricInterpretation": "RGB", "BitsStored": bits, "HighBit": bits - 1}

    def save(path, index):
        pixels = DRAWN.integers(0, 2**bits, (8, 8, 3))
        pixels[0, 0] = 0, 2 ** (bits - 1), 2**bits - 1
        dicom(path.with_suffix(".dcm"), pixels, **colour, **stored)

    pixels, _ = values(folders(tmp_path / "d", save))
    assert pixels.shape == (20, 3, 8, 8)
    assert pixels[:, :, 0, 0] == pytest.approx(np.tile([0.0, 0.5, 1.0], (20, 1)), abs=0.003)


def test_what_a_description_says_of_a_json_list_is_heeded(tmp_path):
    entries = []
    for row in range(40):
        grey().save(tmp_path / f"{row:02}.png")
        part = ("train", "train", "val", "test")[row // 2 % 4]
        entries.append({"image": f"{row:02}.png", "diagnosis": LABELS[row % 2], "whose": f"P{row // 2}", "part": part})
    path = tmp_path / "list.json"

    def write(**more: str) -> None:
        listed = [{**entry, **more} for entry in entries]
        path.write_text(json.dumps({"training": listed}), encoding="utf-8")

    def opened(**columns: str):
        return open_dataset(described(path, format="datalist", columns={"label": "diagnosis", **columns}))

    write()
    dataset = opened(group="whose", split="part")
    assert [dataset.n(split) for split in SPLITS] == [20, 10, 10]
    assert [dataset.patients(split) for split in SPLITS] == [10, 5, 5]
    for column in ("label", "split", "group"):
        message = refused(path, "dataset.missing_column", format="datalist", columns={column: "patent"})
        assert "no entry has 'patent'; they have diagnosis, image, part, whose" in message
    write(split="fold1")
    message = refused(path, "dataset.unknown_split", format="datalist", columns={"label": "diagnosis"})
    assert "training[0]" in message
