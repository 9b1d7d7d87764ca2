"""Reading ahead, and data many times larger than the memory there is."""

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tests.stitching.kinds import dicom

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.prefetch import ahead
from suture_stitching.data.spool import Spool

MIB = 1024 * 1024


@pytest.fixture
def scans(tmp_path):
    for i in range(40):
        path = tmp_path / "scans" / ("dark", "bright")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), i % 2 * 200 + i).save(path)
    return tmp_path / "scans"


def folder(path, **changes):
    return DatasetSpec(**{"path": path, "format": "image_folder", "labels": ("dark", "bright"), **changes})


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("suture-read")]


def test_any_number_of_workers_reads_the_same(scans):
    alone = open_dataset(folder(scans, workers=0))
    for workers in (1, 3, 16):
        together = open_dataset(folder(scans, workers=workers))
        for split in SPLITS:
            for (x, y), (also_x, also_y) in zip(
                alone.batches(split, 3, seed=7), together.batches(split, 3, seed=7), strict=True
            ):
                assert torch.equal(x, also_x)
                assert torch.equal(y, also_y)


def test_workers_read_while_the_batch_before_is_used():
    started = threading.Event()

    def make(item):
        if item == 1:
            started.set()
        return item

    results = ahead(make, range(3), workers=1)
    assert next(results) == 0
    assert started.wait(60)
    assert list(results) == [1, 2]


