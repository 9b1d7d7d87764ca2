"""What would leave for a task, in words for whoever approves it: made from the very documents that may leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from suture_contract.contributions import ContributionDocument, Matched
from suture_contract.documents import CandidateSet, Evaluation
from suture_contract.kinds import MOMENTS
from suture_worker.egress.release_check import FitDocument
from suture_worker.folder import Terms
from suture_worker.leased_task import CANDIDATES, STITCHES, Kind
from suture_worker.rules.inbox import Estimate

#: The documents of each kind of task that reads data, by the file that holds them.
DOCUMENTS: Mapping[Kind, Mapping[str, type[BaseModel]]] = {
    "match": {"document": Matched},
    "contribute": {"document": ContributionDocument},
    "fit": {"document": FitDocument, CANDIDATES: CandidateSet},
    "evaluate": {"document": Evaluation},
}
#: What is said of a list or an object with free keys.
EACH = "each of "


def leaves(kind: Kind, terms: Terms, takes: Estimate | None = None) -> tuple[str, ...]:
    """Return every field of all that would leave, a line for each object, and what is said of tensors and noise."""
    lines = [
        f"{' > '.join((file, *place))}: {', '.join(fields)}"
        for file, document in DOCUMENTS.get(kind, {}).items()
        for place, fields in outline(document)
    ]
    if kind == "fit":
        lines.append(f"{STITCHES}: fitted matrices, and means and covariances of your own network's features")
    if kind == "contribute":
        lines.append(f"{MOMENTS}: {_moments(takes)}")
    lines.append(f"nothing from fewer than {terms.min_samples} patients in a split; {_holds(kind, terms)}")
    return tuple(lines)


def outline(document: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield each object of a document, as the fields that lead to it, with its fields that are no objects."""
    plain, nested = [], []
    for field, about in document.model_fields.items():
        name = about.alias or field
        found = list(_objects(about.annotation))
        if not found:
            plain.append(name)
        for each, inner in found:
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


def _moments(takes: Estimate | None) -> str:
    how_much = ""
    if takes is not None and takes.numbers is not None:
        sizes = ", ".join(map(str, takes.features))
        how_much = f" of {sizes} features: {takes.numbers} numbers, {4 * takes.numbers / 2**20:.2g} MiB"
    return f"means and second moments{how_much}; sums over patients, no sample and no label"


def _holds(kind: Kind, terms: Terms) -> str:
    if terms.privacy is not None:
        each = "contribution" if kind == "contribute" else "job"
        return f"with noise: epsilon {terms.epsilon:g}, delta {terms.delta:g} for each patient and {each}"
    parties = ", ".join(dict.fromkeys(one.party for one in terms.trusted or ()))
    return f"exact, trusting {parties} not to have built models that carry patients out"
