"""What lies beside data, and formats that are not read: left alone, or refused with what to make of them."""

from __future__ import annotations

import json
import os
import unicodedata

import h5py
import numpy as np
import pytest
from PIL import Image
from tests.stitching.kinds import LABELS, PICTURE, described, folders, grey, refused, values

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.dicom import is_dicom
from suture_stitching.data.formats import format_of
from suture_stitching.data.look import look
from suture_stitching.data.spec_file import read_spec
from suture_stitching.data.suggest import suggest
from suture_stitching.data.words import of_one_patient

NAME = "Müller{}.png"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.feather", "Parquet"),
        ("a.ods", ".xlsx"),
        ("a.sqlite", "query"),
        ("a.jsonl", "CSV"),
        ("a.tfrecord", "numpy.savez"),
        ("a.tgz", "unpack"),
        ("a.edf", "numpy.save"),
        ("a.svs", "PNG"),
        ("a.MGZ", "NIfTI"),
        ("a.pkl", "numpy.savez"),
    ],
)
def test_what_is_not_read_is_named_with_what_to_make_of_it(tmp_path, name, what):
    path = tmp_path / name
    path.write_bytes(b"x" * 200)
    with pytest.raises(SutureError) as error:
        format_of(path)
    assert error.value.code == "dataset.unknown_format"
    assert what in (error.value.hint or "")
    with pytest.raises(SutureError, match="holds no files of a sample each"):
        format_of(tmp_path)
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    (root / "benign" / name).write_bytes(b"x")
    assert what in refused(root, "dataset.unreadable_image")


@pytest.mark.parametrize("folder", [["a.parquet", "b.parquet"], ["train.csv", "test.csv"], ["year/a.xlsx"], ["a.npz"]])
def test_a_folder_of_tables_is_no_dataset(tmp_path, folder):
    for name in folder:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SutureError, match="name the file itself"):
        format_of(tmp_path)


def test_a_store_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "a.zarr" / "images").mkdir(parents=True)
    (tmp_path / "a.zarr" / "images" / "0.0").write_bytes(b"x")
    with pytest.raises(SutureError, match="a Zarr store"):
        format_of(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([{"image": "a.png", "label": "benign"}], "a list of records"),
        ({"images": [], "annotations": [], "categories": []}, "COCO"),
        ({"shapes": [], "imagePath": "a.png"}, "labelme"),
        ({"type": "FeatureCollection", "features": []}, "QuPath"),
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0}}, "nnU-Net"),
    ],
)
def test_json_that_describes_nothing_is_named(tmp_path, content, what):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    for read in (format_of, read_spec):
        with pytest.raises(SutureError, match=what) as error:
            read(path)
        assert error.value.code == "dataset.unknown_format"


@pytest.mark.parametrize("ending", ["json", "txt"])
def test_outlines_are_no_masks(tmp_path, ending):
    for index in range(10):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
        grey().save(tmp_path / "images" / f"{index}.png")
        (tmp_path / "labels" / f"{index}.{ending}").write_text("0 0.5 0.5 0.2 0.2", encoding="utf-8")
    message = refused(tmp_path, "dataset.missing_mask", task="segmentation", format="image_folder")
    assert f"labels/0.{ending}" in message
    assert "draw them" in message


def test_arrays_by_patient_are_not_all_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for patient in range(40):
            file[f"P{patient:02}/images"] = np.zeros((2, 1, 8, 8), np.uint8)
    message = refused(tmp_path / "a.h5", "dataset.missing_column")
    assert "and 32 more" in message
    assert "P39" not in message


def test_names_in_several_unicode_forms_are_one(tmp_path):
    """macOS writes letters and their marks apart, Windows together."""
    rows = []
    for index in range(20):
        for kind in ("scans", "images", "masks"):
            (tmp_path / kind / "all" if kind == "scans" else tmp_path / "pairs" / kind).mkdir(
                parents=True, exist_ok=True
            )
        name = NAME.format(index)
        apart = unicodedata.normalize("NFD", name)
        grey().save(tmp_path / "scans" / "all" / apart)
        rows.append(f"all/{name},{LABELS[index % 2]}")
        grey().save(tmp_path / "pairs" / "images" / name)
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "pairs" / "masks" / apart)
    for listed in (rows, [row.removeprefix("all/") for row in rows]):
        (tmp_path / "scans" / "labels.csv").write_text("\n".join(["file,label", *listed]), encoding="utf-8")
        assert len(values(tmp_path / "scans")[0]) == 20
        assert len(values(tmp_path / "scans" / "labels.csv", format="list")[0]) == 20
    assert (values(tmp_path / "pairs", task="segmentation")[1] == np.eye(8)).all()