def test_no_more_is_read_ahead_than_stated():
    made = []
    results = ahead(lambda item: made.append(item) or item, range(1000), workers=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(made) <= 2 * 3 + 1
    results.close()  # type: ignore[attr-defined]


def test_workers_work_at_the_same_time():
    barrier = threading.Barrier(4, timeout=60)
    assert len(list(ahead(lambda _: barrier.wait(), range(8), workers=4))) == 8


def test_an_error_in_a_worker_is_the_error_of_the_file_in_its_place(scans):
    dataset = open_dataset(folder(scans, workers=4))
    fourth = dataset._samples[dataset._splits["train"][3]].file  # type: ignore[attr-defined]
    path = scans / fourth
    path.write_bytes(path.read_bytes()[:50])
    batches = dataset.batches("train", 1)
    for _ in range(3):
        next(batches)
    with pytest.raises(SutureError, match=fourth) as error:
        next(batches)
    assert error.value.code == "dataset.unreadable_image"
    assert not readers()


def test_whoever_stops_early_leaves_no_thread_behind(scans):
    batches = open_dataset(folder(scans, workers=4)).batches("train", 1)
    next(batches)
    assert readers()
    batches.close()  # type: ignore[attr-defined]
    assert not readers()


needs_a_bound = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's writable memory")

#: With so many bytes of writable memory on top of what it holds already, as a site bounds it, too. What is mapped from
#: a file does not count: it can be dropped and read again.
BOUND = 64 * MIB
READ_ALL = f"""
import resource, sys
from pathlib import Path
import numpy, torch
from suture_stitching.data import SPLITS, DatasetSpec, open_dataset

specs = [DatasetSpec.model_validate_json(line) for line in sys.argv[1:]]
torch.set_num_threads(1)
status = Path("/proc/self/status").read_text()
held = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + {BOUND},) * 2)
for spec in specs:
    dataset = open_dataset(spec)
    print(sum(x.numel() * 4 for split in SPLITS for x, _ in dataset.batches(split, 2)))
    del dataset
try:
    numpy.ones({BOUND} + {MIB}, dtype=numpy.uint8)
except MemoryError:
    print("the bound binds")
"""


@needs_a_bound
def test_folders_and_arrays_larger_than_memory(tmp_path):
    first = tmp_path / "scans" / "dark" / "0.png"
    first.parent.mkdir(parents=True)
    (tmp_path / "scans" / "bright").mkdir()
    Image.new("L", (512, 512), 7).save(first)
    for i in range(1, 400):
        os.link(first, tmp_path / "scans" / ("dark", "bright")[i % 2] / f"{i}.png")
    images = np.zeros((140, 1024, 1024), dtype=np.uint8)
    images[:, 0, 0] = np.arange(140)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / f"{save.__name__}.npz", images=images, labels=np.arange(140) % 2)
    assert images.nbytes > 2 * BOUND
    specs = [
        folder(tmp_path / "scans", workers=2),
        folder(tmp_path / "savez.npz", format="npz"),
        folder(tmp_path / "savez_compressed.npz", format="npz"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *[spec.model_dump_json() for spec in specs]],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *read, last = done.stdout.splitlines()
    assert list(map(int, read)) == [400 * 512 * 512 * 4, images.size * 4, images.size * 4]
    assert min(map(int, read)) > 6 * BOUND
    assert last == "the bound binds"


#: Arrow's memory is counted by the pool it comes from, which must outlive all that came from it.
POOLS = []


def peak(description, batch_size=256):
    """Return the most bytes that were held while all of a dataset was read, by Arrow and by everything else."""
    before = pyarrow.default_memory_pool()
    POOLS.append(pyarrow.proxy_memory_pool(before))
    pyarrow.set_memory_pool(POOLS[-1])
    tracemalloc.start()
    try:
        dataset = open_dataset(description)
        for split in SPLITS:
            for _ in dataset.batches(split, batch_size):
                pass
        return tracemalloc.get_traced_memory()[1] + POOLS[-1].max_memory()
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(before)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_memory_for_a_table_does_not_grow_with_it(tmp_path, kind):
    features, rows = 128, 4000
    values = np.random.default_rng(0).random((features, rows))
    piece = pyarrow.table({**{f"f{i}": column for i, column in enumerate(values)}, "label": ["a", "b"] * (rows // 2)})

    def peak_of(times):
        path = tmp_path / f"{times}.{kind}"
        if kind == "csv":
            with pyarrow.csv.CSVWriter(path, piece.schema) as file:
                for _ in range(times):
                    file.write_table(piece)
        else:  # in one row group, the most that could be read at once
            pyarrow.parquet.write_table(pyarrow.concat_tables([piece] * times).combine_chunks(), path)
        return peak(DatasetSpec(path=path, format=kind, labels=("a", "b")))

    # Arrow reads 32 MiB of a text ahead, so that the small one must be larger.
    small, large = 4, 8
    growth = (large - small) * piece.nbytes
    # As float32 numbers alone they would take half of it.
    assert peak_of(large) - peak_of(small) < growth / 4


@pytest.mark.parametrize("kind", ["dicom", "nifti", "hdf5"])
def test_the_memory_for_images_and_volumes_does_not_grow_with_them(tmp_path, kind):
    """What is traced is what is held: files that are mapped are not."""
    size = (16, 64, 64) if kind == "nifti" else (256, 256)

    def written(n):
        path = tmp_path / f"{n}"
        if kind == "hdf5":
            path = tmp_path / f"{n}.h5"
            with h5py.File(path, "w") as file:
                images = file.create_dataset("images", (n, 1, *size), np.uint16, chunks=(1, 1, *size), compression=1)
                images[:, 0, 0, 0] = 65535 - np.arange(n)
                file["labels"] = np.arange(n) % 2
            return folder(path, format="hdf5")
        for i in range(n):
            own = path / ("dark", "bright")[i % 2] / (f"{i}.dcm" if kind == "dicom" else f"{i}.nii")
            own.parent.mkdir(parents=True, exist_ok=True)
            if i:
                os.link(path / "dark" / f"0{own.suffix}", own)
            elif kind == "dicom":
                dicom(own, np.full(size, 4095))
            else:
                nibabel.save(nibabel.Nifti1Image(np.zeros(size, np.float32), np.eye(4)), own)
        volumes = {"format": "nifti", "window": (8, 8, 8), "spacing": (1.0, 1.0, 2.0)}
        return folder(path, workers=0, **({} if kind == "dicom" else volumes))

    for _ in open_dataset(written(12)).batches("train", 4):  # what is imported is held as well
        pass
    # Arrays of up to 32 MiB are held.
    small, large = (300, 600) if kind == "hdf5" else (20, 60)
    growth = (large - small) * int(np.prod(size)) * (2 if kind == "hdf5" else 4)
    assert peak(written(large), 4) - peak(written(small), 4) < growth / 4


def spooled(content):
    with Spool() as spool:
        spool.append(content)
        return spool.array(content.shape, content.dtype)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk without space")
@pytest.mark.parametrize("numbers", [10, MIB])
def test_a_full_disk_says_so(monkeypatch, numbers):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("r+b"))  # noqa: SIM115
    with pytest.raises(SutureError, match="TMPDIR") as error:
        spooled(np.zeros(numbers))
    assert error.value.code == "dataset.disk_full"
