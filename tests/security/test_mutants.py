"""Thousands of damaged and made-up models: each is refused or runs as it states, within what the dry run said.

Of those that run, gradients are computed, too.

Processes confined like a site's child run them. One that ends takes the test down with it: the mutant is kept in
`found/` under its number, from which `mutants.mutant` makes it again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.security.calls import CALLS
from tests.security.write_corpus import GOOD

from suture_contract.model.operators import ATEN, OPERATORS

#: `.ci/run` tries 3,000; a million with `SUTURE_MUTANTS=1000000`, after a change of the list of operators say.
COUNT = int(os.environ.get("SUTURE_MUTANTS", "1000"))
#: To begin takes a process as long as some hundred mutants.
PROCESSES = 1 if COUNT <= 1000 else 2
SECONDS = 150 + COUNT / 50
FOUND = Path(__file__).parent / "found"
ROOT = Path(__file__).parents[2]


def operators_of(path: Path) -> set[str]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return set(json.loads(header["__metadata__"]["graph"])["ops"])


def test_every_operator_is_in_a_seed():
    called = {f"aten.{call[0]}" for call in CALLS}
    seeds = set().union(*(operators_of(path) for path in GOOD.glob("*.safetensors")))
    assert called <= ATEN, "no operators of the list: take them out of calls.py, or wait until they are on it"
    assert seeds >= OPERATORS, (
        f"add a call of {sorted(OPERATORS - seeds)} to calls.py, then run `python -m tests.security.write_corpus`"
    )


@pytest.mark.timeout(SECONDS + 60)
def test_no_mutant_does_harm(tmp_path):
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    running = []
    for index in range(PROCESSES):
        folder = tmp_path / str(index)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.security.sandbox", *map(str, (index, COUNT, PROCESSES, folder))]
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)
        running.append((process, folder))
    deadline = time.monotonic() + SECONDS
    became: Counter[str] = Counter()
    back: Counter[str] = Counter()
    ran: set[str] = set()
    try:
        for process, folder in running:
            status = process.wait(max(0.1, deadline - time.monotonic()))
            assert status == 0, ended(folder, status)
            result = json.loads((folder / "out").read_text())
            became.update(result["became"])
            back.update(result["back"])
            ran.update(result["operators"])
    except subprocess.TimeoutExpired:
        pytest.fail(ended(folder, None))
    finally:
        for process, _ in running:
            process.kill()
            process.wait()
    assert became.total() == COUNT
    # As many as this must get through to each layer and to the kernels, or nothing much was tried.
    assert became["ran"] > COUNT // 10, became
    for code in ("model.graph", "model.arguments", "model.run_failed", "running: model.run_failed"):
        assert became[code] > COUNT // 200, became
    assert back["differentiated"] > COUNT // 20, back
    if COUNT >= 20_000:
        assert ran >= OPERATORS, f"no mutant with {sorted(OPERATORS - ran)} ran"


def ended(folder: Path, status: int | None) -> str:
    """Keep the mutant that a process did not survive, and say which it was."""
    try:
        number = (folder / "number").read_text().strip()
    except OSError:
        return f"it did not begin: {status}\n" + (folder / "err").read_text()[-3000:]
    FOUND.mkdir(exist_ok=True)
    kept = FOUND / f"{number}.safetensors"
    shutil.copyfile(folder / "mutant.safetensors", kept)
    how = "took too long" if status is None else f"ended the process with {status}"
    return f"mutant {number}, kept as {kept}, {how}\n{(folder / 'err').read_text()[-3000:]}"
