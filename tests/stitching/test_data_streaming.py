"""Reading ahead, and data many times larger than the memory there is."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from suture_stitching.data import SPLITS, DatasetSpec, open_dataset
from suture_stitching.data.ahead import ahead
from suture_stitching.data.spool import Spool
from suture_stitching.errors import SutureError

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
    assert started.wait(10)
    assert list(results) == [1, 2]


def test_no_more_is_read_ahead_than_stated():
    made = []
    results = ahead(lambda item: made.append(item) or item, range(1000), workers=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(made) <= 2 * 3 + 1
    results.close()


def test_workers_work_at_the_same_time():
    barrier = threading.Barrier(4, timeout=10)
    assert len(list(ahead(lambda _: barrier.wait(), range(8), workers=4))) == 8


def test_an_error_in_a_worker_is_the_error_of_the_file_in_its_place(scans):
    dataset = open_dataset(folder(scans, workers=4))
    fourth = dataset._samples[dataset._splits["train"][3]].file
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
    batches.close()
    assert not readers()


def in_bounded_memory(script, *arguments, mebibytes=64):
    """Run `script` with `mebibytes` of writable memory on top of what it holds when it calls `bound()`.

    That is what a site bounds, too. What is mapped from a file does not count: it can be dropped and read again.
    """
    start = f"""
        import resource, sys
        from pathlib import Path
        import numpy, pyarrow.csv, pyarrow.parquet, torch
        from suture_stitching.data import SPLITS, Columns, DatasetSpec, open_dataset

        def bound():
            status = Path("/proc/self/status").read_text()
            held = int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
            resource.setrlimit(resource.RLIMIT_DATA, (held + {mebibytes * MIB},) * 2)

        def total(dataset):
            return sum(int(x.numel()) * 4 for split in SPLITS for x, _ in dataset.batches(split, 2))

        pyarrow.set_cpu_count(1)
        pyarrow.set_io_thread_count(1)
        torch.set_num_threads(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


needs_a_bound = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's writable memory")


@needs_a_bound
def test_the_bound_in_these_tests_binds():
    with pytest.raises(AssertionError, match=r"MemoryError|allocate"):
        in_bounded_memory("bound(); numpy.ones(70 * 2**20, dtype=numpy.uint8); print(0)")


@needs_a_bound
def test_a_folder_of_images_larger_than_memory(tmp_path):
    first = tmp_path / "scans" / "dark" / "0.png"
    first.parent.mkdir(parents=True)
    (tmp_path / "scans" / "bright").mkdir()
    Image.new("L", (512, 512), 7).save(first)
    for i in range(1, 600):
        os.link(first, tmp_path / "scans" / ("dark", "bright")[i % 2] / f"{i}.png")
    read = in_bounded_memory(
        """
        spec = DatasetSpec(path=sys.argv[1], format="image_folder", labels=("dark", "bright"), workers=2)
        bound()
        print(total(open_dataset(spec)))
        """,
        tmp_path / "scans",
    )
    assert read == 600 * 512 * 512 * 4 > 9 * 64 * MIB


@needs_a_bound
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_larger_than_memory(tmp_path, save):
    images = np.zeros((150, 1024, 1024), dtype=np.uint8)
    images[:, 0, 0] = np.arange(150)
    save(tmp_path / "d.npz", images=images, labels=np.arange(150) % 2)
    read = in_bounded_memory(
        """
        spec = DatasetSpec(path=sys.argv[1], format="npz", labels=("dark", "bright"))
        bound()
        print(total(open_dataset(spec)))
        """,
        tmp_path / "d.npz",
    )
    assert read == images.size * 4 > 9 * 64 * MIB
    assert images.nbytes > 2 * 64 * MIB


@needs_a_bound
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_larger_than_memory(tmp_path, kind):
    rows, features = 160_000, 256
    path = tmp_path / f"d.{kind}"
    values = np.arange(20_000 * features).reshape(features, 20_000) % 9
    piece = pyarrow.table({**{f"f{i}": column for i, column in enumerate(values)}, "label": ["a", "b"] * 10_000})
    writer = pyarrow.csv.CSVWriter if kind == "csv" else pyarrow.parquet.ParquetWriter
    with writer(path, piece.schema) as file:
        for _ in range(rows // 20_000):
            file.write_table(piece)
    read = in_bounded_memory(
        """
        spec = DatasetSpec(path=sys.argv[1], format=sys.argv[2], labels=("a", "b"))
        bound()
        dataset = open_dataset(spec)
        print(sum(int(x.numel()) * 4 for split in SPLITS for x, _ in dataset.batches(split, 1024)))
        """,
        path,
        kind,
        mebibytes=128,
    )
    # Arrow's threads have stacks that count, whatever the table's size.
    assert read == rows * features * 4 > 1.2 * 128 * MIB


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with Spool() as spool, pytest.raises(SutureError, match="TMPDIR") as error:
        spool.append(b"x")
    assert error.value.code == "dataset.disk_full"


def test_a_really_full_disk_says_so_too():
    """`/dev/full` is a disk without space."""
    script = """
        import tempfile
        from suture_stitching.data.spool import Spool
        from suture_stitching.errors import SutureError
        tempfile.TemporaryFile = lambda: open("/dev/full", "r+b")
        spool = Spool()
        spool.append(numpy.zeros(10))
        try:
            spool.array((10,), "f8")
        except SutureError as error:
            print(len(error.code))
    """
    assert in_bounded_memory(script) == len("dataset.disk_full")
