"""The YAML block at the top of a card, read with care: by the hub from whoever sends it, by a client to add to it.

Its form is that of the Hugging Face Hub: between two lines `---`, the first of which begins the card.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from suture_contract.errors import SutureError
from suture_contract.kinds import CARD
from suture_contract.naming import shown
from suture_contract.unseen import LINES, first_unseen, name_of

MAX_YAML = 64 * 1024
MAX_DEPTH, MAX_VALUES = 100, 10_000
_LINES = "\r\n"
#: The end of a block. Each of these finds its place in one pass over the text: one expression for a whole block would
#: try all ways in which a run of empty lines can be divided.
_END = re.compile(r"---(?:\r\n|\n|$)")
_AFTER_LINE = re.compile(r"[\r\n]---(?:\r\n|\n|$)")
#: A line that begins a block, or would but for the spaces after it; and a line that ends YAML, or would.
_OPENING = re.compile(r"---([^\S\r\n]*)(?:[\r\n]|$)")
_MARKER = re.compile(r"(?<![^\r\n])(---|\.\.\.)([^\S\r\n]*)(?=[\r\n]|$)")
_WORDS = ("license", "library_name", "pipeline_tag")
_MERGE = "tag:yaml.org,2002:merge"


#: Written in C where PyYAML comes with it. It says one thing at a time, so that other threads have their turn between.
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class CardBlock:
    """The YAML at the top of a card: `opening + text + closing + words` is the card, of which `words` are for people.

    `fields` are the values of `text` as JSON has them, `nodes` say where in it each field's name and value stand, and
    `root` where all of them do, None where there is none.
    """

    opening: str
    text: str
    closing: str
    words: str
    fields: dict[str, Any]
    root: yaml.Node | None
    nodes: dict[str, tuple[yaml.Node, yaml.Node]]

    def line_of(self, field: str) -> str:
        """Return the place of a field: `README.md, line 3`."""
        return f"{CARD}, line {_first_line(self.opening) + self.nodes[field][0].start_mark.line}"


class _Loader(yaml.composer.Composer, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Values of YAML from what the parser says, step by step: to build them in C would hold up all other threads.

    `first_line` is the number of the block's first line in the card.
    """

    def __init__(self, block: str, first_line: int) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)
        self._first_line = first_line
        self._events = _looked_through(block)
        self._next: yaml.Event | None = next(self._events, None)

    def check_event(self, *kinds: type[yaml.Event]) -> bool:
        return self._next is not None and (not kinds or isinstance(self._next, kinds))

    def peek_event(self) -> yaml.Event | None:
        return self._next

    def get_event(self) -> yaml.Event | None:
        event, self._next = self._next, next(self._events, None)
        return event

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            raise _at(node, f"{str(node.value)[:40]!r} is no {kind}; between quotes it is a text") from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and (place := first_unseen(value, besides=LINES)) is not None:
            raise _at(node, f"a value holds {name_of(value[place])}, which is not shown")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == _MERGE:
                raise _at(key, "`<<` is not accepted: write the fields themselves")
            value = self.construct_object(key, deep=True)
            name = value if isinstance(value, str) else json.dumps(value, default=str)  # as it is called in JSON
            if name in lines:
                raise _at(key, f"{shown(name)} is there twice, first in line {lines[name]}; keep one")
            lines[name] = self._first_line + key.start_mark.line
        return super().construct_mapping(node, deep)


def split_card(text: str, where: str = CARD) -> tuple[dict[str, Any], str]:
    """Return the block of a card as JSON has it, empty if there is none, and what follows it.

    Raises `SutureError`, which says what is wrong and in which line: `card.yaml`, and `card.characters` for characters
    that are not shown, wherever they stand.
    """
    block = read_block(text, where)
    return (block.fields, block.words) if block is not None else ({}, text)


def read_block(text: str, where: str = CARD) -> CardBlock | None:
    """Return the block of a card, None if there is none; raises as `split_card` does."""
    if (place := first_unseen(text, besides=LINES)) is not None:
        raise SutureError(
            "card.characters",
            f"here stands {name_of(text[place])}, which is not shown and may change what is",
            where=f"{where}, line {_line_at(text, place)}",
            hint="take it out: an editor that shows every character, or a search for its code, finds it",
        )
    divided = _divide(text)
    _check_form(text, divided, where)
    if divided is None:
        return None
    opening, block, closing, words = divided
    return CardBlock(opening, block, closing, words, *_read(block, _first_line(opening), where))


def _divide(text: str) -> tuple[str, str, str, str] | None:
    """Return the line that opens the block, the block, the line that ends it, and the rest; None without a block."""
    opened = text.lstrip()
    start = opened.removeprefix("---")
    inside = start.lstrip(_LINES)
    if start == opened or inside == start:
        return None
    opening = text[: len(text) - len(inside)]
    if (fence := _AFTER_LINE.search(inside)) is not None:
        block = inside[: fence.start()].rstrip(_LINES)
    elif len(start) - len(inside) > 1 and (fence := _END.match(inside)) is not None:  # empty lines alone, then the end
        block = ""
    else:
        return None
    return opening, block, inside[len(block) : fence.end()], inside[fence.end() :]


