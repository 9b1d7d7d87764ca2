"""The YAML block at the top of a card, read with care: by the hub from whoever sends it, by a client to add to it.

Its form is that of the Hugging Face Hub: between two lines `---`, the first of which begins the card.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from suture_contract.errors import SutureError

MAX_YAML = 64 * 1024
_LINES = "\r\n"
#: The end of a block. Each of these finds its place in one pass over the text: one expression for a whole block would
#: try all ways in which a run of empty lines can be divided.
_END = re.compile(r"---(?:\r\n|\n|$)")
_AFTER_LINE = re.compile(r"[\r\n]---(?:\r\n|\n|$)")
_WORDS = ("license", "library_name", "pipeline_tag")


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for more than fits into memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted", mark)
        return super().compose_node(parent, index)


def split_card(text: str, where: str = "README.md") -> tuple[dict[str, Any], str]:
    """Return the block of a card as JSON has it, empty if there is none, and what follows it.

    Raises `SutureError` `card.yaml`, which says what is wrong and in which line.
    """
    block, rest = _divide(text)
    if block is None:
        return {}, text
    content = _read(block, where)
    for key in _WORDS:
        if not isinstance(content.get(key) or "", str):
            raise refused(f"{key}: one word is needed", where)
    tags = content.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise refused("tags: a list of words is needed", where)
    return content, rest


def _divide(text: str) -> tuple[str | None, str]:
    """Return what is between the lines `---` and what follows; None and the text where there is no block."""
    opened = text.lstrip()
    start = opened.removeprefix("---")
    inside = start.lstrip(_LINES)
    if start == opened or inside == start:
        return None, text
    if (fence := _AFTER_LINE.search(inside)) is not None:
        return inside[: fence.start()].rstrip(_LINES), inside[fence.end() :]
    # Empty lines alone, then the end.
    fence = _END.match(inside) if len(start) - len(inside) > 1 else None
    return ("", inside[fence.end() :]) if fence is not None else (None, text)


def _read(block: str, where: str) -> dict[str, Any]:
    if len(block) > MAX_YAML:
        raise refused(f"longer than {MAX_YAML} characters", where)
    try:
        content = yaml.load(block, _Loader)  # noqa: S506 - a SafeLoader
        if content is None:
            return {}
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise refused("not a list of `field: value`", where)
        # As JSON has it: dates become text, and what is no number of JSON's as well.
        read: dict[str, Any] = json.loads(json.dumps(content, default=str), parse_constant=str)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 2}" if error.problem_mark else ""
        raise refused(error.problem or error.context or "not YAML", where + line) from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        raise refused("not YAML", where) from None
    return read


def refused(problem: str, where: str = "README.md") -> SutureError:
    """Return the error of a card whose YAML is wrong."""
    hint = "a card may start with YAML between two lines `---`: correct it, or leave it out"
    return SutureError("card.yaml", f"the YAML at its top: {problem}", where=where, hint=hint)
