"""Volumes and DICOM of every program: read rightly, with whose they are and how far apart their positions lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.stitching.kinds import DRAWN, LABELS, described, dicom, folders, refused, values

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, open_dataset
from suture_stitching.data.suggest import suggest


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


@pytest.mark.parametrize("told", ["PatientID", "StudyInstanceUID"])
@pytest.mark.parametrize("volumes", [False, True])
def test_dicom_says_itself_whose_it_is(tmp_path, told, volumes):
    pytest.importorskip("pydicom")
    for index in range(20):
        folder = tmp_path / LABELS[index % 2] / f"{index}"
        folder.mkdir(parents=True)
        patient = index // 4 * 2 + index % 2  # two series of each
        for at in range(3):
            whose = {"PatientID": "anonymous", "StudyInstanceUID": "1.2", told: f"1.2.{patient}"}
            place = {"ImagePositionPatient": [0, 0, at], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            pixels = DRAWN.integers(0, 4096, (6, 6))
            dicom(folder / f"{at}.dcm", pixels, SeriesInstanceUID=f"1.2.{index}", PixelSpacing=[1, 1], **whose, **place)
    given = {"format": "nifti", "window": (6, 6, 3)} if volumes else {}
    dataset = open_dataset(described(tmp_path, **given))
    assert dataset.grouped
    assert sum(dataset.patients(split) for split in SPLITS) == 10
    split = dict(zip(dataset.samples, dataset.split_of(), strict=True))
    places = {}
    for file, name in split.items():
        index = int(file.split("/")[1])
        places.setdefault(index // 4 * 2 + index % 2, set()).add(name)
    assert all(len(names) == 1 for names in places.values())
    assert any(told in note for note in dataset.notes)
    assert 'format = "nifti"' in suggest(tmp_path).toml("mine")


def test_where_all_dicom_is_of_one_name_nothing_is_grouped(tmp_path):
    pytest.importorskip("pydicom")
    whose = {"PatientID": "anonymous", "StudyInstanceUID": "1.2"}
    root = folders(
        tmp_path / "d", lambda path, _: dicom(path.with_suffix(".dcm"), DRAWN.integers(0, 4096, (8, 8)), **whose)
    )
    assert not open_dataset(described(root)).grouped


def test_how_far_pixels_lie_apart_is_known_where_all_files_say_it_alike(tmp_path):
    def scans(name, *said):
        def save(path, index):
            tags = said[index % len(said)]
            dicom(path.with_suffix(".dcm"), DRAWN.integers(0, 4096, (8, 8)), **tags)

        return folders(tmp_path / name, save)

    def spacing(path, **given):
        return open_dataset(described(path, **given)).spacing

    known = scans("known", {"PixelSpacing": [0.5, 0.25]})
    assert spacing(known) == (0.5, 0.25)
    assert spacing(known, resize=(4, 16)) == (1.0, 0.125)
    assert spacing(known, crop=(4, 4)) == (0.5, 0.25)
    assert spacing(scans("none", {})) is None
    assert spacing(scans("some", {"PixelSpacing": [0.5, 0.25]}, {})) is None
    assert spacing(scans("other", {"PixelSpacing": [0.5, 0.5]}, {"PixelSpacing": [1, 1]})) is None


def test_how_far_voxels_lie_apart(tmp_path):
    nibabel, place = pytest.importorskip("nibabel"), {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    for index in range(8):
        for name, unit in (("mm", "mm"), ("metres", "meter")):
            image = nibabel.Nifti1Image(np.zeros((6, 6, 5), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
            image.header.set_xyzt_units(unit)
            path = tmp_path / name / LABELS[index % 2] / f"{index}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(image, path)
        for name, said in (("said", {"PixelSpacing": [2, 1]}), ("unsaid", {})):
            folder = tmp_path / name / LABELS[index % 2] / f"case{index}"
            folder.mkdir(parents=True)
            for at in range(5):
                tags = {"ImagePositionPatient": [0, 0, 3 * at], "SeriesInstanceUID": f"1.2.{index}", **place, **said}
                dicom(folder / f"{at}.dcm", np.full((6, 6), 100 * at), **tags)

    def spacing(name, **given):
        given = {"format": "nifti", "window": (6, 6, 5), "intensity": (0, 400), **given}
        return open_dataset(described(tmp_path / name, **given)).spacing

    assert spacing("mm") == (1.0, 2.0, 3.0)
    assert spacing("mm", spacing=(1.0, 1.0, 1.0)) == (1.0, 1.0, 1.0)
    assert spacing("said") == (1.0, 2.0, 3.0)
    assert spacing("metres") is None
    assert spacing("unsaid") is None


def _enhanced(sequences: dict[str, dict], frames: list[dict[str, dict]]) -> dict:
    """Tags of an enhanced image: what holds for all frames, and for each, by the functional group that says it."""
    from pydicom.dataset import Dataset

    def group(said: dict[str, dict]) -> Dataset:
        whole = Dataset()
        for name, tags in said.items():
            inside = Dataset()
            for tag, value in tags.items():
                setattr(inside, tag, value)
            setattr(whole, name, [inside])
        return whole

    return {
        "SharedFunctionalGroupsSequence": [group(sequences)],
        "PerFrameFunctionalGroupsSequence": [group(frame) for frame in frames],
    }


def test_an_enhanced_image_is_the_series_that_it_stands_for(tmp_path):
    pytest.importorskip("pydicom")
    from suture_stitching.data.volume_files import open_volume

    axes, spacing, order = [1, 0, 0, 0, 0, -1], [0.5, 0.25], [2, 0, 3, 1]  # coronal
    slices = DRAWN.integers(0, 4096, (4, 6, 5))
    places = [[0, 2 * at, 0] for at in range(4)]
    (tmp_path / "series").mkdir()
    for at in range(4):
        tags = {"ImagePositionPatient": places[at], "ImageOrientationPatient": axes, "PixelSpacing": spacing}
        rescale = {"RescaleSlope": at + 1, "RescaleIntercept": -1024}
        dicom(tmp_path / "series" / f"{at}.dcm", slices[at], SeriesInstanceUID="1.2", **tags, **rescale)
    groups = {
        "PixelMeasuresSequence": {"PixelSpacing": spacing, "SliceThickness": 7},
        "PlaneOrientationSequence": {"ImageOrientationPatient": axes},
    }
    frames = [
        {
            "PlanePositionSequence": {"ImagePositionPatient": places[at]},
            "PixelValueTransformationSequence": {"RescaleSlope": at + 1, "RescaleIntercept": -1024},
        }
        for at in order
    ]
    dicom(tmp_path / "e.dcm", slices[order], **_enhanced(groups, frames))
    series, enhanced = (open_volume(tmp_path / name, name) for name in ("series", "e.dcm"))
    assert enhanced.shape == series.shape == (5, 4, 6)
    assert enhanced.spacing.tolist() == series.spacing.tolist() == [0.25, 2, 0.5]
    assert enhanced.measured
    assert np.array_equal(enhanced.affine, series.affine)
    assert np.array_equal(enhanced.read()[0], series.read()[0])
    assert enhanced.read()[0].min() < 0

    folders(tmp_path / "d", lambda path, _: dicom(path.with_suffix(".dcm"), slices[order], **_enhanced(groups, frames)))
    assert "Hounsfield" in refused(tmp_path / "d", "dataset.intensity", page=0)
    x, _ = values(tmp_path / "d", page=0, intensity=(-1024, 3 * 4095 - 1024))
    assert np.allclose(x[0, 0], slices[2] / 4095, atol=1e-6)

    frames[0]["PlaneOrientationSequence"] = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    dicom(tmp_path / "e.dcm", slices[order], **_enhanced(groups, frames))
    with pytest.raises(SutureError, match="several angles"):
        open_volume(tmp_path / "e.dcm", "e.dcm")
