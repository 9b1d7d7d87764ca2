"""The reference pages made from the code: error codes, and the public Python API. `make reference` writes them.

Read from the source, not by importing: the pages are the same under every Python and whatever is installed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("contract", "stitching", "client", "service", "worker", "local")
ERRORS, API = ROOT / "docs/reference/errors.md", ROOT / "docs/reference/python.md"
_CODE = re.compile(r"[a-z]+(?:_[a-z]+)*\.[a-z0-9_]+")
#: Names of files are written as codes are.
_FILES = (".head", ".json", ".safetensors", ".sig")
#: What a data scientist imports, in the order of the page.
PUBLIC = (
    "client/suture/hub.py",
    "client/suture/job.py",
    "client/suture/listing.py",
    "client/suture/tokens.py",
    "client/suture/keys.py",
    "client/suture/responses.py",
    "client/suture/errors.py",
    "contract/suture_contract/errors.py",
    "contract/suture_contract/fit_options.py",
    "contract/suture_contract/documents.py",
    "contract/suture_contract/model/metadata.py",
    "stitching/suture_stitching/local.py",
    "stitching/suture_stitching/inspect.py",
    "stitching/suture_stitching/predict.py",
    "stitching/suture_stitching/data/__init__.py",
    "stitching/suture_stitching/data/spec.py",
    "stitching/suture_stitching/data/dataset.py",
    "stitching/suture_stitching/data/arrays.py",
    "stitching/suture_stitching/portable/export.py",
    "stitching/suture_stitching/portable/runtime.py",
    "stitching/suture_stitching/formats/onnx.py",
    "stitching/suture_stitching/formats/mlflow.py",
    "stitching/suture_stitching/formats/monai_bundle.py",
    "stitching/suture_stitching/sources/opening.py",
    "stitching/suture_stitching/sources/source.py",
    "stitching/suture_stitching/features/points.py",
    "stitching/suture_stitching/fitting/fit.py",
    "stitching/suture_stitching/fitting/contribute.py",
    "stitching/suture_stitching/ensemble/members.py",
    "stitching/suture_stitching/ensemble/fitted.py",
    "stitching/suture_stitching/ensemble/compose.py",
    "stitching/suture_stitching/evaluation/evaluate.py",
    "stitching/suture_stitching/evaluation/select.py",
)


class Raised(NamedTuple):
    """One place that raises an error: its code, the words, the usual next step and the module."""

    code: str
    message: str
    hint: str
    where: str


def raised() -> Iterator[Raised]:
    """Yield every error code in the code, with the words that go with it."""
    trees = {
        ".".join(path.relative_to(ROOT / package).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    constants = {module: dict(_constants(tree)) for module, tree in trees.items()}
    anywhere = {name: code for named in constants.values() for name, code in named.items() if name[0] != "_"}
    for module, tree in trees.items():
        known = {**anywhere, **constants[module]}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _may_raise(node.func):
                yield from _raised_by(node, module, known)
            elif isinstance(node, ast.Dict):
                yield from _told_by(node, module)


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the codes that a module gives names to: `DENIED = "policy.denied"`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
            target, value = node.targets[0], node.value
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = value.elts if isinstance(value, ast.Tuple) and isinstance(target, ast.Tuple) else [value]
            for name, item in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and (code := _code(item, {})):
                    yield name.id, code


def _may_raise(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name not in {"ForeignKey", "Path", "get", "file", "getLogger", "files", "import_module"}


def _code(expression: ast.expr, constants: Mapping[str, str]) -> str | None:
    """Return the code that an expression is, written out or by its name; None for anything else."""
    text = expression.value if isinstance(expression, ast.Constant) else None
    if isinstance(expression, ast.Name):
        text = constants.get(expression.id)
    elif isinstance(expression, ast.Attribute):
        text = constants.get(expression.attr) if expression.attr.isupper() else None
    if not isinstance(text, str) or text.startswith(("suture.", "suture_")) or text.endswith(_FILES):
        return None
    return text if _CODE.fullmatch(text) else None


def _raised_by(node: ast.Call, module: str, constants: Mapping[str, str]) -> Iterator[Raised]:
    hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
    for index, argument in enumerate(node.args[:2]):
        if code := _code(argument, constants):
            yield Raised(code, _words(node.args[index + 1 : index + 2]), _words(hints), module)
            return
    for keyword in node.keywords:
        if keyword.arg == "code" and (code := _code(keyword.value, constants)):
            yield Raised(code, "", _words(hints), module)


def _told_by(node: ast.Dict, module: str) -> Iterator[Raised]:
    """Yield what is said of codes in a table: `{"site.disk_full": ("the disk is full", "make room")}`."""
    for key, value in zip(node.keys, node.values, strict=True):
        if key is not None and isinstance(value, ast.Tuple) and len(value.elts) == 2 and (code := _code(key, {})):
            yield Raised(code, _words([value.elts[0]]), _words([value.elts[1]]), module)


def _words(expressions: list[ast.expr]) -> str:
    """Return the text of a string or f-string, with the names of what is filled in; empty for anything else."""
    for expression in expressions:
        if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
            return expression.value
        if isinstance(expression, ast.JoinedStr):
            return "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…"
                for part in expression.values
            )
    return ""


def error_page() -> str:
    """Return the catalogue of error codes as Markdown."""
    by_code: dict[str, list[Raised]] = {}
    for found in raised():
        by_code.setdefault(found.code, []).append(found)
    lines = [
        "# Error codes",
        "",
        "Every error has a stable code, says what is wrong and where, and mostly what to do next. Programs compare the",
        "code; the words may change. `…` stands for what is filled in. A request that is refused without a code of its",
        "own has `not_found`, `auth.invalid`, or `http.` and the status. This page is made from the code by",
        "`make reference`.",
        "",
    ]
    nouns: dict[str, list[str]] = {}
    for code in sorted(by_code):
        nouns.setdefault(code.partition(".")[0], []).append(code)
    for noun, codes in nouns.items():
        lines += [f"## {noun}", "", "| code | what is wrong | what to do | raised in |", "|---|---|---|---|"]
        for code in codes:
            places = by_code[code]
            messages = "; or ".join(dict.fromkeys(place.message for place in places if place.message))
            hints = "; or ".join(dict.fromkeys(place.hint for place in places if place.hint))
            modules = ", ".join(f"`{module}`" for module in dict.fromkeys(place.where for place in places))
            lines.append(f"| `{code}` | {_cell(messages)} | {_cell(hints)} | {modules} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")


def api_page() -> str:
    """Return the public Python API as Markdown: signatures and docstrings."""
    lines = [
        "# Python API",
        "",
        "Signatures and docstrings of what a data scientist imports. This page is made from the code by",
        "`make reference`.",
        "",
    ]
    for name in PUBLIC:
        path = ROOT / name
        module = ".".join(path.relative_to(ROOT / name.partition("/")[0]).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines += [f"## {module.removesuffix('.__init__')}", "", *_docstring(tree)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                lines += _entry(node, "###", "")
    return "\n".join(lines).rstrip() + "\n"


def _entry(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, level: str, owner: str) -> list[str]:
    name = f"{owner}{node.name}"
    if isinstance(node, ast.ClassDef):
        lines = [f"{level} {name}", "", *_docstring(node)]
        fields = [
            f"{item.target.id}: {ast.unparse(item.annotation)}"
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_"
        ]
        if fields:
            lines += ["```python", *fields, "```", ""]
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
        for item in methods:
            if item.name[0] != "_":
                lines += _entry(item, "####", f"{node.name}.")
        return lines
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{name}({ast.unparse(node.args)}){returns}"
    return [f"{level} {name}", "", "```python", signature, "```", "", *_docstring(node)]


def _docstring(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    text = ast.get_docstring(node)
    if not text:
        return []
    text = re.sub(r"\n\n\n+", "\n\n", text.replace("\b\n", ""))
    return [*text.splitlines(), ""]


PAGES = {ERRORS: error_page, API: api_page}

if __name__ == "__main__":
    stale = []
    for page, make in PAGES.items():
        text = make()
        if "--check" in sys.argv:
            stale += [] if page.exists() and page.read_text(encoding="utf-8") == text else [str(page.relative_to(ROOT))]
        else:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
    sys.exit(f"not what the code says now: {', '.join(stale)}; type `make reference`" if stale else 0)
