"""Weights that are no numbers are found in every type, wherever they lie; and nobody's file takes long to look at."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from suture_contract.errors import SutureError
from suture_contract.model import finite, operators
from suture_contract.model.finite import Arriving, SeenWeights, check_finite, check_finite_file
from suture_contract.model.format import PortableHeader, TensorInfo
from suture_contract.model.graph import Graph, Input, Ref

DTYPES = {
    "float64": (torch.float64, torch.int64),
    "float32": (torch.float32, torch.int32),
    "bfloat16": (torch.bfloat16, torch.int16),
    "float16": (torch.float16, torch.int16),
}
#: What a header calls each type.
NAMES = operators.DTYPES
GRAPH = Graph((Input((None,), "float32"),), (), Ref(0), (Input((None,), "float32"),))


def refusal(path: Path, tensors: dict[str, torch.Tensor]) -> str | None:
    """Return why a file of these tensors, one after another, is refused."""
    start, infos = 0, {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            dtype = str(tensor.dtype).removeprefix("torch.")
            infos[name] = TensorInfo(dtype, tuple(tensor.shape), start, start + len(content))
            start += len(content)
            file.write(content)
    try:
        check_finite_file(path, PortableHeader(GRAPH, infos, {}, 0, start))
    except SutureError as error:
        return error.message
    return None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_told_from_none(tmp_path, monkeypatch, dtype):
    """Each pattern of the two highest bytes, beside others, with and without something in the bytes below."""
    kind, whole = DTYPES[dtype]
    size = kind.itemsize
    monkeypatch.setattr(finite, "_PIECE", 512)
    monkeypatch.setattr(finite, "_PART", 128)
    patterns = np.arange(2**16, dtype=np.uint16)
    wrong = []
    for low in {0, 1} if size > 2 else {0}:
        bits = (patterns.astype(np.uint64) << np.uint64(8 * (size - 2))) + np.uint64(low)
        values = torch.from_numpy(bits.astype(f"u{size}").view(f"i{size}")).to(whole).view(kind)
        finite_ones, others = values[values.isfinite()], values[~values.isfinite()]
        assert refusal(tmp_path / "m", {"w": finite_ones}) is None
        for other in others[::7]:
            found = finite._what_it_holds  # each alone, without a file
            buffer = bytearray(torch.stack([torch.tensor(0.25, dtype=kind), other]).view(torch.uint8).numpy().tobytes())

            def read(offset: int, into: memoryview, buffer: bytearray = buffer) -> None:
                into[:] = buffer[offset : offset + len(into)]

            said = found(read, finite._Span(dtype, 0, len(buffer)))
            if said != ("NaN" if other.isnan() else "infinite values"):
                wrong.append((int(other.view(whole)), said))
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_may_hold_infinity_and_nothing_else_may(tmp_path, dtype):
    kind, _ = DTYPES[dtype]
    mask = torch.tensor([0.0, 1.0, float("inf"), float("-inf"), -0.0] * 300, dtype=kind)
    assert refusal(tmp_path / "m", {"before": torch.rand(9).to(kind), "mask": mask}) is None
    for other, place in itertools.product((-1.0, 2.0, 0.5, 1.0009765625, 2.0**-14), (0, 700, 1499)):
        changed = mask.clone()
        changed[place] = other
        if other in (float(changed[place]), 1.0) and float(changed[place]) not in (0.0, 1.0):
            assert "infinite" in (refusal(tmp_path / "m", {"mask": changed}) or ""), (other, place)


def test_the_tensor_is_named_that_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "_PIECE", 4096)
    monkeypatch.setattr(finite, "_PART", 1024)
    for bad in range(40):
        tensors = {f"t{number:02d}": torch.rand(97 + number) for number in range(40)}
        tensors["counts"] = torch.arange(7)
        tensors |= {f"h{number:02d}": torch.rand(97).half() for number in range(3)}
        assert refusal(tmp_path / "m", tensors) is None
        tensors[f"t{bad:02d}"][-1 if bad % 2 else 0] = float("nan")
        assert refusal(tmp_path / "m", tensors) == f"the weights t{bad:02d} hold NaN"


def file_of(tensors: Mapping[str, torch.Tensor], *, padding: int = 0) -> tuple[bytes, PortableHeader]:
    """A file of safetensors, whose weights begin where its header ends, whatever number of bytes that is."""
    infos, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        dtype = str(tensor.dtype).removeprefix("torch.")
        infos[name] = TensorInfo(dtype, tuple(tensor.shape), len(data), len(data) + len(content))
        data += content
    text = json.dumps({name: {"dtype": NAMES[info.dtype][0]} for name, info in infos.items()}).encode()
    text += b" " * padding
    content = len(text).to_bytes(8, "little") + text + data
    return content, PortableHeader(GRAPH, infos, {}, 8 + len(text), len(content))


def seen_in(content: bytes, first: int, then: int) -> SeenWeights | None:
    """What is seen of a file that comes in one buffer of `first` bytes and others of `then`."""
    arriving, at = Arriving(), 0
    while at < len(content):
        buffer = bytearray(content[at : at + (then if at else first)])
        arriving.update(memoryview(buffer))
        at += len(buffer)
    return arriving.seen


def judged(content: bytes, header: PortableHeader, seen: SeenWeights | None) -> tuple[str | None, int]:
    """Why a file is refused, and how many bytes were read for that."""
    read = [0]

    def read_into(offset: int, buffer: memoryview) -> int:
        part = content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        read[0] += len(part)
        return len(part)

    try:
        check_finite(read_into, header, seen=seen)
    except SutureError as error:
        return error.message, read[0]
    return None, read[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_seen_on_its_way_is_not_read_again_and_nothing_is_missed(monkeypatch, dtype):
    """Whatever the header says, in whatever pieces a file comes, and wherever a weight is no number."""
    monkeypatch.setattr(finite, "_PIECE", 512)
    monkeypatch.setattr(finite, "_PART", 96)
    chance, kind = random.Random(7), DTYPES[dtype][0]
    for turn in range(60):
        tensors = {f"t{number:02d}": torch.rand(chance.randrange(2, 200)).to(kind) for number in range(6)}
        if turn % 3:
            tensors["other"] = torch.rand(chance.randrange(2, 50)).to(DTYPES[chance.choice(list(DTYPES))][0])
        if turn % 3 == 2:  # what follows lies where no whole number of its bytes would
            tensors = {"bytes": torch.zeros(chance.randrange(1, 9), dtype=torch.uint8)} | tensors
        pieces = chance.randrange(60, 400), chance.randrange(60, 700)
        content, header = file_of(tensors, padding=chance.randrange(9))
        refused, read = judged(content, header, seen_in(content, *pieces))
        assert refused is None
        assert turn % 3 or not read, (read, pieces)

        bad = chance.choice([name for name in tensors if name != "bytes"])
        tensors[bad][chance.randrange(len(tensors[bad]))] = chance.choice([float("nan"), float("-inf")])
        content, header = file_of(tensors, padding=chance.randrange(9))
        refused, _ = judged(content, header, seen_in(content, *pieces))
        assert refused == judged(content, header, None)[0]
        assert f"the weights {bad} hold" in (refused or "")


def test_what_is_seen_of_a_file_that_means_harm_is_little(monkeypatch):
    """Every other part is suspicious: what is kept of that does not grow with the file."""
    monkeypatch.setattr(finite, "_PART", 64)
    weights = torch.rand(64 * 1000)
    weights.view(-1, 32)[:, 3] = torch.finfo(torch.float32).max
    content, header = file_of({"w": weights})
    seen = seen_in(content, 4096, 8192)
    assert seen is not None
    assert len(seen.suspicious) == finite._STRETCHES
    assert judged(content, header, seen)[0] is None
    weights[-1] = float("nan")
    content, header = file_of({"w": weights})
    assert judged(content, header, seen_in(content, 4096, 8192))[0] == "the weights w hold NaN"


def test_of_a_long_header_only_the_end_is_looked_at(monkeypatch):
    """Whoever sends one of many MiB keeps Python from nobody else."""
    counted = list[int]()

    class Counting(bytearray):
        def count(self, sub, start=0, end=None, /):
            counted.append((len(self) if end is None else end) - start)
            return super().count(sub, start, end)

    content, header = file_of({"w": torch.rand(1000)})
    text = b'{"a":"' + b"x" * 5_000_000 + b'",' + content[9 : header.data_start]
    content, at = len(text).to_bytes(8, "little") + text + content[header.data_start :], 0
    arriving = Arriving()
    while at < len(content):
        buffer = Counting(content[at : at + 2**20])
        arriving.update(memoryview(buffer))
        at += len(buffer)
    seen = arriving.seen
    assert seen is not None
    assert (seen.dtype, seen.start, seen.end, seen.suspicious) == ("float32", 8 + len(text), len(content), ())
    assert sum(counted) <= len(DTYPES) * finite._NAMED


@pytest.mark.parametrize("content", [b"", b"12345678", b"PK\x03\x04" + bytes(100), b"\xff" * 100, b"x" * 100])
def test_of_what_is_no_safetensors_nothing_is_seen(content):
    assert seen_in(content, 50, 50) is None


def test_a_file_that_is_cut_meanwhile_is_not_taken_for_checked(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(bytes(4000))
    header = PortableHeader(GRAPH, {"w": TensorInfo("float32", (1001,), 0, 4004)}, {}, 0, 4004)
    with pytest.raises(SutureError) as refused:
        check_finite_file(path, header)
    assert refused.value.code == "model.truncated"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", ["largest", "infinity"])
def test_what_looks_like_no_number_takes_no_longer_than_numbers(tmp_path, dtype, value):
    """Number by number in Python, these took hundreds of times as long: minutes for each GiB that somebody sends."""
    kind, _ = DTYPES[dtype]
    n = 2**22 // kind.itemsize
    worst = torch.full((n,), torch.finfo(kind).max if value == "largest" else float("inf"), dtype=kind)
    usual = torch.rand(n, dtype=torch.float32).to(kind)

    def seconds(tensor: torch.Tensor) -> float:
        found = []
        for _ in range(3):
            started = time.thread_time() + time.process_time()
            assert refusal(tmp_path / "m", {"w": tensor}) is None
            found.append(time.thread_time() + time.process_time() - started)
        return min(found)

    assert seconds(worst) < 40 * seconds(usual)
