"""What the project says about itself in several places is the same everywhere, and the made pages are made anew."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from tests.sources import sources, tree

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    pages = [ROOT / "docker-compose.yml", *ROOT.glob("deploy/**/*.yaml"), *ROOT.glob("docs/*.md")]
    named = {
        (path.name, version)
        for path in pages
        for version in re.findall(r"\bsuture-(?:hub:|site:|(?=\d))(\d[\w.]*)", path.read_text(encoding="utf-8"))
    }
    assert {name for name, _ in named} >= {
        "docker-compose.yml",
        "hub.yaml",
        "agent.yaml",
        "worker.yaml",
        "installation.md",
    }
    assert {version for _, version in named} == {PROJECT["version"]}, sorted(named)


def test_the_workflow_covers_every_python_that_is_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["all"]["strategy"]["matrix"]["python"]
    stated = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tested == stated


def test_workflows_call_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        for target in re.findall(r"make ([a-z-]+)", workflow.read_text(encoding="utf-8")):
            assert target in targets, f"{workflow.name}: make {target}"


def test_the_reference_is_what_the_code_says():
    made = subprocess.run(
        [sys.executable, ".ci/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr


def test_no_module_is_longer_than_can_be_read_at_once():
    """Past 500 lines there are two subjects in it: the second one gets a module of its own."""
    folders = ("contract", "stitching", "client", "service", "worker", "local", "tests", "benchmarks", "migrations")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 800
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_function_is_longer_than_can_be_read_at_once():
    """Past 50 lines, signature and docstring aside, it has steps that have names."""
    functions = [
        (f"{path.relative_to(ROOT)}: {node.name}", node.body[1:] if ast.get_docstring(node) else node.body)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 4000
    lengths = {name: body[-1].end_lineno - body[0].lineno + 1 for name, body in functions if body}
    assert {name: length for name, length in lengths.items() if length > 50} == {}
