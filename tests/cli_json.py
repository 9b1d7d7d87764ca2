"""docs/reference/cli-json.md, written from what the commands say they print: `make reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typer.main import get_command

from suture.cli.app import app
from suture_contract.console.tree import walk

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli-json.md"
_INTRODUCTION = """\
# What commands print for machines

With `--format json` a command prints one JSON document on standard output; what is meant for people stays on standard
error. This page says what each command prints. It is made from the code by `make reference`.
Documents only gain fields: ignore those that you do not know.

An error goes to standard error, as `{"error": {"code": …, "message": …, "where": …, "hint": …}}`. The code and the exit
code are stable; `suture --help` lists the exit codes.

Every field is always there; it is `null` where there is nothing to say. Times are in UTC (ISO 8601). Without
`--format json`, a table in a pipe has one line per row, under a line of headings.
"""


@cache
def printed() -> Sequence[tuple[str, Any]]:
    """Return each command that has `--format`, and what it says it prints. Imports all commands."""
    return [
        (" ".join(("suture", *path)), printed_by(command))
        for path, _, command in walk(get_command(app))
        if any("--format" in parameter.opts for parameter in command.params)
    ]


def printed_by(command: Any) -> Any:
    kind = getattr(command.callback, "prints", None)
    if isinstance(kind, str):
        module, _, name = kind.partition(":")
        kind = getattr(import_module(module), name)
    return kind


def checked(arguments: Sequence[str], text: str) -> Any:
    """Return what a command printed, once it is exactly what the page says: no field is missing, and none is more."""
    name, kind = next(found for found in printed() if _is(arguments, found[0]))
    adapter = TypeAdapter(kind)
    assert adapter.dump_python(adapter.validate_json(text), mode="json", by_alias=True) == json.loads(text), name
    return json.loads(text)


def prints_json(arguments: Sequence[str]) -> bool:
    """Whether the command in these arguments has `--format`."""
    return any(_is(arguments, name) for name, _ in printed())


def _is(arguments: Sequence[str], name: str) -> bool:
    words = name.split()[1:]
    return list(arguments[: len(words)]) == words


def page() -> str:
    adapters = [(name, "serialization", TypeAdapter(kind)) for name, kind in printed()]
    schemas, shared = TypeAdapter.json_schemas(adapters, by_alias=True, ref_template="{model}")
    definitions = {name: schema for name, schema in shared.get("$defs", {}).items() if "properties" in schema}
    lines = [_INTRODUCTION, "## Commands", "", "| command | prints |", "|---|---|"]
    lines += [
        f"| `{name}` | {_kind(schemas[name, 'serialization'], shared.get('$defs', {}))} |" for name, _ in printed()
    ]
    lines += ["", "## Types"]
    for name in sorted(definitions, key=_title):
        lines += ["", f"### {_title(name)}", "", *_described(definitions[name], shared["$defs"])]
    return "\n".join(lines) + "\n"


def _described(schema: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    text = schema.get("description", "").partition("\n\n")[0].replace("\n", " ")
    if text:
        yield from (text, "")
    fields = schema["properties"]
    told = any("description" in field for field in fields.values())
    yield "| field | type |" + " meaning |" * told
    yield "|---|---|" + "---|" * told
    for name, field in fields.items():
        meaning = " ".join(field.get("description", "").split())
        yield f"| `{name}` | {_kind(field, known)} |" + f" {meaning} |" * told


def _kind(schema: dict[str, Any], known: dict[str, Any]) -> str:
    """Return a type in words, with links to the types of this page."""
    if "$ref" in schema:
        name = schema["$ref"]
        if "properties" not in known[name]:
            return _kind(known[name], known)
        return f"[{_title(name)}](#{_title(name).lower().replace(' ', '-')})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one, known) for one in schema.get("anyOf") or schema["oneOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return "list of " + ", ".join(_kind(one, known) for one in schema["prefixItems"])
        return f"list of {_kind(schema.get('items', {}), known)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object: name to {_kind(values, known)}" if isinstance(values, dict) else "object"
    if kind == "string":
        return {"date-time": "time", "path": "path"}.get(schema.get("format", ""), "string")
    return str(kind) if kind else "any"


def _title(name: str) -> str:
    """Return what a type is called: its name, and where two share one, whose it is."""
    *modules, last = name.split("__")
    return f"{last} of {modules[-1].replace('_', ' ')}" if modules else last


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
