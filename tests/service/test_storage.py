"""The blob store, ranges, and reading multipart: without a hub around them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest

from suture_contract.errors import SutureError
from suture_service.errors import HubError, Malformed, RangeNotSatisfiable, TooLarge
from suture_service.storage import BlobStore
from suture_service.storage.download import parse_range
from suture_service.storage.folder import FolderFile
from suture_service.storage.multipart import MultipartReader

MB = 2**20


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def chunked(content, size=65536):
    for start in range(0, len(content), size):
        yield content[start : start + size]


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def store(tmp_path):
    return BlobStore(str(tmp_path / "store"))


def kept(store, content):
    async def run():
        async with store.receive(chunked(content), limit=10**9, where="file") as upload:
            await upload.keep()
        return upload

    return asyncio.run(run())


def read(store, sha256, start, end):
    async def run():
        return b"".join([bytes(chunk) async for chunk in await store.stream(sha256, start, end)])

    return asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, MB, 9 * MB + 7, 17 * MB])
def test_what_goes_in_comes_out(store, tmp_path, size):
    content = os.urandom(size)
    for _ in range(2):
        upload = kept(store, content)
        assert (upload.sha256, upload.size) == (digest(content), size)
    assert files(tmp_path / "store") == [f"sha256/{upload.sha256[:2]}/{upload.sha256}"]
    assert read(store, upload.sha256, 0, size) == content
    assert read(store, upload.sha256, size // 3, size // 2) == content[size // 3 : size // 2]
    assert store.read(upload.sha256, size - 1, 100, size) == content[-1:]
    assert store.read(upload.sha256, size, 5, size) == b""


@pytest.mark.parametrize("sizes", [[1] * 5000, [0, 3, 0, MB, 0], [MB - 1, 700_000, 1, 20 * MB]])
def test_however_it_comes(store, sizes):
    """In many small pieces, in empty ones, and in such as are larger than a buffer."""
    pieces = [os.urandom(size) for size in sizes]

    async def coming():
        for piece in pieces:
            yield piece

    async def run():
        async with store.receive(coming(), limit=10**9, where="file") as upload:
            await upload.keep()
        return upload

    upload, content = asyncio.run(run()), b"".join(pieces)
    assert (upload.sha256, upload.size) == (digest(content), len(content))
    assert read(store, upload.sha256, 0, len(content)) == content


def test_what_is_not_kept_is_removed(store, tmp_path):
    async def run():
        async with store.receive(chunked(bytes(20 * MB)), limit=10**9, where="file") as upload:
            assert len(files(tmp_path / "store")) == 1
            assert upload.read(5, 3) == bytes(3)

    asyncio.run(run())
    assert files(tmp_path / "store") == []


def test_an_upload_that_breaks_off_leaves_nothing(store, tmp_path):
    async def breaks():
        for _ in range(20):
            yield bytes(MB)
        raise ConnectionError("cut")

    async def run():
        async with store.receive(breaks(), limit=10**9, where="file"):
            raise AssertionError("never arrived")

    with pytest.raises(ConnectionError):
        asyncio.run(run())
    assert files(tmp_path / "store") == []


def test_an_upload_that_is_cancelled_leaves_nothing(store, tmp_path):
    async def slow():
        while True:
            yield bytes(MB)
            await asyncio.sleep(0.01)

    async def receive():
        async with store.receive(slow(), limit=10**9, where="file"):
            pass

    async def run():
        task = asyncio.create_task(receive())
        while not files(tmp_path / "store"):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert files(tmp_path / "store") == []


def test_what_is_being_written_is_not_closed_underneath(store, tmp_path, monkeypatch):
    """Cancelled while the last piece is on its way to the disk, an upload ends when that has arrived."""
    writing, go_on, closed = threading.Event(), threading.Event(), []
    write, discard = FolderFile.append, FolderFile.discard

    def slowly(self, content):
        writing.set()
        assert go_on.wait(60)
        closed.append(self._file.closed)
        write(self, content)

    async def last(self):
        closed.append("end")
        await discard(self)

    monkeypatch.setattr(FolderFile, "append", slowly)
    monkeypatch.setattr(FolderFile, "discard", last)

    async def receive():
        async with store.receive(chunked(bytes(1000)), limit=10**9, where="file"):
            raise AssertionError("never arrived")

    async def run():
        task = asyncio.create_task(receive())
        await asyncio.to_thread(writing.wait, 60)
        task.cancel()
        await asyncio.sleep(0.1)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert closed == [False, "end"]
    assert files(tmp_path / "store") == []


def test_the_limit_ends_an_upload_early(store, tmp_path):
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += MB
            yield bytes(MB)

    async def run():
        async with store.receive(endless(), limit=3 * MB, where="model"):
            pass

    with pytest.raises(TooLarge) as error:
        asyncio.run(run())
    assert (error.value.code, error.value.where) == ("upload.too_large", "model")
    assert taken == 4 * MB
    assert files(tmp_path / "store") == []


def test_memory_does_not_grow_with_the_file(store):
    """Python's own memory, up and down: 200 MB pass through a few."""

    async def run():
        async def many():
            for _ in range(3200):
                yield bytes(65536)

        async with store.receive(many(), limit=10**9, where="file") as upload:
            await upload.keep()
        async for _ in await store.stream(upload.sha256, 0, upload.size):
            pass
        return upload.size

    tracemalloc.start()
    try:
        assert asyncio.run(run()) == 200 * MB
        assert tracemalloc.get_traced_memory()[1] < 24 * MB
    finally:
        tracemalloc.stop()