def test_what_network_drives_leave_is_none_of_the_data(tmp_path):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    for name in ("System Volume Information/x.png", "@Recycle/benign/y.png", "#snapshot/z.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    for name in ("~$labels.xlsx", "Icon\r", "ehthumbs.db"):
        (root / "benign" / name).write_bytes(b"x")
    assert len(values(root)[0]) == 20
    assert suggest(root).fields["labels"][0] == list(LABELS)


def test_splits_below_the_classes_are_heeded(tmp_path):
    for label in LABELS:
        folders(tmp_path / "s" / label, lambda path, _: grey().save(path), names=("train", "val", "test"), n=4)
    dataset = open_dataset(described(tmp_path / "s"))
    assert [dataset.n(split) for split in SPLITS] == [8, 8, 8]
    assert all(f"/{split[:3]}" in file for file, split in zip(dataset.samples, dataset.split_of(), strict=True))


@pytest.mark.parametrize(
    "names", [("train.txt", "test.txt"), ("train_list.csv", "val_list.csv"), ("Test.lst", "TRAIN.lst")]
)
def test_lists_of_splits_are_never_passed_over(tmp_path, names):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    (root / names[0]).write_text("benign/00.png\n", encoding="utf-8")
    assert len(values(root, format="image_folder")[0]) == 20  # one may be anything
    (root / names[1]).write_text("benign/01.png\n", encoding="utf-8")
    message = refused(root, "dataset.unknown_split", format="image_folder")
    assert all(name in message for name in names)
    lines = [
        f"{label}/{index:02}.png,{label},{('train', 'val', 'test')[index % 3]}"
        for label in LABELS
        for index in range(10)
    ]
    (root / "labels.csv").write_text("\n".join(["file,label,split", *lines]), encoding="utf-8")
    assert len(values(root, format="image_folder")[0]) == 20


def test_patients_that_folders_name_are_a_doubt_and_suggested(tmp_path):
    for label in LABELS:
        names = [f"P{number:02}{label[0]}" for number in range(8)]
        folders(tmp_path / "s" / label, lambda path, _: grey().save(path), names=names, n=2)
    root = tmp_path / "s"
    assert look(open_dataset(described(root))).alike == 32
    section = suggest(root).fields["group"][0]
    dataset = open_dataset(described(root, group=section))
    assert sum(dataset.patients(split) for split in SPLITS) == 16
    assert look(dataset).alike == 0


def test_columns_of_other_names_list_files_and_labels_in_one_cell_are_explained(tmp_path):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    lines = [
        f"{label}/{index:02}.png,{'Edema|Effusion' if index % 2 else 'Edema'}"
        for label in LABELS
        for index in range(10)
    ]
    (root / "entry.csv").write_text("\n".join(["Image Index,Finding Labels", *lines]), encoding="utf-8")
    assert format_of(root / "entry.csv") == "list"
    message = refused(root / "entry.csv", "dataset.missing_column", task="multilabel", labels=("Edema", "Effusion"))
    assert "get_dummies" in message


def test_what_models_read_is_heeded_wherever_a_description_comes_from(tmp_path):
    """In a site.toml, `input` is a table of texts and numbers."""
    path = tmp_path / "a.npz"
    np.savez(path, images=np.linspace(0, 255, 20 * 64).reshape(20, 1, 8, 8), labels=np.arange(20) % 2)
    fields = {"path": path, "format": "npz", "labels": LABELS}
    for reads in (PICTURE, PICTURE.model_dump(mode="json")):
        with pytest.raises(SutureError) as error:
            open_dataset(DatasetSpec.model_validate({**fields, "input": reads}))
        assert error.value.code == "dataset.value_range"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("case_00001/imaging.nii.gz", "case_00001/segmentation.nii.gz"),
        ("P01/image.nii.gz", "P01/mask.nii.gz"),
        ("images/P01.nii.gz", "ground_truth/P01.nii.gz"),
        ("JPEGImages/P01.nii.gz", "SegmentationClass/P01.nii.gz"),
    ],
)
def test_images_and_masks_by_other_names(tmp_path, image, mask):
    nibabel = pytest.importorskip("nibabel")
    for index in range(10):
        for name in (image, mask):
            path = tmp_path / name.replace("01", f"{index:02}")
            path.parent.mkdir(parents=True, exist_ok=True)
            cube = np.zeros((8, 8, 8), np.float32)
            cube[:4] = 1 if name == mask else index + 1
            nibabel.save(nibabel.Nifti1Image(cube, np.eye(4)), path)
    x, y = values(tmp_path, task="segmentation", window=(8, 8, 8), intensity=(0, 1), patches=1)
    assert len(y) == 10
    assert np.array_equal(x[:, 0] > 0, y == 1)


