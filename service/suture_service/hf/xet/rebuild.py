"""Putting a file together from the xorbs its terms point into, about a MiB at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from suture_service.errors import Malformed
from suture_service.hf.xet.format import Layout, Term, unpack

#: How much is read from a xorb, and handed on, at once.
WINDOW = 2**20


@dataclass(frozen=True)
class Xorb:
    """A xorb that lies in the store under `name`."""

    name: str
    layout: Layout


def rebuild(
    terms: Iterator[Term], find: Callable[[str], Xorb], read: Callable[[str, int, int], bytes]
) -> Iterator[bytes]:
    """Yield the content that `terms` describe in pieces of about a MiB.

    `find` returns the xorb of a hash, `read(name, offset, length)` bytes of it as stored. Raises `Malformed` where a
    term does not fit its xorb.
    """
    ready = bytearray()
    for term in terms:
        xorb = find(term.xorb)
        layout = xorb.layout
        if not term.first < term.end <= layout.chunks:
            raise _no_fit(term)
        if layout.plain[term.end] - layout.plain[term.first] != term.length:
            raise _no_fit(term)
        for first, end in _windows(layout, term.first, term.end):
            start = layout.sent[first]
            content = memoryview(read(xorb.name, start, layout.sent[end] - start))
            for chunk in range(first, end):
                ready += unpack(content[layout.sent[chunk] - start : layout.sent[chunk + 1] - start])
            if len(ready) >= WINDOW:
                yield bytes(ready)
                ready.clear()
    if ready:
        yield bytes(ready)


def _windows(layout: Layout, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a run of chunks so that no part has much more than `WINDOW` bytes, packed or unpacked."""
    start = first
    for chunk in range(first, end):
        sent = layout.sent[chunk + 1] - layout.sent[start]
        plain = layout.plain[chunk + 1] - layout.plain[start]
        if max(sent, plain) >= WINDOW or chunk + 1 == end:
            yield start, chunk + 1
            start = chunk + 1


def _no_fit(term: Term) -> Malformed:
    return Malformed(
        "shard.term", "a file refers to chunks that the xorb does not have", where=term.xorb, hint="start again"
    )
