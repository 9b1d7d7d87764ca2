import gzip

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_stitching.data import SPLITS, DatasetSpec, SplitRule, open_dataset
from suture_stitching.data.look import look
from suture_stitching.data.windows import outputs_at_once, predict
from suture_stitching.ensemble.compose import compose
from suture_stitching.ensemble.members import Member
from suture_stitching.evaluation.evaluate import evaluate
from suture_stitching.fitting.fit import FitOptions, fit
from suture_stitching.portable.export import export
from suture_stitching.portable.runtime import load

LABELS = ("background", "liver")
WINDOW = (8, 8, 8)


def write_volume(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def pair(root, name, shape=(12, 10, 9), affine=None, suffix=".nii.gz", channels=None):
    """A volume whose bright half is the liver, as its mask says; brighter with every name."""
    image = np.zeros(shape, dtype=np.int16)
    image[: shape[0] // 2] = 100
    mask = (image > 0).astype(np.uint8)
    if channels:
        image = np.stack([image] * channels, axis=-1)
    write_volume(root / "images" / f"{name}{suffix}", image, affine)
    write_volume(root / "masks" / f"{name}{suffix}", mask, affine)


@pytest.fixture
def scans(tmp_path):
    for i in range(10):
        pair(tmp_path / "scans", f"patient{i:02}", shape=(12 + i, 10, 9), suffix=".nii" if i % 2 else ".nii.gz")
    return tmp_path / "scans"


def spec(root, **changes):
    given = {"path": root, "format": "nifti", "task": "segmentation", "labels": LABELS, "window": WINDOW}
    return DatasetSpec(**{**given, **changes})


def read_all(description):
    dataset = open_dataset(description)
    for split in SPLITS:
        list(dataset.batches(split, 2))


def refused(root, code, **changes):
    with pytest.raises(SutureError) as error:
        read_all(spec(root, **changes))
    assert error.value.code == code, error.value
    return str(error.value)


def test_patches_carry_their_masks_and_half_of_them_the_foreground(scans):
    dataset = open_dataset(spec(scans, patches=3, intensity=(0, 100)))
    assert dataset.input_shape == (1, *WINDOW)
    assert dataset.n("train") == 5
    batches = list(dataset.batches("train", 4, seed=1))
    assert sum(len(x) for x, _ in batches) == 15
    for x, y in batches:
        assert x.shape[1:] == (1, *WINDOW)
        assert y.dtype == torch.int64
        assert torch.equal(x[:, 0] > 0.5, y == 1)


@pytest.mark.parametrize("split", SPLITS)
def test_patches_depend_on_the_seed_and_on_nothing_else(scans, split):
    one, four = (open_dataset(spec(scans, workers=workers, intensity=(0, 100))) for workers in (0, 4))
    for seed in (None, 3):
        ours, theirs = (list(dataset.batches(split, 2, seed=seed)) for dataset in (one, four))
        assert len(ours) == len(theirs)
        assert all(
            torch.equal(a, b)
            for left, right in zip(ours, theirs, strict=True)
            for a, b in zip(left, right, strict=True)
        )
    other = torch.cat([y for _, y in one.batches(split, 2, seed=4)])
    assert not torch.equal(other, torch.cat([y for _, y in one.batches(split, 2, seed=3)]))


def test_rare_foreground_is_met_far_more_often_than_by_chance(tmp_path):
    for i in range(10):
        image = np.random.default_rng(i).integers(0, 50, (64, 64, 64)).astype(np.int16)
        mask = np.zeros(image.shape, dtype=np.uint8)
        mask[50:52, 9:11, 30:32] = 1
        write_volume(tmp_path / "images" / f"{i}.nii", image)
        write_volume(tmp_path / "masks" / f"{i}.nii", mask)
    dataset = open_dataset(spec(tmp_path, patches=10))
    shown = torch.cat([y.flatten(1).any(1) for _, y in dataset.batches("train", 10)])
    # By chance about one in 300; half of 50 are centred on it.
    assert 15 <= int(shown.sum()) <= 36


def test_volumes_are_turned_to_ras_and_resampled(tmp_path):
    """One body, stored along other axes and with other voxels, is the same body."""
    straight, turned = tmp_path / "straight", tmp_path / "turned"
    for i in range(4):
        pair(straight, i, shape=(20, 12, 16))
        image = nibabel.load(straight / "images" / f"{i}.nii.gz")
        mask = nibabel.load(straight / "masks" / f"{i}.nii.gz")
        for kind, stored in (("images", image), ("masks", mask)):
            values = np.asarray(stored.dataobj)[::-1].transpose(2, 0, 1)  # stored as (S, L, A)
            affine = np.zeros((4, 4))
            affine[0, 1], affine[1, 2], affine[2, 0] = -1, 1, 1
            affine[0, 3], affine[3, 3] = values.shape[1] - 1, 1
            write_volume(turned / kind / f"{i}.nii.gz", np.ascontiguousarray(values), affine)
    ours, theirs = (open_dataset(spec(root, intensity=(0, 100))) for root in (straight, turned))
    for (x, y), (also_x, also_y) in zip(ours.whole("test"), theirs.whole("test"), strict=True):
        assert x.shape == (1, 1, 20, 12, 16)
        assert torch.equal(x, also_x)
        assert torch.equal(y, also_y)
    coarse = open_dataset(spec(turned, intensity=(0, 100), spacing=(2, 2, 4)))
    x, y = next(coarse.whole("test"))
    assert x.shape[2:] == (10, 6, 5) == y.shape[1:]
    assert y.sum() == y.numel() / 2
    assert set(y.unique().tolist()) == {0, 1}
    assert (x[0, 0][y[0] == 1].mean() - x[0, 0][y[0] == 0].mean()) > 0.8


def test_intensity_is_clipped_and_without_it_each_volume_spans_the_range(scans):
    x, _ = next(open_dataset(spec(scans, intensity=(0, 50), value_range=(-1, 1))).whole("test"))
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    x, _ = next(open_dataset(spec(scans)).whole("test"))
    assert (x.min(), x.max()) == (0, 1)


def test_volumes_with_labels_in_a_file_come_in_one_size(tmp_path):
    lines = ["file,label"]
    for i in range(10):
        values = np.full((6 + i, 9, 7), i % 2 * 100, dtype=np.float32)
        write_volume(tmp_path / f"{i}.nii.gz", values)
        lines.append(f"{i}.nii.gz,{('well', 'ill')[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    dataset = open_dataset(spec(tmp_path, task="classification", labels=("well", "ill"), intensity=(0, 100)))
    assert dataset.window is None
    x, y = next(dataset.batches("train", 10))
    assert x.shape[1:] == (1, *WINDOW)
    assert torch.equal(x.amax((1, 2, 3, 4)) > 0.5, y == 1)
    (tmp_path / "labels.csv").write_text("\n".join(line.replace("well", "1.5").replace("ill", "2") for line in lines))
    dataset = open_dataset(spec(tmp_path, task="regression", labels=()))
    assert set(next(dataset.batches("train", 10))[1].flatten().tolist()) <= {1.5, 2.0}


def test_sliding_windows_give_what_the_model_gives_on_the_whole():
    def model(x):
        assert x.shape[2:] == WINDOW
        return x * 2, torch.cat([x, 1 - x], 1)

    x = torch.rand(1, 1, 19, 8, 5)
    double, two = predict(model, x, WINDOW)
    assert torch.allclose(double, x * 2, atol=1e-5)
    assert torch.allclose(two, torch.cat([x, 1 - x], 1), atol=1e-5)
    (alone,) = predict(lambda part: (part + 1,), x, WINDOW)
    assert torch.allclose(alone, x + 1, atol=1e-5)


def test_as_many_outputs_at_once_as_a_gibibyte_holds():
    """An output of 256 MiB with its weights of 128 MiB: two."""
    assert outputs_at_once((512, 512, 128), 2) == 2
    assert outputs_at_once((512, 512, 512), 2) == 1
    assert outputs_at_once(WINDOW, 2) > 1000


def member(folder, number, make):
    """A network that reads windows, of other weights with every number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        net = nn.Sequential(*make()).eval()
    path = folder / f"{number}.safetensors"
    export(net, torch.rand(2, 1, *WINDOW), path)
    metadata = {
        "schema": "suture.model/1",
        "task": "segmentation",
        "inputs": {"image": {"num_channels": 1, "spatial_shape": WINDOW, "value_range": (0, 1)}},
        "outputs": {"mask": {"num_channels": 2, "spatial_shape": WINDOW}},
        "labels": LABELS,
        "license": "Apache-2.0",
    }
    ref = MemberRef(repo=f"north/net{number}", revision=f"{number:040x}", sha256=f"{number:064x}")
    return Member(load(path), ModelMetadata.model_validate(metadata), ref)


@pytest.fixture(scope="module")
def pair_of_members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    one, two = (
        lambda: (nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 5, 1), nn.ReLU(), nn.Conv3d(5, 2, 1)),
        lambda: (nn.Conv3d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv3d(3, 2, 1)),
    )
    return [member(folder, 1, one), member(folder, 2, two)]


def dice(output, mask):
    """Of the second label, reckoned by sets of voxels."""
    found, truth = (set(map(tuple, (given == 1).nonzero().tolist())) for given in (output.argmax(0), mask))
    return 2 * len(found & truth) / (len(found) + len(truth)) if found or truth else 1.0


def test_members_are_fitted_on_patches_and_measured_on_whole_volumes(scans, pair_of_members, monkeypatch):
    dataset = open_dataset(spec(scans, intensity=(0, 100), workers=1))
    fitted = fit(pair_of_members, dataset, options=FitOptions(refine_steps=10, refine_candidates=1, max_matches=1))
    kinds = [candidate.kind for candidate in fitted.candidates.candidates]
    assert kinds[:3] == ["single", "single", "ensemble"]
    assert "stitched" in kinds
    evaluation = evaluate(pair_of_members, fitted, dataset, own=0)
    assert evaluation.metric == "dice"
    for split in ("validation", "test"):
        assert evaluation.splits[split].n == dataset.n(split)
        for candidate in fitted.candidates.candidates:
            model = compose(pair_of_members, fitted, candidate.id)
            wanted = []
            for x, y in dataset.whole(split):
                (output,) = predict(lambda part, model=model: [model(part)], x, WINDOW)
                wanted.append(dice(output[0], y[0]))
            assert evaluation.splits[split].scores[candidate.id].value == pytest.approx(np.mean(wanted), abs=1e-3)
    values = {score.value for score in evaluation.splits["test"].scores.values()}
    assert len(values) > 2, "scores that are all the same show nothing"

    # With room for one output only, the same comes out.
    monkeypatch.setattr("suture_stitching.data.windows._HELD_BYTES", 1)
    held = []
    monkeypatch.setattr(
        "suture_stitching.evaluation.evaluate.predict", lambda *given: held.append(predict(*given)) or held[-1]
    )
    assert evaluate(pair_of_members, fitted, dataset, own=0) == evaluation
    assert {len(outputs) for outputs in held} == {1}


def test_a_window_that_the_models_do_not_read_is_refused(scans, pair_of_members):
    dataset = open_dataset(spec(scans, window=(6, 6, 6)))
    fitted = fit(pair_of_members, dataset, options=FitOptions(refine_steps=1, refine_candidates=1, max_matches=1))
    with pytest.raises(SutureError, match=r"window = \[8, 8, 8\]") as error:
        evaluate(pair_of_members, fitted, dataset)
    assert error.value.code == "dataset.wrong_shape"


def test_channels_of_all_volumes_agree(scans):
    pair(scans, "patient99", channels=2)
    assert "2 channel(s)" in refused(scans, "dataset.channels_differ")


def test_masks_fit_their_volumes(scans):
    write_volume(scans / "masks" / "patient03.nii", np.zeros((3, 10, 9), dtype=np.uint8))
    assert "patient03" in refused(scans, "dataset.mask_mismatch")
    write_volume(scans / "masks" / "patient03.nii", np.zeros((15, 10, 9), dtype=np.uint8), np.diag([1, 1, 2, 1]))
    assert "patient03" in refused(scans, "dataset.mask_mismatch")
    (scans / "masks" / "patient03.nii").unlink()
    assert "patient03" in refused(scans, "dataset.missing_mask")


def test_a_mask_value_that_is_no_label_names_the_mask(scans):
    write_volume(scans / "masks" / "patient03.nii", np.full((15, 10, 9), 7, dtype=np.uint8))
    message = refused(scans, "dataset.label_out_of_range")
    assert "masks/patient03.nii" in message
    assert "mask_values" in message
    assert "7" not in message.replace("masks/patient03.nii", "")


def test_voxel_sizes_that_differ_need_a_spacing(scans):
    pair(scans, "patient99", affine=np.diag([2, 1, 1, 1]))
    assert "patient99" in refused(scans, "dataset.spacing_differs")
    assert open_dataset(spec(scans, spacing=(1, 1, 1))).n("train") == 6


def test_a_volume_of_nan_is_named(scans):
    values = np.zeros((12, 10, 9), dtype=np.float32)
    values[3, 3, 3] = np.nan
    write_volume(scans / "images" / "patient00.nii.gz", values)
    assert "patient00" in refused(scans, "dataset.not_finite")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-120])


def no_nifti(path):
    path.write_bytes(b"DICM" * 200)


def boastful(path):
    """A header that claims far more voxels than any scanner makes."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.uint8)
    path.write_bytes(header.binaryblock + b"\0" * 100)


def compressed_badly(path):
    content = bytearray(gzip.compress(path.read_bytes()))
    content[-9] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, no_nifti, boastful, compressed_badly])
def test_a_damaged_volume_is_named_or_left_out(scans, damage):
    damage(scans / "images" / "patient03.nii")
    assert "images/patient03.nii" in refused(scans, "dataset.unreadable_image")
    dataset = open_dataset(spec(scans, on_unreadable="skip"))
    assert dataset.skipped == ("images/patient03.nii",)
    assert sum(dataset.n(split) for split in SPLITS) == 9
    for split in SPLITS:
        list(dataset.batches(split, 4))


def test_a_spacing_that_makes_giants_is_refused(scans):
    assert "spacing" in refused(scans, "dataset.huge_array", spacing=(0.001, 0.01, 0.01))


def test_a_training_split_without_foreground_is_refused(tmp_path):
    for i in range(10):
        write_volume(tmp_path / "images" / f"{i}.nii", np.full((9, 9, 9), i, dtype=np.int16))
        write_volume(tmp_path / "masks" / f"{i}.nii", np.zeros((9, 9, 9), dtype=np.uint8))
    assert "'background'" in refused(tmp_path, "dataset.one_class")


def test_patients_with_several_volumes_stay_in_one_split(tmp_path):
    for i in range(12):
        pair(tmp_path, f"patient{i // 3}_scan{i % 3}")
    dataset = open_dataset(spec(tmp_path, group=r"patient(\d+)_", split=SplitRule(validation=0.25, test=0.25)))
    for split, patients in (("train", 2), ("validation", 1), ("test", 1)):
        files = [dataset._samples[index].file for index in dataset._splits[split]]  # type: ignore[attr-defined]
        assert len({file.split("_")[0] for file in files}) == patients
        assert len(files) == 3 * patients


@pytest.mark.parametrize(
    "changes",
    [
        {"window": None},
        {"window": (8, 8)},
        {"spacing": (1, 0, 1)},
        {"intensity": (5, 5)},
        {"channels": 1},
        {"group": "patient"},
        {"group": "("},
        {"mask_values": (0,)},
        {"mask_values": (1, 1)},
        {"format": "npz"},
        {"format": "image_folder"},
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(tmp_path, changes):
    with pytest.raises(ValidationError):
        spec(tmp_path, **changes)


def test_a_specification_survives_being_written(tmp_path):
    for description in (spec(tmp_path, spacing=(1, 1, 2)), DatasetSpec(path=tmp_path, format="npz", labels=LABELS)):
        assert DatasetSpec.model_validate_json(description.model_dump_json()) == description


def test_volumes_that_do_not_say_where_left_is_are_read_as_nibabel_reads_them_and_that_is_said(tmp_path):
    for i in range(4):
        pair(tmp_path, i)
    assert not any("left" in note for note in open_dataset(spec(tmp_path)).notes)
    for path in sorted(tmp_path.glob("*/*.nii.gz")):
        image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), None)
        assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0
        nibabel.save(image, path)
    dataset = open_dataset(spec(tmp_path, intensity=(0, 100)))
    (note,) = [note for note in dataset.notes if "left" in note]
    assert note.startswith("4 volumes, such as ")
    assert note in look(dataset).notes
    x, y = next(dataset.whole("test"))
    stored = np.asarray(nibabel.load(sorted(tmp_path.glob("images/*"))[0]).dataobj)
    assert stored[0].min() == 100  # the bright half comes first in the file, and last as it is read
    assert x[0, 0, 0].max() == 0
    assert x[0, 0, -1].min() == 1
    assert y[0, -1].min() == 1
