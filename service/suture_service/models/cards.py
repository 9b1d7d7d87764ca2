"""The YAML block at the top of a model card (`README.md`), and the words by which a model is found."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from suture_service.tables import Json
from suture_stitching.card.front_matter import PIPELINES
from suture_stitching.errors import SutureError
from suture_stitching.portable.metadata import ModelMetadata

MAX_FRONT_MATTER = 64 * 1024
MAX_TAGS, MAX_TAG = 100, 200
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|$)", re.DOTALL)


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them can stand for more than fits into memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed in a model card", mark)
        return super().compose_node(parent, index)


def read_card(text: str, where: str = "README.md") -> Json:
    """Return the card's YAML block, empty if it has none; raises `SutureError` (`card.yaml`) saying what is wrong."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    block = match.group(1)
    if len(block) > MAX_FRONT_MATTER:
        raise _invalid(f"the block has more than {MAX_FRONT_MATTER} characters", where)
    try:
        content = yaml.load(block, _Loader)  # noqa: S506 - a SafeLoader
        # As JSON has it: dates become text, and what is no number of JSON's as well.
        content = json.loads(json.dumps(content, default=str), parse_constant=str)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 2}: " if error.problem_mark else ""
        raise _invalid(f"{line}{error.problem or error.context or 'not YAML'}", where) from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):
        raise _invalid("it cannot be read as YAML", where) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _invalid("it must hold `key: value` pairs", where)
    for key in ("license", "library_name", "pipeline_tag"):
        if not isinstance(content.get(key, ""), str):
            raise _invalid(f"{key} must be one word", where)
    tags = content.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _invalid("tags must be a list of words", where)
    return content


def _invalid(problem: str, where: str) -> SutureError:
    hint = "the card starts with a block of YAML between two lines `---`"
    return SutureError("card.yaml", f"the metadata block is wrong: {problem}", where=where, hint=hint)


def pipeline(card: Json | None, content: Json | None) -> str | None:
    """Return what kind of task the model does, in the words of the Hugging Face Hub: what the card says goes first."""
    if card and card.get("pipeline_tag"):
        return str(card["pipeline_tag"])
    if content is None:
        return None
    form = next(iter(content["inputs"].values())).get("format", "image")
    return PIPELINES.get((form, content["task"]))


def library(card: Json | None, content: Json | None) -> str | None:
    """Return the library that loads the model."""
    if card and card.get("library_name"):
        return str(card["library_name"])
    return "suture" if content is not None else None


def tags_of(card: Json | None, metadata: ModelMetadata | None) -> list[str]:
    """Return the words by which a model is filtered: the card's tags, and what card and `suture.json` state besides."""
    card = card or {}
    content = None if metadata is None else metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
    words: list[Any] = [*(card.get("tags") or []), library(card, content), pipeline(card, content)]
    licence = card.get("license") or (metadata.license if metadata else None)
    if licence:
        words.append(f"license:{str(licence).lower()}")
    if metadata is not None:
        words += [metadata.task, *(entry.modality for entry in metadata.inputs.values())]
    kept = dict.fromkeys(word for word in words if word and len(word) <= MAX_TAG and word.isprintable())
    return list(kept)[:MAX_TAGS]
