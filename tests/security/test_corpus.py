"""The corpus: good files run, hostile ones are refused by the layer and with the code that `expected.json` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.security.sandbox import attempt
from tests.security.write_corpus import CORPUS, EXPECTED, GOOD, HOSTILE, network_names, write

from suture_contract.errors import SutureError
from suture_contract.model.graph_json import MAX_BRACKETS, MAX_JSON, MAX_LIST, MAX_NODES, graph_from_json

ROOT = Path(__file__).parents[2]
expected: dict[str, dict[str, str]] = json.loads(EXPECTED.read_text())


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What became of each hostile file, tried in a confined process."""
    command = [sys.executable, "-m", "tests.security.try_corpus", str(HOSTILE)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout)


def test_the_corpus_is_whole_and_small():
    assert {path.stem for path in HOSTILE.iterdir()} == set(expected)
    assert len(expected) > 150
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 350_000


@pytest.mark.parametrize("name", sorted(expected))
def test_a_hostile_file_is_refused(found, name):
    refused = found["files"][name]
    assert (refused["layer"], refused["code"]) == (expected[name]["layer"], expected[name]["code"]), refused
    assert refused["seconds"] < found["start"], "it took longer than all imports"
    shown = refused["message"] + (refused["where"] or "")
    assert shown.isprintable(), "what a file holds must not steer the terminal"


@pytest.mark.parametrize("path", sorted(GOOD.iterdir()), ids=lambda path: path.stem)
def test_a_good_file_runs(path):
    assert attempt(path, path.read_bytes())[0] == "ran"


def test_the_first_layer_needs_no_torch():
    code = (
        "import sys\nfrom pathlib import Path\nfrom suture_contract.errors import SutureError\n"
        "from suture_contract.model.format import check_file\n"
        "for path in Path(sys.argv[1]).glob('*.safetensors'):\n"
        "    try:\n        check_file(path)\n    except SutureError:\n        pass\n"
        "print('torch' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(HOSTILE)], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_the_corpus_is_what_its_script_writes(tmp_path):
    """But for networks, which another version of torch may record a little differently: these are all there."""
    write(tmp_path)
    made = json.loads((tmp_path / EXPECTED.name).read_text())
    assert made == expected
    exported = {f"{name}.safetensors" for name in network_names()}
    assert {path.name for path in GOOD.iterdir()} == {path.name for path in (tmp_path / "good").iterdir()} | exported
    for path in CORPUS.rglob("*"):
        if path.is_file() and path.name not in {EXPECTED.name, *exported}:
            assert (tmp_path / path.relative_to(CORPUS)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "text",
    [
        '{"nodes":[' + "[]," * MAX_BRACKETS + "[]]}",
        '{"nodes":"' + "x" * MAX_JSON + '"}',
        json.dumps(
            {
                "inputs": [{"shape": [None], "dtype": "float32"}],
                "outputs": [{"shape": [None], "dtype": "float32"}],
                "ops": ["input"],
                "modules": [""],
                "nodes": [[0, [0], {}, 0]] * (MAX_NODES + 1),
                "output": {"n": 0},
            }
        ),
        json.dumps(
            {
                "inputs": [{"shape": [None], "dtype": "float32"}],
                "outputs": [{"shape": [None], "dtype": "float32"}],
                "ops": ["input", "aten.cat.default"],
                "modules": [""],
                "nodes": [[0, [0], {}, 0], [1, [[{"n": 0}] * (MAX_LIST + 1)], {}, 0]],
                "output": {"n": 1},
            }
        ),
    ],
    ids=["lists", "bytes", "nodes", "arguments"],
)
def test_graphs_too_large_to_keep(text):
    with pytest.raises(SutureError) as refused:
        graph_from_json(text)
    assert refused.value.code == "model.graph"
