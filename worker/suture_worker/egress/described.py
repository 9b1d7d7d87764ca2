"""What would leave for a task, in words for whoever approves it: made from the very documents that may leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from suture_worker.folder import Terms

#: What is said of a list or an object with free keys.
EACH = "each of "


def leaves(
    documents: Mapping[str, type[BaseModel]], tensors: Mapping[str, str], terms: Terms, *, each: str
) -> tuple[str, ...]:
    """Return every field of all that would leave, a line for each object, and what is said of tensors and noise.

    `documents` are by the file that holds them, `tensors` what is said of each file of them; noise is for `each` of
    a party's contributions or jobs.
    """
    lines = [
        f"{' > '.join((file, *place))}: {', '.join(fields)}"
        for file, document in documents.items()
        for place, fields in outline(document)
    ]
    lines += [f"{file}: {text}" for file, text in tensors.items()]
    lines.append(f"nothing from fewer than {terms.min_samples} patients in a split; {_holds(terms, each)}")
    return tuple(lines)


def outline(document: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield each object of a document, as the fields that lead to it, with its fields that are no objects."""
    plain, nested = [], []
    for field, about in document.model_fields.items():
        name = about.alias or field
        objects = list(_objects(about.annotation))
        if not objects:
            plain.append(name)
        for each, inner in objects:
            nested.append(((*place, f"{EACH if each else ''}{name}"), inner))
    if plain:
        yield place, plain
    for inside, inner in nested:
        yield from outline(inner, inside)


def _objects(annotation: Any, *, each: bool = False) -> Iterator[tuple[bool, type[BaseModel]]]:
    """Yield the documents in a field's type, and whether there may be several of them there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield each, annotation
        return
    many = get_origin(annotation) not in (None, Union, UnionType)
    for part in get_args(annotation):
        yield from _objects(part, each=each or (many and not hasattr(annotation, "__metadata__")))


def _holds(terms: Terms, each: str) -> str:
    if terms.privacy is not None:
        return f"with noise: epsilon {terms.epsilon:g}, delta {terms.delta:g} for each patient and {each}"
    parties = ", ".join(dict.fromkeys(trusted.party for trusted in terms.trusted or ()))
    return f"exact, trusting {parties} not to have built models that carry patients out"
