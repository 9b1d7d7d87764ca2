"""Reading data within a child's confinement: by threads, unpacked to temporary files, in bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.csv
import torch
from PIL import Image
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
