"""Model files are opened where the token is not: what a hostile one costs is not the agent's, and has a bound."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from suture_contract.errors import SutureError
from suture_contract.model.format import MAX_HEADER, MAX_VALUES
from suture_contract.model.metadata import ModelMetadata
from suture_worker.compute import checking
from suture_worker.compute.checking import check_model

MIB = 2**20


@pytest.fixture
def metadata(make):
    return ModelMetadata.model_validate(make.METADATA)


def file_of(folder, header):
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def huge(folder):
    """As many objects and as long a text as a header may have: some 60 MiB once they are read."""
    objects, text = b'{"":1},' * (MAX_VALUES // 4), b"a" * (MAX_HEADER // 4 * 3)
    return file_of(folder, b'{"a":[' + objects + b'1],"b":"' + text + b'"}')


def deep(folder):
    return file_of(folder, b'{"a":' + b"[" * (MAX_HEADER // 2))


def test_a_model_that_is_as_described_has_its_operators_told(portable, metadata):
    assert "aten.linear.default" in check_model(portable[0], metadata)
    outputs = {"class": metadata.outputs["class"].model_copy(update={"num_channels": 3})}
    other = metadata.model_copy(update={"outputs": outputs, "labels": ("dark", "bright", "grey")})
    with pytest.raises(SutureError, match="num_channels") as caught:
        check_model(portable[0], other)
    assert caught.value.code == "metadata.mismatch"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counts are Linux's")
@pytest.mark.parametrize(("hostile", "code"), [(huge, "model.not_portable"), (deep, "model.graph")])
def test_the_memory_that_a_hostile_header_takes_is_not_the_agents(tmp_path, metadata, hostile, code):
    path = hostile(tmp_path)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _peak()
    with pytest.raises(SutureError) as caught:
        check_model(path, metadata)
    assert caught.value.code == code
    assert _peak() < before + 16 * MIB


@pytest.mark.parametrize(("limit", "value"), [("MEMORY", 40 * MIB), ("SECONDS", 3)])
def test_what_takes_more_than_it_may_is_refused(tmp_path, metadata, portable, monkeypatch, limit, value):
    monkeypatch.setattr(checking, limit, value)
    assert check_model(portable[0], metadata)
    path = huge(tmp_path)
    if limit == "SECONDS":
        path = tmp_path / "pipe"
        os.mkfifo(path)  # nobody ever writes to it
    with pytest.raises(SutureError) as caught:
        check_model(path, metadata)
    assert caught.value.code == "model.unchecked"


def _peak():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
