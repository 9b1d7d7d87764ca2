"""Folders of images: read with their labels and splits, or refused by name."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from tests.stitching.image_folders import LABELS, every_line, read, refused, spec, write_image, write_labels

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, Columns, SplitRule, open_dataset


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / "scans"
    for label, value in (("normal", 0), ("pneumonia", 255)):
        for i in range(10):
            write_image(root / label / f"{i:02}.png", value - i if value else i)
    return root


def test_images_come_scaled_with_the_index_of_their_folder(scans):
    dataset = open_dataset(spec(scans))
    assert dataset.input_shape == (1, 4, 6)
    assert [dataset.n(split) for split in SPLITS] == [10, 4, 6]
    assert dataset.counts("test") == {"normal": 3, "pneumonia": 3}
    inputs, targets = read(dataset, "train")
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert inputs.shape == (10, 1, 4, 6)
    # The dark images are 'normal': the label must follow its image.
    assert torch.equal(inputs.mean(dim=(1, 2, 3)) > 0.5, targets == 1)
    assert inputs.min() >= 0
    assert inputs.max() <= 1


def test_a_declared_value_range_is_what_is_delivered(scans):
    inputs, _ = read(open_dataset(spec(scans, value_range=(-1.0, 1.0))), "train")
    assert inputs.min() < -0.9
    assert inputs.max() > 0.9


def test_a_seed_shuffles_the_same_way_twice_and_no_seed_keeps_the_order(scans):
    dataset = open_dataset(spec(scans))
    plain, once, twice = read(dataset, "train"), read(dataset, "train", seed=5), read(dataset, "train", seed=5)
    assert torch.equal(once[0], twice[0])
    assert not torch.equal(plain[0], once[0])
    assert torch.equal(plain[1].bincount(), once[1].bincount())


def test_the_split_does_not_depend_on_where_the_folder_lies(scans, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(scans, moved)
    before, after = open_dataset(spec(scans)), open_dataset(spec(moved))
    for split in SPLITS:
        assert torch.equal(read(before, split)[0], read(after, split)[0])


def test_top_folders_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        for label in LABELS:
            for i in range(count):
                write_image(tmp_path / split / label / f"{i}.png")
    dataset = open_dataset(spec(tmp_path))
    assert [dataset.n(split) for split in SPLITS] == [8, 4, 6]


def test_colour_and_sixteen_bit_images(tmp_path):
    for label in LABELS:
        for i in range(4):
            write_image(tmp_path / "colour" / label / f"{i}.png", (255, 0, 0), mode="RGB")
            deep = Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16))
            (tmp_path / "deep" / label).mkdir(parents=True, exist_ok=True)
            deep.save(tmp_path / "deep" / label / f"{i}.png")
    inputs, _ = read(open_dataset(spec(tmp_path / "colour")), "train")
    assert inputs.shape[1:] == (3, 4, 6)
    assert torch.equal(inputs[0].mean(dim=(1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    inputs, _ = read(open_dataset(spec(tmp_path / "deep")), "train")
    assert inputs.shape[1:] == (1, 4, 6)
    assert inputs.min() == 1
    grey = open_dataset(spec(tmp_path / "colour", channels=1))
    assert grey.input_shape == (1, 4, 6)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak(count):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for label in LABELS:
            for i in range(count):
                write_image(root / label / f"{i:04}.png", size=(64, 64))
        dataset = open_dataset(spec(root, split=SplitRule(validation=0.45, test=0.45), workers=2))
        tracemalloc.start()
        for _ in dataset.batches("test", 8):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    pixels = 64 * 64 * 4
    peak(50)  # Pillow's own one-time allocations
    # How many of the five batches there may be at a time are there at once is left to the threads.
    growth = (250 - 50) * len(LABELS) * 0.45 * pixels
    assert peak(250) - peak(50) < growth / 4


def test_a_label_file_that_agrees_is_accepted_and_may_name_splits(scans):
    write_labels(scans, every_line(scans))
    assert open_dataset(spec(scans)).n("test") == 6
    names = ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    write_labels(
        scans, [f"{line},{names[i % 10]}" for i, line in enumerate(every_line(scans))], header="file,label,split"
    )
    assert [open_dataset(spec(scans)).n(split) for split in SPLITS] == [10, 4, 6]


def test_a_label_file_may_label_images_that_lie_in_one_folder(tmp_path):
    for i in range(20):
        write_image(tmp_path / f"{i:02}.png", i)
    write_labels(tmp_path, [f"{i:02}.png,{LABELS[i % 2]}" for i in range(20)])
    assert open_dataset(spec(tmp_path)).counts("train") == {"normal": 5, "pneumonia": 5}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda lines: lines[1:], "dataset.unlabelled_image", "normal/00.png"),
        (lambda lines: [*lines, "normal/99.png,normal"], "dataset.missing_image", "normal/99.png"),
        (lambda lines: [*lines, lines[0]], "dataset.duplicate", "line 22"),
        (lambda lines: ["normal/00.png,flu", *lines[1:]], "dataset.unknown_label", "normal/00.png"),
        (lambda lines: ["normal/00.png,pneumonia", *lines[1:]], "dataset.contradiction", "'pneumonia'"),
        (lambda lines: ["normal/00.png", *lines[1:]], "dataset.incomplete_line", "line 2"),
        (lambda lines: ["normal/00.png,normal,train", *lines[1:]], "dataset.incomplete_line", "line 2"),
    ],
)
def test_a_label_file_that_contradicts_the_images_is_refused(scans, change, code, says):
    write_labels(scans, change(every_line(scans)))
    message = refused(scans, code)
    assert says in message
    assert "labels.csv" in message


def test_an_unknown_or_partial_split_is_refused(scans):
    lines = every_line(scans)
    write_labels(scans, [f"{lines[0]},holdout", *[f"{line},train" for line in lines[1:]]], header="file,label,split")
    assert "normal/00.png" in refused(scans, "dataset.unknown_split")
    write_labels(scans, [f"{lines[0]},", *[f"{line},train" for line in lines[1:]]], header="file,label,split")
    assert "normal/00.png" in refused(scans, "dataset.unknown_split")


def test_a_label_file_that_contradicts_a_split_folder_is_refused(tmp_path):
    for label in LABELS:
        for split in SPLITS:
            write_image(tmp_path / split / label / "a.png")
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name},test" for file in sorted(tmp_path.rglob("*.png"))]
    write_labels(tmp_path, rows, header="file,label,split")
    assert "split 'test'" in refused(tmp_path, "dataset.contradiction")


def test_a_damaged_image_is_named(scans):
    good = (scans / "normal" / "03.png").read_bytes()
    (scans / "normal" / "03.png").write_bytes(good[:45])  # the header is whole
    assert "normal/03.png" in refused(scans, "dataset.unreadable_image")
    (scans / "normal" / "03.png").write_bytes(b"not an image")
    assert "normal/03.png" in refused(scans, "dataset.unreadable_image")


def test_a_header_that_claims_billions_of_pixels_is_refused_unread(scans):
    (scans / "normal" / "03.pgm").write_bytes(b"P5 60000 60000 255\n")
    assert "far too many pixels" in refused(scans, "dataset.unreadable_image")


def test_a_file_that_is_no_image_is_refused_in_a_class_folder_and_ignored_beside_it(scans):
    (scans / "README.txt").write_text("from the PACS")
    (scans / "normal" / ".DS_Store").write_text("")
    open_dataset(spec(scans))
    (scans / "normal" / "scan.dcm").write_text("x")
    assert "normal/scan.dcm" in refused(scans, "dataset.unreadable_image")


def test_two_sizes_name_both_images(scans):
    write_image(scans / "pneumonia" / "99.png", size=(7, 4))
    message = refused(scans, "dataset.sizes_differ")
    assert "pneumonia/99.png has 4 x 7" in message
    assert "normal/00.png has 4 x 6" in message


def test_grey_and_colour_together_need_a_decision(scans):
    write_image(scans / "pneumonia" / "99.png", (1, 2, 3), mode="RGB")
    assert "channels = 1" in refused(scans, "dataset.channels_differ")
    assert open_dataset(spec(scans, channels=3)).input_shape == (3, 4, 6)


def test_folders_that_are_no_label_and_images_in_no_folder_are_refused(scans):
    write_image(scans / "flu" / "1.png")
    assert "flu/1.png" in refused(scans, "dataset.unknown_label")
    shutil.rmtree(scans / "flu")
    write_image(scans / "lost.png")
    assert "lost.png" in refused(scans, "dataset.unlabelled_image")


def test_folders_keep_their_names_and_have_those_of_the_models(scans):
    first = LABELS[0]
    assert open_dataset(spec(scans, labels=(first.upper(), *LABELS[1:]))).labels[0] == first.upper()
    (scans / first.title()).mkdir()  # two spellings in one place may be two things
    Image.new("L", (6, 4)).save(scans / first.title() / "x.png")
    assert "aliases = {" in refused(scans, "dataset.unknown_label", labels=(first.upper(), *LABELS[1:]))
    shutil.rmtree(scans / first.title())
    renamed = open_dataset(spec(scans, aliases={first: first.upper()}))
    assert renamed.labels == (first.upper(), *LABELS[1:])
    plain = open_dataset(spec(scans))
    for split in ("train", "validation", "test"):
        assert list(renamed.counts(split).values()) == list(plain.counts(split).values())


def test_an_alias_of_no_label_or_for_two_is_refused(scans):
    with pytest.raises(ValueError, match="did you mean"):
        spec(scans, aliases={LABELS[0].upper(): "x"})
    with pytest.raises(ValueError, match="one name"):
        spec(scans, aliases={LABELS[0]: LABELS[1]})


def test_one_class_only_and_no_images_at_all_are_refused(scans, tmp_path):
    shutil.rmtree(scans / "pneumonia")
    assert "'normal'" in refused(scans, "dataset.one_class")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "dataset.empty")


def test_a_site_that_only_evaluates_needs_no_training_images(tmp_path):
    for label in LABELS:
        for split in ("validation", "test"):
            write_image(tmp_path / split / label / "a.png")
    dataset = open_dataset(spec(tmp_path))
    assert (dataset.n("train"), dataset.n("test")) == (0, 2)
    with pytest.raises(SutureError, match="train split"):
        next(dataset.batches("train", 4))


def test_an_image_that_vanishes_after_opening_is_named(scans):
    dataset = open_dataset(spec(scans))
    for file in scans.rglob("*.png"):
        file.unlink()
    with pytest.raises(SutureError, match="the file is gone"):
        next(dataset.batches("train", 4))


def test_a_missing_path_and_a_file_for_a_folder_say_so(scans):
    assert "mounted" in refused(scans / "nowhere", "dataset.missing_path")
    refused(scans / "normal" / "00.png", "dataset.wrong_format")
    refused(scans, "dataset.wrong_format", format="npz")


# Several labels, values, groups and what is left out


def several(root, count=20, group=""):
    """A `labels.csv` in which every second image has the first label and every third the second."""
    for i in range(count):
        write_image(root / f"{i:02}.png", i)
    rows = [f"{i:02}.png,{int(i % 2 == 0)},{int(i % 3 == 0)}{group.format(i // 4)}" for i in range(count)]
    write_labels(root, rows, header="file,cyst,stone" + (",group" if group else ""))
    return {"task": "multilabel", "labels": ("cyst", "stone")}


def test_several_labels_per_image(tmp_path):
    dataset = open_dataset(spec(tmp_path, **several(tmp_path)))
    seen = [read(dataset, split) for split in SPLITS]
    for inputs, targets in seen:
        assert targets.dtype == torch.float32
        number = (inputs[:, 0, 0, 0] * 255).round()
        assert torch.equal(targets, torch.stack([number % 2 == 0, number % 3 == 0], 1).float())
    assert sum(len(targets) for _, targets in seen) == 20
    assert sum(dataset.counts(split)["stone"] for split in SPLITS) == 7


@pytest.mark.parametrize(
    ("cell", "code"),
    [("2", "dataset.label_out_of_range"), ("yes", "dataset.not_numbers"), ("nan", "dataset.label_out_of_range")],
)
def test_a_cell_that_is_neither_0_nor_1_is_named_by_its_line_and_not_shown(tmp_path, cell, code):
    several_labels = several(tmp_path)
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace("03.png,0", f"03.png,{cell}"))
    message = refused(tmp_path, code, **several_labels)
    assert "line 5" in message
    assert f"'{cell}'" not in message


def test_labels_without_a_column_and_without_a_file_are_refused(tmp_path):
    several(tmp_path)
    columns = {"task": "multilabel", "labels": ("cyst", "stone", "polyp")}
    assert "file,cyst,stone,polyp" in refused(tmp_path, "dataset.missing_column", **columns)
    (tmp_path / "labels.csv").unlink()
    assert "file,cyst,stone,polyp" in refused(tmp_path, "dataset.missing_labels", **columns)


def test_labels_that_are_the_same_for_all_are_refused(tmp_path):
    several_labels = several(tmp_path)
    write_labels(tmp_path, [f"{i:02}.png,1,0" for i in range(20)], header="file,cyst,stone")
    refused(tmp_path, "dataset.one_class", **several_labels)


def test_values_per_image(tmp_path):
    for i in range(10):
        write_image(tmp_path / f"{i}.png", i)
    write_labels(tmp_path, [f"{i}.png,{i / 2}" for i in range(10)], header="file,age")
    dataset = open_dataset(spec(tmp_path, task="regression", labels=(), columns=Columns(label="age")))
    inputs, targets = read(dataset, "train")
    assert torch.allclose(targets, inputs[:, 0, 0, :1] * 255 / 2)


def groups_by_split(dataset):
    return [{dataset._samples[index].group for index in dataset._splits[split]} for split in SPLITS]


def test_a_group_in_the_label_file_or_in_the_file_names_is_in_one_split(tmp_path):
    listed = open_dataset(spec(tmp_path, **several(tmp_path, 40, group=",p{}")))
    for label in LABELS:
        for i in range(20):
            write_image(tmp_path / "named" / label / f"patient{i // 4}_{i}.png", i)
    named = open_dataset(spec(tmp_path / "named", group=r"patient(\d+)_"))
    for dataset, patients in ((listed, 10), (named, 5)):
        train, validation, test = groups_by_split(dataset)
        assert len(train) + len(validation) + len(test) == len(train | validation | test) == patients
        assert all((train, validation, test))


def test_a_name_without_a_group_is_named(scans):
    assert "normal/00.png" in refused(scans, "dataset.no_group", group=r"patient(\d+)_")


def test_splits_that_divide_a_group_are_refused(scans, tmp_path):
    lines = [f"{line},{('train', 'validation', 'test')[i % 3]},p{i // 2}" for i, line in enumerate(every_line(scans))]
    write_labels(scans, lines, header="file,label,split,group")
    message = refused(scans, "dataset.group_divided")
    assert "sample 1 is in validation" in message
    assert "p0" not in message
    for split in SPLITS:
        for label in LABELS:
            write_image(tmp_path / "named" / split / label / "patient7_1.png")
    refused(tmp_path / "named", "dataset.group_divided", group=r"patient(\d+)_")


def test_what_cannot_be_read_is_left_out_and_counted(scans):
    good = (scans / "normal" / "03.png").read_bytes()
    (scans / "normal" / "03.png").write_bytes(good[:45])
    (scans / "pneumonia" / "01.png").write_bytes(b"not an image")
    (scans / "normal" / "scan.raw").write_text("x")
    assert "normal/scan.raw" in refused(scans, "dataset.unreadable_image")
    dataset = open_dataset(spec(scans, on_unreadable="skip"))
    assert dataset.skipped == ("normal/scan.raw", "normal/03.png", "pneumonia/01.png")
    assert sum(len(read(dataset, split)[0]) for split in SPLITS) == 18
    assert [sum(dataset.counts(split)[label] for split in SPLITS) for label in LABELS] == [9, 9]


def test_a_folder_of_which_nothing_can_be_read_is_refused(scans):
    for file in scans.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:45])
    assert "normal/00.png" in refused(scans, "dataset.unreadable_image", on_unreadable="skip")
    for file in scans.rglob("*.png"):
        file.write_bytes(b"")
    assert "normal/00.png" in refused(scans, "dataset.unreadable_image", on_unreadable="skip")