@pytest.mark.parametrize("listed", ["labels.csv", "list.csv"])
def test_names_without_their_endings_are_found(tmp_path, listed):
    root = folders(tmp_path / "scans", lambda path, index: grey().save(path), names=("a", "b"))
    for file in sorted(root.rglob("*.png")):
        file.rename(file.with_stem(f"{file.parent.name}.{file.stem}"))
    rows = [f"{folder}.{index:02},{LABELS[index % 2]}" for folder in "ab" for index in range(10)]
    (root / listed).write_text("\n".join(["image_id,label", *rows]), encoding="utf-8")
    assert format_of(root / "list.csv") == "list" if listed == "list.csv" else True
    assert len(values(root / listed, format="list")[0]) == 20
    # Two files of one name are told apart by their endings alone.
    grey().save(root / "a" / "a.00.tif")
    assert "no such file" in refused(root / listed, "dataset.missing_image", format="list")


def test_a_table_beside_the_folders_is_pointed_to(tmp_path):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path), names=("x", "y"))
    (root / "Labels.CSV").write_text("file,label\n", encoding="utf-8")
    assert "if Labels.CSV says the labels" in refused(root, "dataset.unknown_label", format="image_folder")


def test_a_column_per_label_is_explained(tmp_path):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    rows = [
        f"{label}/{index:02}.png,{int(label == 'benign')},{int(label != 'benign')}"
        for label in LABELS
        for index in range(10)
    ]
    (root / "list.csv").write_text("\n".join(["image,benign,malignant", *rows]), encoding="utf-8")
    assert "idxmax" in refused(root / "list.csv", "dataset.missing_column")
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["age,benign,malignant", *[f"{row},1,0" for row in range(40)]]), encoding="utf-8")
    assert "idxmax" in refused(table, "dataset.missing_column")
    table.write_text("\n".join(["age,benign,malignant", *[f"{row},yes,no" for row in range(40)]]), encoding="utf-8")
    assert "holds 1 where a row has it" in refused(table, "dataset.not_numbers", task="multilabel")


@pytest.mark.parametrize(
    ("first", "second"), [("12_left", "12_right"), ("P00001_LEFT_CC", "P00001_RIGHT_MLO"), ("7OD", "7-OS")]
)
def test_sides_and_views_of_one_patient_are_a_doubt(first, second):
    assert of_one_patient([f"benign/{first}.png", f"benign/{second}.png", "benign/13_left.png"]) == 2


def test_names_that_are_no_text_are_refused(tmp_path):
    root = folders(tmp_path / "scans", lambda path, _: grey().save(path))
    try:
        (root / "benign" / "00.png").rename(root / "benign" / os.fsdecode(b"M\xfcller.png"))
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    message = refused(root, "file.encoding", format="image_folder")
    assert "benign/M" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of POSIX")
def test_a_pipe_is_not_read(tmp_path):
    """Whoever reads one waits for ever; this one has something to read, so that the test ends."""
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(pipe, b"\0" * 128 + b"DICM")
        assert not is_dicom(tmp_path / "pipe")
    finally:
        os.close(pipe)


def test_arrays_in_files_of_their_own_are_no_signals(tmp_path):
    for name in ("X_train", "y_train", "X_test", "y_test"):
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 2)))
    with pytest.raises(SutureError, match="no files of a sample each") as error:
        format_of(tmp_path)
    assert "numpy.savez" in (error.value.hint or "")
