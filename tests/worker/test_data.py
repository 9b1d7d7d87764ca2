"""Reading data within a child's confinement: by threads, unpacked to temporary files, in bounded memory."""

from __future__ import annotations

import io

import numpy as np
import pyarrow
import pyarrow.csv
import pytest
import torch
from PIL import Image
from tests.stitching.kinds import dicom
from torch import nn

from suture_contract.documents import CandidateSet
from suture_stitching.data import DatasetSpec, array_files
from suture_stitching.portable.export import export
from suture_worker.compute.work import work
from suture_worker.config import TaskLimits
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask

LABELS = ("dark", "bright")


def networks(shape):
    """Two small networks, `(N, *shape)` to two classes."""
    torch.manual_seed(0)
    numbers = int(np.prod(shape))
    return [
        nn.Sequential(nn.Flatten(), nn.Linear(numbers, 5), nn.ReLU(), nn.Linear(5, 2)).eval(),
        nn.Sequential(nn.Flatten(), nn.Linear(numbers, 4), nn.Tanh(), nn.Linear(4, 2)).eval(),
    ]


def read_by_a_child(site, make, quick, spec, shape):
    """Have a child fit two networks on the data; return the task's folder and how many samples it read."""
    kind = {"format": "image", "spatial_shape": shape[1:]} if len(shape) > 1 else {"format": "table"}
    names = {} if len(shape) > 1 else {"channels": [f"x{index}" for index in range(shape[0])]}
    metadata = {**make.METADATA, "inputs": {"x": {"num_channels": shape[0], **kind, **names}}}
    site = site.model_copy(update={"datasets": {"patches": spec}, "limits": TaskLimits(memory_gib=2, threads=1)})
    task = LeasedTask.parse(
        make.leased("fit", members=[make.member(index, metadata=metadata) for index in (0, 1)], options=quick)
    )
    folder = TaskFolder(site.state / "tasks", task.id)
    folder.create(Assignment(task=task, dataset="patches"))
    folder.note_terms(Terms(min_samples=11))
    for index, net in enumerate(networks(shape)):
        export(net, torch.rand(2, *shape), folder.member(index))
    assert work(site, folder.id) == "done", folder.log.read_text()
    return folder, CandidateSet.model_validate_json((folder.results / "candidates.json").read_bytes()).n


def left_behind(folder):
    return [path for path in folder.scratch.rglob("*") if path.is_file()]


def test_a_folder_of_images_by_threads(site, make, quick, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(80):
        path = tmp_path / "scans" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(i % 2 * 100, i % 2 * 100 + 100, (6, 6), dtype=np.uint8)).save(path)
    spec = DatasetSpec(path=tmp_path / "scans", format="image_folder", labels=LABELS, workers=2)
    _, read = read_by_a_child(site, make, quick, spec, (1, 6, 6))
    assert read == 40


def compressed(path, pixels, syntax):
    """Write 8-bit DICOM, as a scanner's JPEG or by pydicom's RLE."""
    pydicom = pytest.importorskip("pydicom")
    dicom(path, pixels, BitsStored=8, HighBit=7)
    data = pydicom.dcmread(path)
    data.BitsAllocated, data.PixelData = 8, pixels.astype(np.uint8).tobytes()
    if syntax == "RLE":
        data.compress(pydicom.uid.RLELossless)
    else:
        picture = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(picture, "JPEG", quality=95)
        data.PixelData = pydicom.encaps.encapsulate([picture.getvalue()])
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.save_as(path)


def test_dicom_images_that_are_compressed(site, make, quick, tmp_path):
    """Their decoders are loaded within the confinement."""
    rng = np.random.default_rng(0)
    for i in range(80):
        path = tmp_path / "scans" / LABELS[i % 2] / f"IM{i:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(i % 2 * 100, i % 2 * 100 + 100, (8, 8))
        pixels[0, 0] = 255
        compressed(path, pixels, "RLE" if i % 4 < 2 else "JPEG")
    spec = DatasetSpec(path=tmp_path / "scans", format="image_folder", labels=LABELS, workers=2)
    _, read = read_by_a_child(site, make, quick, spec, (1, 8, 8))
    assert read == 40


def test_series_of_dicom_are_volumes_in_the_task_s_own_folder(site, make, quick, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(64):
        folder = tmp_path / "scans" / LABELS[i % 2] / f"{i}"
        folder.mkdir(parents=True)
        for place in range(3):
            pixels = rng.integers(i % 2 * 1000, i % 2 * 1000 + 1000, (4, 4))
            where = {"ImagePositionPatient": [0, 0, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
            dicom(folder / f"{place}", pixels, SeriesInstanceUID=f"1.2.{i}", PixelSpacing=[1, 1], **where)
    spec = DatasetSpec(
        path=tmp_path / "scans", format="nifti", labels=LABELS, window=(4, 4, 3), spacing=(1.0, 1.0, 0.5), workers=2
    )
    folder, read = read_by_a_child(site, make, quick, spec, (1, 4, 4, 3))
    assert read == 32
    assert not left_behind(folder)


def test_a_compressed_array_is_unpacked_to_the_task_s_own_folder(site, make, quick, tmp_path):
    """Larger than what is unpacked into memory; the confined child may write nowhere else."""
    images = np.zeros((1200, 180, 180), dtype=np.uint8)
    images[1::2, :90] = 200
    images[:, 0, :2] = np.stack(np.divmod(np.arange(1200), 256), axis=1)  # no two are the same
    assert images.nbytes > array_files._HELD_BYTES
    np.savez_compressed(tmp_path / "d.npz", images=images, labels=np.arange(1200) % 2)
    spec = DatasetSpec(path=tmp_path / "d.npz", format="npz", labels=LABELS)
    folder, read = read_by_a_child(site, make, quick, spec, (1, 180, 180))
    assert read == 600
    assert not left_behind(folder)


def test_a_table_is_kept_in_the_task_s_own_folder(site, make, quick, tmp_path):
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(np.arange(2000) % 2, 1) for i in range(20)}
    table = pyarrow.table({**columns, "label": [LABELS[i % 2] for i in range(2000)]})
    pyarrow.csv.write_csv(table, tmp_path / "d.csv")
    spec = DatasetSpec(path=tmp_path / "d.csv", format="csv", labels=LABELS)
    folder, read = read_by_a_child(site, make, quick, spec, (20,))
    assert read == 1000
    assert not left_behind(folder)
