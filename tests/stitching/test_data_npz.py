import io
import os
import zipfile

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, ArrayDataset, Columns, DatasetSpec, open_dataset

LABELS = ("benign", "malignant", "unsure")
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (40, 5, 6), dtype=np.uint8)
INDICES = np.arange(40) % 3


def spec(path, **changes):
    return DatasetSpec(**{"path": path, "format": "npz", "labels": LABELS, **changes})


def write(path, save=np.savez, **arrays):
    save(path, **{"images": IMAGES, "labels": INDICES, **arrays})
    return path


def refused(path, code, **changes):
    with pytest.raises(SutureError) as error:
        open_dataset(spec(path, **changes))
    assert error.value.code == code, error.value
    return str(error.value)


def everything(dataset):
    inputs, targets = zip(*(batch for split in SPLITS for batch in dataset.batches(split, 7)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_survive_mapped_or_compressed_in_either_memory_order(tmp_path, save, order):
    path = write(
        tmp_path / "d.npz",
        save,
        images=np.asarray(IMAGES, order=order),
        split=["train"] * 20 + ["validation"] * 10 + ["test"] * 10,
    )
    inputs, targets = everything(open_dataset(spec(path)))
    assert inputs.shape == (40, 1, 5, 6)
    assert torch.allclose(inputs[:, 0], torch.from_numpy(IMAGES) / 255, atol=1e-6)
    assert targets.tolist() == INDICES.tolist()


def test_an_uncompressed_array_is_mapped_not_read(tmp_path):
    dataset = open_dataset(spec(write(tmp_path / "d.npz")))
    base = dataset._inputs  # type: ignore[attr-defined]
    while not isinstance(base, np.memmap):
        base = base.base
    assert base.mode == "r"


def test_the_split_follows_the_content_not_the_order_of_the_samples(tmp_path):
    order = rng.permutation(40)
    straight = open_dataset(spec(write(tmp_path / "a.npz")))
    shuffled = open_dataset(spec(write(tmp_path / "b.npz", images=IMAGES[order], labels=INDICES[order])))
    for split in SPLITS:
        a, b = (torch.cat([x for x, _ in d.batches(split, 9)]).flatten(1) for d in (straight, shuffled))
        assert sorted(a.tolist()) == sorted(b.tolist())


def test_labels_by_name_and_numbers_that_are_names(tmp_path):
    by_name = open_dataset(spec(write(tmp_path / "a.npz", labels=np.array(LABELS)[INDICES])))
    by_index = open_dataset(spec(write(tmp_path / "b.npz")))
    assert by_name.counts("train") == by_index.counts("train")
    numbered = open_dataset(spec(write(tmp_path / "c.npz", labels=INDICES + 1), labels=("1", "2", "3")))
    assert list(numbered.counts("train").values()) == list(by_index.counts("train").values())


@pytest.mark.parametrize(
    ("shape", "delivered"),
    [((40, 5, 6, 3), (3, 5, 6)), ((40, 3, 5, 6), (3, 5, 6)), ((40, 2, 3, 4, 5), (2, 3, 4, 5)), ((40, 9), (9,))],
)
def test_layouts(tmp_path, shape, delivered):
    images = rng.random(shape, dtype=np.float32)
    dataset = open_dataset(spec(write(tmp_path / "d.npz", images=images)))
    assert dataset.input_shape == delivered
    assert dataset.value_range is None
    assert next(dataset.batches("test", 4))[0].shape == (4, *delivered)


def test_masks_and_regression_targets(tmp_path):
    masks = rng.integers(0, 3, (40, 5, 6), dtype=np.uint8)
    dataset = open_dataset(
        spec(write(tmp_path / "m.npz", masks=masks), task="segmentation", columns=Columns(label="masks"))
    )
    targets = next(dataset.batches("test", 4))[1]
    assert (targets.shape, targets.dtype) == ((4, 5, 6), torch.int64)
    assert dataset.counts("test") == dict.fromkeys(LABELS, 12)
    dataset = open_dataset(spec(write(tmp_path / "r.npz", labels=rng.random(40)), task="regression", labels=()))
    targets = next(dataset.batches("test", 4))[1]
    assert (targets.shape, targets.dtype) == ((4, 1), torch.float32)
    assert dataset.counts("test") == {}


def test_pickled_objects_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    labels = np.array([Bomb()] * 40, dtype=object)
    path = write(tmp_path / "d.npz", labels=labels)
    assert "labels" in refused(path, "dataset.pickled")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path, compression):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 100)
        archive.writestr("labels.npy", header.getvalue())
    assert "1000000" in refused(path, "dataset.huge_array")


