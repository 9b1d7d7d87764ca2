"""Writing xorbs and shards as a Xet client does, and as no client should."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence

import lz4.frame

from suture_service.hf.xet.format import MAX_CHUNK, hash_text

RAW, LZ4, REGROUPED = 0, 1, 2


def chunk(content: bytes, scheme: int = LZ4, *, plain: int | None = None, version: int = 0) -> bytes:
    """A chunk with its header, which claims `plain` bytes."""
    packed = content
    if scheme == REGROUPED:
        packed = b"".join(content[group::4] for group in range(4))
    if scheme != RAW:
        packed = lz4.frame.compress(packed)
    return framed(packed, scheme, plain=len(content) if plain is None else plain, version=version)


def framed(packed: bytes, scheme: int, *, plain: int, version: int = 0) -> bytes:
    sizes = len(packed).to_bytes(3, "little"), plain.to_bytes(3, "little")
    return bytes([version]) + sizes[0] + bytes([scheme]) + sizes[1] + packed


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Half noise, half zeros, so that compressing pays."""
    return random.Random(seed).randbytes(size // 2) + bytes(size - size // 2)


def split(content: bytes, size: int = 64 * 1024) -> list[bytes]:
    assert size <= MAX_CHUNK
    return [content[at : at + size] for at in range(0, len(content), size)]


def name_of(xorb: bytes) -> bytes:
    """A hash for a xorb; the hub takes any."""
    return hashlib.blake2b(xorb, digest_size=32).digest()


def term(xorb: bytes, length: int, first: int, end: int) -> bytes:
    return struct.pack("<32sIIII", name_of(xorb), 0, length, first, end)


def file(content: bytes, terms: Sequence[bytes], *, sha256: bytes | None = None, flags: int = 3 << 30) -> bytes:
    """A file of a shard; `sha256` is that of the content unless said otherwise."""
    digest = hashlib.sha256(content).digest() if sha256 is None else sha256
    name = hashlib.blake2b(content, digest_size=32).digest()
    records = struct.pack("<32sII8x", name, flags, len(terms)) + b"".join(terms)
    if flags & 1 << 31:
        records += bytes(48 * len(terms))
    if flags & 1 << 30:
        # The protocol turns a hash's bytes round in groups of eight when it prints it: here they are turned back.
        records += bytes.fromhex(hash_text(digest)) + bytes(16)
    return records


def shard(*files: bytes, rest: bytes = bytes(200)) -> bytes:
    return b"HFRepoMetaData".ljust(32, b"\x01") + bytes(16) + b"".join(files) + b"\xff" * 32 + bytes(16) + rest


def packed(content: bytes, scheme: int = LZ4) -> tuple[bytes, bytes]:
    """A xorb of this content alone, and the shard that lists it as one file."""
    chunks = split(content)
    xorb = b"".join(chunk(part, scheme) for part in chunks)
    return xorb, shard(file(content, [term(xorb, len(content), 0, len(chunks))]))
