"""Data as hospitals keep them: each kind is read rightly, or refused with what to say in its description."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.formats import format_of
from suture_stitching.data.look import contact_sheet, look
from suture_stitching.data.suggest import suggest

LABELS = ("benign", "malignant")
DRAWN = np.random.default_rng(0)
PICTURE = InputSpec(num_channels=1, spatial_shape=(8, 8), value_range=(0.0, 1.0))
LEADS = InputSpec(format="signal", num_channels=3, spatial_shape=(40,))
COLUMNS = InputSpec(format="table", num_channels=3)


def described(path: Path, **given) -> DatasetSpec:
    given = {"labels": () if given.get("task") == "regression" else LABELS, "format": format_of(path), **given}
    return DatasetSpec(path=path, **given)


def values(path: Path, **given) -> tuple[np.ndarray, np.ndarray]:
    """All inputs and targets, in the order of the splits."""
    dataset = open_dataset(described(path, **given))
    read = [batch for split in SPLITS for batch in dataset.batches(split, 7)]
    return np.concatenate([x.numpy() for x, _ in read]), np.concatenate([y.numpy() for _, y in read])


def refused(path: Path, code: str, **given) -> str:
    with pytest.raises(SutureError) as error:
        values(path, **given)
    assert error.value.code == code, error.value
    return str(error.value)


def grey(bits: int = 8, size: tuple[int, int] = (8, 8)) -> Image.Image:
    kind = np.uint8 if bits <= 8 else np.uint16
    pixels = DRAWN.integers(0, 2**bits, size, dtype=np.uint32).astype(kind)
    pixels[0, 0] = 2**bits - 1
    return Image.fromarray(pixels)


def folders(root: Path, save, *, names=LABELS, n: int = 10) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(n):
            save(root / name / f"{index:02}.png", index)
    return root


# Pictures


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


# Lists


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


# Volumes


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


def volume(index: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=(6, 7, 8)).astype(np.float32)


def test_volumes_of_every_program_are_the_same(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    sitk = pytest.importorskip("SimpleITK")
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # what ITK has by itself, in RAS
    for index in range(4):
        mask = (volume(index) > 0).astype(np.uint8)
        for root, end in (("nii", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha"), ("nnunet", ".nii.gz")):
            images, masks = ("imagesTr", "labelsTr") if root == "nnunet" else ("images", "masks")
            name = f"c{index}"
            for kind, array in ((images, volume(index)), (masks, mask)):
                (tmp_path / root / kind).mkdir(parents=True, exist_ok=True)
                path = tmp_path / root / kind / f"{name}{'_0000' if kind == 'imagesTr' else ''}{end}"
                if end == ".nii.gz":
                    nibabel.save(nibabel.Nifti1Image(array[..., None] if kind == "masks" else array, affine), path)
                else:
                    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
                    image.SetSpacing((1.0, 1.0, 2.0))
                    sitk.WriteImage(image, str(path))
    given = {"task": "segmentation", "window": (6, 6, 6)}

    def whole(path: Path, **more) -> dict[str, list[np.ndarray]]:
        dataset = open_dataset(described(path, **given, **more))
        names = iter(np.concatenate([dataset._splits[split] for split in SPLITS]))
        read = (pair for split in SPLITS for pair in dataset.whole(split))
        return {Path(dataset.samples[next(names)]).name[:2]: [one.numpy() for one in pair] for pair in read}

    first = whole(tmp_path / "nii")
    listed = [{"image": f"images/c{index}.nii.gz", "label": f"masks/c{index}.nii.gz"} for index in range(4)]
    (tmp_path / "nii" / "dataset.json").write_text(json.dumps({"training": listed}), encoding="utf-8")
    others = [whole(tmp_path / root) for root in ("nrrd", "mha", "nnunet")]
    for other in (*others, whole(tmp_path / "nii" / "dataset.json", format="datalist")):
        for name, pair in first.items():
            assert all(np.allclose(one, two, atol=1e-6) for one, two in zip(pair, other[name], strict=True))
    assert len(first) == 4


def dicom(path: Path, pixels: np.ndarray, **tags) -> None:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(str(path), enforce_file_format=True)


def test_dicom_images_by_any_name(tmp_path):
    drawn = {}

    def save(path, index):
        pixels = DRAWN.integers(0, 4096, (8, 8))
        turned = index % 2 == 1
        drawn[path.parent.name, index] = pixels
        name = path.with_name(f"IM{index:05}" if index % 3 else f"{index}.dcm")
        dicom(name, 4095 - pixels if turned else pixels, PhotometricInterpretation=f"MONOCHROME{1 if turned else 2}")

    root = folders(tmp_path / "d", save)
    x, _ = values(root)
    seen = {sample.tobytes() for sample in np.round(x * 4095).astype(np.int64)}
    assert seen == {pixels.tobytes() for pixels in drawn.values()}
    ct = folders(
        tmp_path / "ct",
        lambda path, index: dicom(path.with_suffix(".dcm"), DRAWN.integers(0, 4096, (8, 8)), RescaleIntercept=-1024),
    )
    assert "intensity" in refused(ct, "dataset.intensity")
    assert values(ct, intensity=(-160, 240))[0].max() == 1.0


def test_a_series_is_a_volume_sorted_by_place(tmp_path):
    pytest.importorskip("pydicom")
    for index in range(8):
        folder = tmp_path / "v" / LABELS[index % 2] / f"case{index}"
        folder.mkdir(parents=True)
        for at in range(5):
            place = {"ImagePositionPatient": [0, 0, 3 * at], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            spacing = {"PixelSpacing": [1, 1], "SeriesInstanceUID": f"1.2.{index}"}
            dicom(folder / f"{(at * 3) % 5}.dcm", np.full((6, 6), 100 * at), RescaleIntercept=-1024, **place, **spacing)
    x, _ = values(tmp_path / "v", format="nifti", window=(6, 6, 5), intensity=(-1024, -624))
    assert np.allclose(x[:, 0, 0, 0], [0, 0.25, 0.5, 0.75, 1.0])
    (tmp_path / "v" / "benign" / "case0" / "1.dcm").unlink()
    assert "missing" in refused(tmp_path / "v", "dataset.unreadable_image", format="nifti", window=(6, 6, 5))


# Arrays and signals


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


# Tables


def table(separator: str = ",", decimal: str = ".", extra: str = "", cell: str = "") -> str:
    head = separator.join(filter(None, [extra and extra.partition("=")[0], "age", "bp", "hr", "label"]))
    lines = [
        separator.join(filter(None, [extra and extra.partition("=")[2].format(row), *numbers, ("no", "yes")[row % 2]]))
        for row in range(40)
        for numbers in [[str(20 + row), f"{100 + row / 8}".replace(".", decimal), cell or str(60 + row % 7)]]
    ]
    return "\n".join([head, *lines]) + "\n"


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


# What a person sees


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
