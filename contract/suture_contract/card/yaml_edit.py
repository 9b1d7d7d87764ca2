"""Fields put into a card's YAML block by its text, so that what stands beside them stays as its author wrote it.

To read a block and write its values anew would make `1.1` of `1.10` and `false` of `no`, and lose every comment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from suture_contract.card.yaml_block import CardBlock, read_block, refused
from suture_contract.errors import SutureError


class _Edit(NamedTuple):
    """What takes the place of `text[start:end]`."""

    start: int
    end: int
    written: str


def with_fields(block: CardBlock, fields: Mapping[str, Any]) -> str:
    """Return the text of a block with these fields in it: new ones before all others, those that differ in their place.

    A list of texts that begins with further items has these put before the others. Line ends are those of the block.
    Raises `SutureError` `card.yaml` where the block is written so that it cannot be done.
    """
    text, root = block.text, block.root
    line_end = "\r\n" if block.opening.endswith("\r\n") else "\n"
    column = root.start_mark.column if root is not None else 0
    flow = root is not None and text[root.start_mark.index] == "{"
    edits = []
    for name, value in fields.items():
        if name in block.nodes and not _same(block.fields[name], value):
            key, node = block.nodes[name]
            written = _written({name: value}, flow=flow)
            edits.append(
                _before_items(text, node, block.fields[name], value, line_end)
                or _Edit(key.start_mark.index, _end(text, key, node), _indented(written, line_end, column))
            )
    if new := {name: value for name, value in fields.items() if name not in block.nodes}:
        written = _written(new, flow=flow)
        if root is not None and flow:
            start = root.start_mark.index + 1
            edits.append(_Edit(start, start, f"{written}, " if block.nodes else written))
        else:
            edits.append(_Edit(0, 0, " " * column + _indented(written, line_end, column) + line_end))
    for start, end, written in sorted(edits, reverse=True):
        text = text[:start] + written + text[end:]
    _check(block, text, {**block.fields, **fields})
    return text


def _check(block: CardBlock, text: str, wanted: dict[str, Any]) -> None:
    """Refuse what does not read back as it is meant: YAML has more forms than are foreseen here."""
    try:
        read = read_block(f"{block.opening}{text}{block.closing}")
    except SutureError:
        read = None
    if read is None or not _same(read.fields, wanted):
        problem = "what suture.json says cannot be put into it as it is written"
        raise refused(problem, hint="begin a line with each `field:`, and give it no tag and no anchor")


def _before_items(text: str, node: yaml.Node, own: Any, value: Any, line_end: str) -> _Edit | None:
    """Return how a list gets its first items, None where it is no list that only needs some more."""
    if not isinstance(node, yaml.SequenceNode) or not own or value[-len(own) :] != own:
        return None
    start, items = node.start_mark.index, value[: -len(own)]
    if text[start] == "[":
        written = _dump(items, flow=True)[1:-1]
        return _Edit(start + 1, start + 1, f"{written}," if text[start + 1].isspace() else f"{written}, ")
    if text[start] == "-":
        indent = " " * node.start_mark.column
        return _Edit(start, start, "".join(f"{_dump([item])}{line_end}{indent}" for item in items))
    return None


def _end(text: str, key: yaml.Node, node: yaml.Node) -> int:
    """Return where a value ends: a block ends for the parser where the next field begins, comments between or not."""
    last = node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        item = last.value[-1]
        last = item[1] if isinstance(last, yaml.MappingNode) else item
    start, end = key.end_mark.index, max(key.end_mark.index, last.end_mark.index)
    return start + len(text[start:end].rstrip())


def _written(fields: Mapping[str, Any], *, flow: bool) -> str:
    return _dump(dict(fields), flow=True)[1:-1] if flow else _dump(dict(fields))


def _dump(value: object, *, flow: bool = False) -> str:
    form: dict[str, Any] = {"default_flow_style": flow, "sort_keys": False, "allow_unicode": True, "width": sys.maxsize}
    return str(yaml.safe_dump(value, **form)).rstrip("\n")


def _indented(text: str, line_end: str, column: int) -> str:
    return (line_end + " " * column).join(text.split("\n"))


def _same(value: object, other: object) -> bool:
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
