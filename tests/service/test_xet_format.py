"""Xorbs and shards are read back exactly, or refused; never more memory than the protocol's own limits."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service import xorbs

from suture_contract.errors import SutureError
from suture_service.hf.xet import format as xet
from suture_service.hf.xet.rebuild import WINDOW, Xorb, rebuild

LIMIT = 2**30


def layout_of(xorb, step=None):
    reader = xet.LayoutReader()
    for at in range(0, len(xorb), step or len(xorb)):
        reader.feed(xorb[at : at + (step or len(xorb))])
    return reader.end()


def rebuilt(stored, terms):
    """What terms give that point into these xorbs, by hash."""
    layouts = {name: Xorb(name, layout_of(content)) for name, content in stored.items()}
    return b"".join(rebuild(iter(terms), layouts.__getitem__, lambda name, at, size: stored[name][at : at + size]))


@pytest.mark.parametrize("scheme", [xorbs.RAW, xorbs.LZ4, xorbs.REGROUPED])
@given(st.binary(min_size=1, max_size=100), st.integers(1, 50))
def test_a_chunk_is_unpacked(scheme, content, step):
    xorb = xorbs.chunk(content, scheme)
    assert xet.unpack(memoryview(xorb)) == content
    layout = layout_of(xorb * 3, step)
    assert list(layout.sent) == [len(xorb) * index for index in range(4)]
    assert list(layout.plain) == [len(content) * index for index in range(4)]
    assert xet.Layout.from_bytes(layout.to_bytes()) == layout


def test_a_hash_is_printed_in_groups_of_eight_bytes_backwards():
    assert xet.hash_text(bytes(range(32))).startswith("0706050403020100" + "0f0e0d0c0b0a0908")


def test_a_file_is_rebuilt_from_runs_of_several_xorbs():
    content = xorbs.some_bytes(9 * 2**20 + 17)
    parts = xorbs.split(content)
    first = b"".join(xorbs.chunk(part, index % 3) for index, part in enumerate(parts[:100]))
    second = b"".join(xorbs.chunk(part, index % 3) for index, part in enumerate(parts[90:]))
    size = len(parts[0])
    terms = [
        xet.Term("a", 95 * size, 0, 95),
        xet.Term("b", len(content) - 95 * size, 5, len(parts) - 90),
        xet.Term("a", size, 7, 8),
    ]
    assert rebuilt({"a": first, "b": second}, terms) == content + parts[7]


def test_a_file_is_rebuilt_in_small_pieces_whatever_its_size():
    part = bytes(xet.MAX_CHUNK)
    xorb = xorbs.chunk(part) * 512
    found = Xorb("a", layout_of(xorb))
    tracemalloc.start()
    try:
        pieces = rebuild(
            iter([xet.Term("a", 512 * len(part), 0, 512)] * 4),
            lambda _: found,
            lambda _, at, size: xorb[at : at + size],
        )
        assert sum(map(len, pieces)) == 4 * 512 * len(part)
        assert tracemalloc.get_traced_memory()[1] < 6 * WINDOW
    finally:
        tracemalloc.stop()


def test_a_footer_after_the_chunks_is_left_out():
    xorb = xorbs.chunk(b"content")
    assert layout_of(xorb + b"XETBLOB\x01" + bytes(500)) == layout_of(xorb)


BOMB = lz4.frame.compress(bytes(64 * 2**20))
MANY = xorbs.chunk(b"x", xorbs.RAW)
BAD_XORBS = {
    "nothing": b"",
    "cut header": xorbs.chunk(b"content")[:5],
    "cut content": xorbs.chunk(b"content")[:-1],
    "unknown version": xorbs.chunk(b"content", version=1),
    "unknown scheme": xorbs.framed(b"content", 3, plain=7),
    "empty": xorbs.framed(b"", xorbs.RAW, plain=0),
    "raw of another length": xorbs.framed(b"content", xorbs.RAW, plain=8),
    "too long unpacked": xorbs.framed(b"content", xorbs.LZ4, plain=xet.MAX_CHUNK + 1),
    "too long packed": xorbs.framed(bytes(2 * xet.MAX_CHUNK), xorbs.LZ4, plain=xet.MAX_CHUNK),
    "too many": MANY * (xet.MAX_CHUNKS + 1),
}


@pytest.mark.parametrize("xorb", BAD_XORBS.values(), ids=BAD_XORBS.keys())
def test_a_bad_xorb_is_refused_as_it_comes(xorb):
    with pytest.raises(SutureError, match="xorb"):
        layout_of(xorb, 4096)
    assert layout_of(MANY * xet.MAX_CHUNKS).chunks == xet.MAX_CHUNKS


BAD_CHUNKS = {
    "bomb": xorbs.framed(BOMB[: xet.MAX_CHUNK], xorbs.LZ4, plain=10),
    "cut header": xorbs.chunk(b"content")[:7],
    "short": xorbs.chunk(b"content", plain=8),
    "long": xorbs.chunk(b"content", plain=6),
    "no frame": xorbs.framed(b"no frame at all", xorbs.LZ4, plain=15),
    "cut frame": xorbs.framed(lz4.frame.compress(b"content")[:-5], xorbs.LZ4, plain=7),
    "more after the frame": xorbs.framed(lz4.frame.compress(b"content") + b"x", xorbs.LZ4, plain=7),
}


@pytest.mark.parametrize("chunk", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_a_bad_chunk_is_refused(chunk):
    tracemalloc.start()
    try:
        with pytest.raises(SutureError, match="chunk"):
            xet.unpack(memoryview(chunk))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_shard_lists_files():
    content = xorbs.some_bytes(200_000)
    xorb, one = xorbs.packed(content)
    digest = hashlib.sha256(content).hexdigest()
    (found,) = xet.parse_files(one, limit=LIMIT)
    assert (found.sha256, found.size) == (digest, 200_000)
    assert list(found.terms()) == [xet.Term(xet.hash_text(xorbs.name_of(xorb)), 200_000, 0, 4)]
    plain = xorbs.file(content, [xorbs.term(xorb, 200_000, 0, 4)] * 3, flags=1 << 30)
    two = xet.parse_files(xorbs.shard(plain, plain), limit=LIMIT)
    assert [file.size for file in two] == [600_000, 600_000]


TERM = xorbs.term(b"x", 100, 0, 1)
BAD_SHARDS = {
    "nothing": b"",
    "something else": b"PK\x03\x04" + bytes(100),
    "header only": xorbs.shard()[:48],
    "no end": xorbs.shard(xorbs.file(b"", [TERM]))[: 48 + 48],
    "more terms than there are": xorbs.shard(b"\x01" * 32 + b"\x00\x00\x00\xc0" + b"\xff" * 4 + bytes(8)),
    "no sha256": xorbs.shard(xorbs.file(b"", [TERM], flags=1 << 31)),
    "too large": xorbs.shard(xorbs.file(b"", [xorbs.term(b"x", 2**29 + 1, 0, 1)] * 2)),
    "too large together": xorbs.shard(*[xorbs.file(b"", [xorbs.term(b"x", 2**29 + 1, 0, 1)])] * 2),
    "too many files": xorbs.shard(xorbs.file(b"", []) * (xet.MAX_FILES + 1)),
    "too many terms": xorbs.shard(xorbs.file(b"", [TERM] * (xet.FILES_LIMIT // 48)))[: xet.FILES_LIMIT],
}


@pytest.mark.parametrize("shard", BAD_SHARDS.values(), ids=BAD_SHARDS.keys())
def test_a_bad_shard_is_refused(shard):
    with pytest.raises(SutureError, match="shard"):
        xet.parse_files(shard, limit=LIMIT)


BAD_TERMS = {
    "no chunks": xet.Term("a", 0, 1, 1),
    "backwards": xet.Term("a", 7, 1, 0),
    "beyond the end": xet.Term("a", 14, 0, 3),
    "far beyond the end": xet.Term("a", 7, 2**32 - 2, 2**32 - 1),
    "shorter than its chunks": xet.Term("a", 13, 0, 2),
    "longer than its chunks": xet.Term("a", 15, 0, 2),
}


@pytest.mark.parametrize("term", BAD_TERMS.values(), ids=BAD_TERMS.keys())
def test_a_bad_term_is_refused(term):
    xorb = xorbs.chunk(b"content") * 2
    with pytest.raises(SutureError, match="chunks"):
        rebuilt({"a": xorb}, [term])


SOUND_XORB, SOUND_SHARD = xorbs.packed(xorbs.some_bytes(150_000), xorbs.REGROUPED)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_a_mutated_upload_is_refused_or_gives_other_content_of_the_announced_size(seed, count):
    """Whoever rebuilds compares the sha256 afterwards; here nothing may escape but `SutureError`."""
    choice = random.Random(seed)
    xorb, shard = bytearray(SOUND_XORB), bytearray(SOUND_SHARD)
    for _ in range(count):
        victim = choice.choice((xorb, shard))
        # Mostly where lengths and counts are.
        at = choice.randrange(min(len(victim), choice.choice((8, 60, 300, len(victim)))))
        kind = choice.randrange(3)
        if kind == 0:
            victim[at] = choice.choice((0, 1, 0x7F, 0x80, 0xFF, choice.randrange(256)))
        elif kind == 1:
            del victim[at : at + choice.randrange(1, 40)]
        else:
            victim[at:at] = choice.randbytes(choice.randrange(1, 40))
    try:
        files = xet.parse_files(bytes(shard), limit=LIMIT)
        found = Xorb("x", layout_of(bytes(xorb)))
        for file in files:
            pieces = rebuild(file.terms(), lambda _: found, lambda _, start, size: bytes(xorb[start : start + size]))
            assert sum(map(len, pieces)) == file.size
    except SutureError:
        return


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    for read in (
        lambda: layout_of(noise + b"\xfe", 7),
        lambda: xet.unpack(memoryview(bytes(xorbs.framed(noise, 1, plain=100)))),
        lambda: xet.parse_files(b"HFRepoMetaData" + noise, limit=LIMIT),
    ):
        with pytest.raises(SutureError):
            read()