def test_a_cut_or_foreign_file_is_refused(tmp_path):
    path = write(tmp_path / "d.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "dataset.unreadable")
    path.write_bytes(b"no zip at all")
    refused(path, "dataset.unreadable")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
        archive.writestr("labels.npy", b"no array")
    refused(path, "dataset.unreadable")
    compressed = write(tmp_path / "e.npz", np.savez_compressed)
    content = bytearray(compressed.read_bytes())
    content[200] ^= 0xFF
    compressed.write_bytes(content)
    refused(compressed, "dataset.unreadable")


def one_bad(array, value, at=17):
    changed = array.copy()
    changed[at] = value
    return changed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_by_its_sample(tmp_path, value):
    images = one_bad(IMAGES.astype(np.float32) / 255, value)
    assert "sample 17" in refused(write(tmp_path / "d.npz", images=images), "dataset.not_finite")
    targets = one_bad(rng.random(40), value)
    assert "sample 17" in refused(
        write(tmp_path / "r.npz", labels=targets), "dataset.not_finite", task="regression", labels=()
    )


def test_values_outside_a_declared_range_are_refused_without_showing_them(tmp_path):
    images = one_bad(rng.random((40, 5, 6), dtype=np.float32), 1234.5)
    message = refused(write(tmp_path / "d.npz", images=images), "dataset.value_range", value_range=(0.0, 1.0))
    assert "sample 17" in message
    assert "1234" not in message


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range_is_named_by_its_sample(tmp_path, label):
    assert "sample 17" in refused(write(tmp_path / "d.npz", labels=one_bad(INDICES, label)), "dataset.unknown_label")
    masks = one_bad(np.zeros((40, 5, 6), dtype=np.int16), label)
    assert "sample 17" in refused(
        write(tmp_path / "m.npz", labels=masks), "dataset.label_out_of_range", task="segmentation"
    )


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    assert "40 samples but 39" in refused(write(tmp_path / "a.npz", labels=INDICES[1:]), "dataset.count_mismatch")
    unknown = one_bad(np.array(LABELS)[INDICES], "flu")
    assert "sample 17" in refused(write(tmp_path / "b.npz", labels=unknown), "dataset.unknown_label")
    masks = np.zeros((40, 6, 5), dtype=np.uint8)
    refused(write(tmp_path / "c.npz", labels=masks), "dataset.count_mismatch", task="segmentation")
    refused(write(tmp_path / "d.npz", labels=np.zeros(40, dtype=int)), "dataset.one_class")
    refused(write(tmp_path / "e.npz", split=["train"] * 3), "dataset.unknown_split")
    refused(write(tmp_path / "f.npz", split=["train"] * 40), "dataset.empty_split")
    assert "'scans'" in refused(write(tmp_path / "g.npz"), "dataset.missing_column", columns=Columns(images="scans"))


def test_arrays_in_memory_are_datasets_too():
    dataset = ArrayDataset(torch.rand(30, 2, 4, 4), torch.arange(30) % 2, ("a", "b"))
    inputs, targets = next(dataset.batches("train", 64, seed=3))
    assert inputs.shape == (dataset.n("train"), 2, 4, 4)
    assert dataset.counts("train") == {"a": int((targets == 0).sum()), "b": int((targets == 1).sum())}


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("one",)},
        {"labels": ("one", "one")},
        {"task": "regression"},
        {"format": "csv", "task": "segmentation"},
        {"value_range": (1.0, 0.0)},
        {"channels": 3},
        {"split": {"validation": 0.6, "test": 0.6}},
        {"colour": True},
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(tmp_path, changes):
    with pytest.raises(ValidationError):
        spec(tmp_path, **changes)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.bool_, np.float32])