def _check_form(text: str, divided: tuple[str, str, str, str] | None, where: str) -> None:
    """Refuse what people write as a block and model hubs take for text, or end elsewhere."""
    start = len(text) - len(text.lstrip())
    first = _OPENING.match(text, start)
    if first is None:
        return

    def refuse(problem: str, place: int) -> NoReturn:
        hint = "a block stands between two lines that are `---` and nothing else; a rule at the top is written `***`"
        raise refused(problem, f"{where}, line {_line_at(text, place)}", hint)

    spaces = "spaces stand after `---`, so that model hubs do not see it"
    if first[1]:
        refuse(spaces, start)
    marker = _MARKER.search(text, start + 3)
    if marker is None:
        refuse("no line `---` ends it", start)
    if marker[1] == "...":
        refuse("`...` stands where a line `---` is to end it", marker.start())
    if marker[2]:
        refuse(spaces, marker.start())
    if divided is not None:
        opening, block, closing, _ = divided
        if marker.start() == len(opening) + len(block) + len(closing) - len(closing.lstrip(_LINES)):
            return
    if text[marker.end() : marker.end() + 1] == "\r" and text[marker.end() : marker.end() + 2] != "\r\n":
        refuse("lines end with CR alone; save it with the line ends of Unix or Windows", marker.start())
    refuse("nothing stands in it; leave out both lines", start)


def _read(
    block: str, first_line: int, where: str
) -> tuple[dict[str, Any], yaml.Node | None, dict[str, tuple[yaml.Node, yaml.Node]]]:
    """Return the fields of a block, its root, and each field's nodes."""
    if len(block) > MAX_YAML:
        raise refused(f"longer than {MAX_YAML} characters", where)
    try:
        loader = _Loader(block, first_line)
        root = loader.get_single_node()
        if root is None:
            return {}, None, {}
        content = loader.construct_document(root)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise refused("not a list of `field: value`", where)
        nodes = {key.value: (key, value) for key, value in root.value}
        _check_words(content, nodes)
        # As JSON has it: dates become text, and what is no number of JSON's as well.
        fields: dict[str, Any] = json.loads(json.dumps(content, default=_as_json), parse_constant=str)
    except yaml.MarkedYAMLError as error:
        # What is missing at the end is missed in the line after it.
        last = block.count("\n")
        line = f", line {min(error.problem_mark.line, last) + first_line}" if error.problem_mark else ""
        raise refused(error.problem or error.context or "not YAML", where + line) from None
    except (yaml.YAMLError, TypeError, ValueError, ArithmeticError, RecursionError):
        raise refused("not YAML", where) from None
    return fields, root, nodes


def _check_words(content: dict[str, Any], nodes: dict[str, tuple[yaml.Node, yaml.Node]]) -> None:
    """Refuse fields that hubs search by where they are no words; raises `MarkedYAMLError`."""
    for field in _WORDS:
        if not isinstance(value := content.get(field), str | None):
            raise _at(nodes[field][0], f"{field}: one word is needed, not {shown(value)}")
    tags = content.get("tags")
    if tags is None:
        return
    key, node = nodes["tags"]
    if not isinstance(tags, list):
        raise _at(key, f"tags: a list of words is needed, not {shown(tags)}")
    for index, tag in enumerate(tags):
        if not isinstance(tag, str):
            problem = f"tags: item {index + 1} of the list is {shown(tag)}, which is no text; write it between quotes"
            raise _at(node.value[index], problem)


def _as_json(value: object) -> object:
    if isinstance(value, set):
        return sorted(value, key=str)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _first_line(opening: str) -> int:
    return opening.count("\n") + 1


def _line_at(text: str, place: int) -> int:
    """Return the number of the line in which a place is, whichever line ends the text has."""
    return len(re.findall(r"\r\n|\r|\n", text[:place])) + 1


def _looked_through(block: str) -> Iterator[yaml.Event]:
    """Yield what the parser says; raises `MarkedYAMLError` where a hub would have too much to do with it.

    A few lines of aliases can stand for more than fits into memory; values can be many, or deep within each other.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(block, _Parser)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise _at(event, "aliases are not accepted")
        if depth > MAX_DEPTH:
            raise _at(event, f"nested deeper than {MAX_DEPTH}")
        if number > MAX_VALUES:
            raise _at(event, f"more than {MAX_VALUES} values")
        yield event


def _at(event: yaml.Event | yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # that of a parser written in C is of another class, with the same fields
    return yaml.MarkedYAMLError(None, None, problem, mark)


def refused(problem: str, where: str = CARD, hint: str | None = None) -> SutureError:
    """Return the error of a card whose YAML is wrong."""
    hint = hint or "a card may start with YAML between two lines `---`: correct it, or leave it out"
    return SutureError("card.yaml", f"the YAML at its top: {problem}", where=where, hint=hint)
