"""Text files are UTF-8 on every machine: no call leaves the encoding to the machine's language settings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("contract", "stitching", "client", "service", "worker", "local", "migrations", "benchmarks", ".ci")
#: Where in a call the encoding may stand without its name.
PLACES = {"read_text": 0, "write_text": 1, "open": 1, "fdopen": 2}
WITHOUT_TEXT = {"Image", "gzip", "tarfile", "zipfile", "archive"}


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that read or write text and do not name its encoding. Ruff sees only those of known types."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in named:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        if isinstance(owner, ast.Name) and owner.id in WITHOUT_TEXT:
            continue
        constant = [value.value for value in (*call.args[:2], *named.values()) if isinstance(value, ast.Constant)]
        text = named.get("text") or named.get("universal_newlines")
        if (
            (name in ("read_text", "write_text") and len(call.args) <= PLACES[name])
            or (
                name in ("open", "fdopen")
                and owner is not None
                and len(call.args) <= PLACES[name]
                and _is_text(constant, name)
            )
            or (isinstance(text, ast.Constant) and text.value is True)
        ):
            yield call


def _is_text(constants: list[object], name: str) -> bool:
    modes = [value for value in constants if isinstance(value, str) and set(value) <= set("rwxabt+") and value]
    return not any("b" in mode for mode in modes) and (name == "fdopen" or bool(modes) or not constants)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_names_its_encoding(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "path.write_text(text)",
        "Path(name).open('w')",
        "path.open(mode='a')",
        "os.fdopen(number, 'w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_what_leaves_it_out_is_found(line: str) -> None:
    assert len(list(without_encoding(ast.parse(line)))) == 1
