"""Values of another range, and volumes that do not say plainly where they lie: read rightly, or refused by name."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from tests.stitching.kinds import DRAWN, dicom, folders, refused, values
from tests.stitching.test_data_pictures import tiff

SIGNED = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
ECG, PLAN = "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.481.3"


@pytest.mark.parametrize(("bounds", "why"), [((0.0, 255.0), "next to 0"), ((-1.0, 1.0), "no value is below 0")])
def test_numbers_that_are_meant_for_another_range(tmp_path, bounds, why):
    np.savez(tmp_path / "a.npz", images=DRAWN.uniform(size=(20, 1, 8, 8)), labels=np.arange(20) % 2)
    root = folders(
        tmp_path / "s",
        lambda path, _: tiff(path.with_suffix(".tif"), DRAWN.uniform(size=(8, 8)).astype(np.float32), 1, 3),
    )
    for path in (tmp_path / "a.npz", root):
        message = refused(path, "dataset.value_range", value_range=bounds)
        assert why in message
        assert f"intensity = [{bounds[0]:g}, {bounds[1]:g}]" in message
        scaled = values(path, value_range=bounds, intensity=(0, 1))[0]
        assert scaled.max() > 0.9 * bounds[1]
        assert values(path, value_range=bounds, intensity=bounds)[0].max() <= 1


def test_signed_numbers_of_which_none_is_below_zero(tmp_path):
    def save(path, _):
        dicom(path.with_suffix(".dcm"), DRAWN.integers(0, 20_000, (8, 8)), **SIGNED)

    root = folders(tmp_path / "s", save)
    assert "intensity = [0, 32767]" in refused(root, "dataset.few_bits")
    assert values(root, intensity=(0, 32767))[0].min() < 0.1


@pytest.mark.parametrize("limit", [None, 40])
def test_padding_is_dark(tmp_path, limit):
    """In MONOCHROME1, 0 would be the brightest."""
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}

    def save(path, index):
        pixels = DRAWN.integers(100, 4096, (8, 8))
        pixels[:4] = 0 if limit is None else DRAWN.integers(0, 41, (4, 8))
        dicom(path.with_suffix(".dcm"), pixels, **tags, **({} if limit is None else {"PixelPaddingRangeLimit": limit}))

    read = values(folders(tmp_path / "s", save))[0]
    assert (read[:, :, :4] == read.min(axis=(2, 3), keepdims=True)).all()
    assert read[:, :, 4:].max() > 0.9


def series(folder, *, tilt=0.0, padded=0):
    folder.mkdir(parents=True)
    for place in range(8):
        pixels = DRAWN.integers(0, 2000, (8, 8))
        pixels[:padded] = 2**16 - 2000
        dicom(
            folder / f"{place}.dcm",
            pixels,
            **SIGNED,
            SeriesInstanceUID=f"1.2.{len(folder.name)}.{folder.name[-1]}",
            PixelSpacing=[1, 1],
            ImagePositionPatient=[0, tilt * place, 2 * place],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelPaddingValue=-2000,
        )


def test_slices_of_a_tilted_gantry_are_no_box(tmp_path):
    for name, tilt in (("upright", 0.1), ("tilted", 0.3)):
        for label in ("benign", "malignant"):
            for patient in range(5):
                series(tmp_path / name / label / f"{label}{patient}", tilt=tilt)
    assert len(values(tmp_path / "upright", format="nifti", window=(8, 8, 8))[0]) == 10
    message = refused(tmp_path / "tilted", "dataset.unreadable_image", format="nifti", window=(8, 8, 8))
    assert "tilted gantry" in message


def test_padding_takes_no_part_in_the_range_of_a_volume(tmp_path):
    for label in ("benign", "malignant"):
        for patient in range(5):
            series(tmp_path / label / f"{label}{patient}", padded=3)
    read = values(tmp_path, format="nifti", window=(8, 8, 8))[0]
    # The lowest 0.5 % of what is measured is the dark end, and 3/8 of the voxels are padding at it.
    assert 0.1 < np.median(read) < 0.3


@pytest.mark.parametrize(("kind", "name"), [(ECG, "12-lead ECG Waveform"), (PLAN, "RT Structure Set")])
def test_dicom_without_an_image_is_named(tmp_path, kind, name):
    pydicom = pytest.importorskip("pydicom")
    root = folders(tmp_path / "s", lambda path, _: dicom(path.with_suffix(".dcm"), DRAWN.integers(0, 4096, (8, 8))))
    other = pydicom.dcmread(root / "benign" / "00.dcm")
    for tag in ("Rows", "Columns", "PixelData"):
        del other[tag]
    other.SOPClassUID = kind
    other.save_as(root / "benign" / "other.dcm")
    assert name in refused(root, "dataset.unreadable_image")
    (root / "benign" / "other.dcm").write_bytes((root / "benign" / "00.dcm").read_bytes()[132:])
    assert "lacks DICOM's mark" in refused(root, "dataset.unreadable_image")


def pairs(root, write, ending):
    for index in range(4):
        volume = np.random.default_rng(index).normal(size=(8, 8, 8)).astype(np.float32)
        for kind, array in (("images", volume), ("masks", (volume > 0).astype(np.uint8))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            write(array, root / kind / f"{index}{ending}")
    return root


def test_two_ways_to_say_where_a_volume_lies_say_one_thing(tmp_path):
    def save(array, path, form):
        image = nibabel.Nifti1Image(array, np.eye(4))
        image.set_qform(np.eye(4), 1)
        image.set_sform(form, 4)
        nibabel.save(image, path)

    given = {"task": "segmentation", "window": (8, 8, 8)}
    turned, moved = np.diag([-1.0, 1, 1, 1]), np.eye(4)
    moved[:3, 3] = 5
    two = pairs(tmp_path / "two", lambda array, path: save(array, path, turned), ".nii.gz")
    assert "qform" in refused(two, "dataset.unreadable_image", **given)
    alike = pairs(tmp_path / "alike", lambda array, path: save(array, path, moved), ".nii.gz")
    assert len(values(alike, **given)[0])


def test_a_mask_of_several_channels_is_refused(tmp_path):
    def save(array, path):
        array = np.stack([1 - array, array], -1) if path.parent.name == "masks" else array
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)

    root = pairs(tmp_path, save, ".nii.gz")
    message = refused(root, "dataset.mask_mismatch", task="segmentation", window=(8, 8, 8))
    assert "2 channels" in message


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_values_beside_their_header_are_of_the_volume(tmp_path, ending):
    def save(array, path):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))

    root = pairs(tmp_path / "v", save, ending)
    given = {"task": "segmentation", "window": (8, 8, 8)}
    assert len(values(root, **given)[0])
    header = root / "images" / f"0{ending}"
    key, sign = ("ElementDataFile", " =") if ending == ".mhd" else ("data file", ":")
    kept = [line for line in header.read_text().splitlines() if not line.startswith(key)]
    for elsewhere in ("../../0.raw", "/etc/hostname"):
        header.write_text("\n".join([*kept, f"{key}{sign} {elsewhere}", ""]))
        assert "never followed" in refused(root, "dataset.unreadable_image", **given)
    header.write_text("\n".join([*kept, f"{key}{sign} LIST", ""]))
    assert "slices lie in files of their own" in refused(root, "dataset.unreadable_image", **given)