def test_several_labels_per_sample(tmp_path, kind):
    marks = np.stack([INDICES == 0, INDICES == 1, np.arange(40) % 2 == 0], axis=1).astype(kind)
    path = write(tmp_path / "d.npz", labels=marks, split=["train"] * 20 + ["validation"] * 10 + ["test"] * 10)
    dataset = open_dataset(spec(path, task="multilabel"))
    _, targets = everything(dataset)
    assert targets.dtype == torch.float32
    assert targets.tolist() == marks.astype(float).tolist()
    assert list(dataset.counts("test").values()) == marks[30:].sum(0, dtype=int).tolist()


def test_a_rare_label_is_in_every_split(tmp_path):
    marks = np.ones((40, 3))
    marks[:, 1] = np.arange(40) % 2
    marks[:, 2] = np.arange(40) % 8 == 0
    dataset = open_dataset(spec(write(tmp_path / "d.npz", labels=marks), task="multilabel"))
    assert [dataset.counts(split)["unsure"] for split in SPLITS] == [2, 1, 2]


def test_labels_of_a_wrong_shape_or_value_are_refused(tmp_path):
    marks = np.eye(3)[INDICES]
    refused(write(tmp_path / "a.npz", labels=marks[:, :2]), "dataset.wrong_shape", task="multilabel")
    refused(write(tmp_path / "b.npz"), "dataset.wrong_shape", task="multilabel")
    refused(write(tmp_path / "c.npz", labels=np.array(["a"] * 40)), "dataset.wrong_shape", task="multilabel")
    refused(write(tmp_path / "d.npz", labels=np.ones((40, 3))), "dataset.one_class", task="multilabel")
    for value in (0.5, 2, np.nan):
        path = write(tmp_path / "e.npz", labels=one_bad(marks, value))
        assert "17" in refused(path, "dataset.label_out_of_range", task="multilabel")


@pytest.mark.parametrize("groups", [np.arange(40) // 4, np.array([f"p{i // 4}" for i in range(40)])])
@pytest.mark.parametrize("name", ["group", "patient"])
def test_the_samples_of_a_group_are_in_one_split(tmp_path, groups, name):
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 5, 6))
    path = write(tmp_path / "d.npz", images=images, **{name: groups})
    dataset = open_dataset(spec(path, columns=Columns(group=None if name == "group" else name)))
    seen = []
    for split in SPLITS:
        numbers = (torch.cat([x for x, _ in dataset.batches(split, 9)])[:, 0, 0, 0] * 255).round().int().tolist()
        seen.append({number // 4 for number in numbers})
        assert len(numbers) == 4 * len(seen[-1]) > 0
    assert sum(map(len, seen)) == 10


def test_groups_that_do_not_fit_the_samples_or_the_splits_are_refused(tmp_path):
    assert "40 samples" in refused(write(tmp_path / "a.npz", group=np.arange(39)), "dataset.wrong_shape")
    refused(write(tmp_path / "b.npz", group=np.full(40, 1.5)), "dataset.wrong_shape")
    splits = ["train"] * 22 + ["validation"] * 8 + ["test"] * 10
    path = write(tmp_path / "c.npz", group=np.arange(40) // 4, split=splits)
    assert "sample 22 is in validation" in refused(path, "dataset.group_divided")
    assert "'patient'" in refused(path, "dataset.missing_column", columns=Columns(group="patient"))
