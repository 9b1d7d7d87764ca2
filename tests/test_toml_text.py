"""TOML that Suture writes is read as it was meant, whatever a folder or a label is called."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture_contract.errors import SutureError
from suture_contract.toml_text import toml, toml_key

TEXTS = st.text()
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(TEXTS, VALUES)
def test_what_is_written_is_read(name: str, value: object) -> None:
    assert tomllib.loads(f"{toml_key(name)} = {toml(value)}") == {name: value}


def test_a_path_is_its_text() -> None:
    path = Path("/data/\N{GRINNING FACE}/\x7f ö")
    assert tomllib.loads(f"path = {toml(path)}") == {"path": str(path)}


@pytest.mark.parametrize("value", [os.fsdecode(b"/data/r\xf6ntgen"), {"a": [Path(os.fsdecode(b"r\xf6"))]}])
def test_a_name_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(SutureError) as refused:
        toml(value)
    assert refused.value.code == "file.encoding"
    assert r"r\udcf6" in str(refused.value)
    assert refused.value.hint
