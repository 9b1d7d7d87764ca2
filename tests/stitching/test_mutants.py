"""Thousands of damaged models: each is refused or runs as it states, and none ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")
COUNT = 1500


@pytest.mark.parametrize("first", [0, 1_000_000])
def test_no_mutant_does_harm(networks, tmp_path, first):
    for name in ("cnn", "gru", "transformer", "unet"):
        (tmp_path / f"{name}.safetensors").write_bytes(networks(name).path.read_bytes())
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(first), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    lines = finished.stdout.split("\n")
    assert finished.returncode == 0, f"mutant {lines[-2]} of {first}: {finished.stderr[-2000:]}"
    ran = int(lines[-2].removeprefix("ran "))
    assert COUNT // 20 < ran < COUNT
