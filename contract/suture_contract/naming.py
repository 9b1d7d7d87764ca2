"""Names that enter: what was probably meant by one that nobody knows, and what is wrong with a document, in words.

Everything that takes a name from a person, a file or a request says so in the same way: the name, the nearest known
ones, and the page that lists them.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

#: How many names a hint lists, and how much of a value it shows.
_LISTED, _SHOWN = 12, 60
_GAPS = re.compile(r"[\s_]+")
_HYPHENS = re.compile(r"(?<=\w)[-\u2010-\u2015](?=\w)")


def folded(name: str) -> str:
    """Return what is left of a name without case, Unicode form, and the kind of gap between its words.

    Names that differ and fold to the same were probably meant to be one. A sign, as in `-1` or `HER2-`, stays.
    """
    text = unicodedata.normalize("NFC", name).casefold().strip()
    return _GAPS.sub(" ", _HYPHENS.sub(" ", text))


def alike(ours: Sequence[str], theirs: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the pairs of names that differ and fold to the same: one of `ours` and one of `theirs`, or two of `ours`.

    Two that stand in one list are told apart there, so they are no pair between the lists.
    """
    if theirs is None:
        pairs = [(name, other) for index, name in enumerate(ours) for other in ours[index + 1 :]]
    else:
        pairs = [(name, other) for name in ours if name not in theirs for other in theirs if other not in ours]
    folds = {name: folded(name) for pair in pairs for name in pair}
    return [(name, other) for name, other in pairs if folds[name] == folds[other]]


def spelt(name: str) -> str:
    """Return a name in quotes, with its characters escaped besides where what is shown does not tell all."""
    return f"'{name}'" if name.isascii() else f"'{name}' ({ascii(name)[1:-1]})"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that `name` may stand for, the likeliest first, at most three."""
    by_fold: dict[str, list[str]] = {}
    for known_name in known:
        by_fold.setdefault(folded(known_name), []).append(known_name)
    folds = difflib.get_close_matches(folded(name), by_fold, n=3, cutoff=0.6)
    return [known_name for fold in folds for known_name in by_fold[fold]][:3]


def did_you_mean(name: str, known: Iterable[str], *, page: str | None = None) -> str:
    """Return the hint for a name that is not among `known`: the nearest ones, or all; and the page about them."""
    known = list(dict.fromkeys(known))
    close = nearest(name, known)
    if close:
        text = f"did you mean {' or '.join(repr(known_name) for known_name in close)}?"
        return f"{text} See {page}" if page else text
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    text = f"there are: {', '.join(known[:_LISTED])}{more}" if known else "there are none"
    return f"{text}; see {page}" if page else text


def shown(value: object) -> str:
    """Return a value for a message: on one line, bounded, and only what can be seen of it."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of that size"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a document: the field, in words, and what was probably meant, if that can be said."""

    field: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        return f"{text} ({self.hint})" if self.hint else text


def problems_of(details: Sequence[ErrorDetails], model: Any, *, values: bool = False) -> list[Problem]:
    """Return what pydantic found wrong with a document of the type `model`; names that nobody knows come first.

    A misspelt name is often also one that is missing. `values` says whether a value may be shown that is of the wrong
    kind; one that is not among the few allowed always is.
    """
    ordered = sorted(details, key=lambda detail: detail["type"] != "extra_forbidden")
    return [_problem(detail, model, values=values) for detail in ordered]


def _problem(detail: ErrorDetails, model: Any, *, values: bool) -> Problem:
    place, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    field = ".".join(_legible(part) for part in place)
    if kind == "extra_forbidden":
        name = _legible(place[-1])
        return Problem(field, f"there is no field '{name}'", did_you_mean(name, _fields(model, place[:-1])))
    if kind == "missing":
        return Problem(field, "it is missing")
    value = detail.get("input")
    if kind in ("literal_error", "enum") and isinstance(value, str | int | float):
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return Problem(field, f"{shown(value)} is none of those allowed", did_you_mean(str(value), known))
    message = detail["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = f"an object is wanted, with {', '.join(_fields(model, place)) or 'names and values'}"
    if kind in ("list_type", "tuple_type"):
        message = "a list is wanted"
    return Problem(field, f"{shown(value)}: {_lower(message)}" if values else message)


def _fields(model: Any, place: Sequence[int | str]) -> list[str]:
    """Return the names of the fields that the document of type `model` may have at `place`."""
    kinds = _models(model)
    for part in place:
        inside = [kind for parent in kinds for name, kind in _named(parent).items() if name == part]
        kinds = [kind for annotation in inside for kind in _models(annotation)] or kinds
    return [name for kind in kinds for name in _named(kind)]


def _named(model: type[BaseModel]) -> dict[str, Any]:
    """Return the types of a model's fields by the names that a document calls them."""
    return {field.serialization_alias or name: field.annotation for name, field in model.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that stand somewhere in a type such as `tuple[Rule, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _legible(part: object) -> str:
    text = str(part)[:_SHOWN]
    return text if text.isprintable() else ascii(text)[1:-1]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