def test_a_sweep_removes_what_a_killed_hub_left_and_nothing_else(store, tmp_path):
    left = tmp_path / "store/tmp/left"
    left.write_bytes(b"x")

    async def run():
        async with store.receive(chunked(bytes(3 * MB)), limit=10**9, where="file") as upload:
            assert len(files(tmp_path / "store")) == 2
            assert BlobStore(str(tmp_path / "store")).sweep() == 1
            assert not left.exists()
            await upload.keep()
        return upload

    upload = asyncio.run(run())
    assert files(tmp_path / "store") == [f"sha256/{upload.sha256[:2]}/{upload.sha256}"]
    store.check()
    assert len(files(tmp_path / "store")) == 1


def test_other_stores_are_refused():
    with pytest.raises(SutureError) as error:
        BlobStore("ftp://host/path")
    assert (error.value.code, error.value.where) == ("hub.store", "store")


#: More digits than Python makes a number of by default.
LONG = "0" * 5000


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=3-1", "bytes=1-2,4-5", "bytes= 1-2", f"bytes=2{LONG}-1{LONG}"],
)
def test_no_range(header):
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("Bytes=3-", 10, (3, 10)),
        ("bytes=-4", 10, (6, 10)),
        ("bytes=-40", 10, (0, 10)),
        (f"bytes=3-9{LONG}", 10, (3, 10)),
        (f"bytes=-9{LONG}", 10, (0, 10)),
        (f"bytes={LONG}3-{LONG}4", 10, (3, 5)),
    ],
)
def test_a_range(header, size, expected):
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), (f"bytes=1{LONG}-", 10), (f"bytes=1{LONG}-2{LONG}", 10)],
)
def test_a_range_outside(header, size):
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size)


def form(*parts, end=b"--B--\r\n"):
    text = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="' + name + b'"; filename="f"\r\n\r\n' + content + b"\r\n"
        for name, content in parts
    )
    return text + end


def parts_of(body, size, content_type="multipart/form-data; boundary=B"):
    async def run():
        reader, found = MultipartReader(chunked(body, size), content_type), []
        while (name := await reader.next_part()) is not None:
            found.append((name, b"".join([bytes(chunk) async for chunk in reader.body()])))
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 10**6])
def test_parts_come_out_whole_however_they_are_cut(size):
    tricky = b"\r\n--B\r\n--\r\n--A--\r\n-"
    expected = [("model", tricky[:4] + b"x" + tricky[8:]), ("empty", b""), ("metadata", bytes(range(256)) * 3)]
    assert parts_of(form(*[(name.encode(), content) for name, content in expected]), size) == expected
    assert parts_of(form((b"a", b"1")) + b"epilogue", size) == [("a", b"1")]


@pytest.mark.parametrize("cut", [1, 30, 60, -1, -3, -5])
def test_a_body_that_is_cut(cut):
    with pytest.raises(Malformed) as error:
        parts_of(form((b"model", b"content"), end=b"--B--")[:cut], 7)
    assert error.value.code == "upload.truncated"


def test_bodies_that_are_something_else():
    for body, kind in (
        (b"hello", "multipart/form-data; boundary=B"),
        (form((b"a", b"1")), "multipart/form-data"),
        (form((b"a", b"1")), "text/plain; boundary=B"),
        (form((b"a", b"1")), None),
        (form((b"a", b"1")) + bytes(70_000), "multipart/form-data; boundary=B"),
        (b"--B\r\n" + b"x" * 100_000 + b": y\r\n\r\n", "multipart/form-data; boundary=B"),
    ):
        with pytest.raises(HubError) as error:
            parts_of(body, 4096, kind)
        assert error.value.code in ("upload.malformed", "upload.not_multipart")


def test_pieces_live_for_a_while(store, tmp_path):
    async def run():
        async with store.receive(chunked(bytes(range(256))), limit=10**9, where="file") as upload:
            return await upload.keep_as_piece()

    name = asyncio.run(run())
    assert store.read_piece(name, 3, 4) == bytes([3, 4, 5, 6])
    now = datetime.now(UTC)
    assert store.sweep_pieces(now - timedelta(minutes=1)) == 0
    assert store.sweep_pieces(now + timedelta(minutes=1)) == 1
    assert files(tmp_path / "store") == []
    assert list(store.list()) == []
