"""Finding models: what a caller may ask for, the words a model is found by, and the order of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from sqlalchemy import ColumnElement, Text, and_, cast, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from suture_contract.model.metadata import InputFormat, ModelMetadata, Task
from suture_service.errors import HubError
from suture_service.models.repository import Listed, readable
from suture_service.paging import decode
from suture_service.tables import Model, ModelFacet, Party

Sort = Literal["name", "newest", "updated"]
FacetKind = Literal["modality", "license", "label", "format", "num_channels", "spatial_dims"]
#: A segmentation of thousands of structures is found by the first of them.
MAX_FACETS = 1000
_LONGEST = 200
#: As the index has them: `suture_trigrams` in the migrations.
_RUN = 3
_MOMENTS = {"newest": Model.created_at, "updated": Model.updated_at}

Word = Annotated[str | None, Query(max_length=_LONGEST)]


@dataclass(frozen=True)
class ModelQuery:
    """What a list of models is narrowed to, and its order; None is anything."""

    search: str | None
    party: str | None
    task: Task | None
    min_n: int | None
    facets: tuple[tuple[FacetKind, str], ...]
    sort: Sort


def wanted(
    search: Annotated[
        str | None, Query(max_length=200, description="Part of `party/name` or of the description.")
    ] = None,
    party: Annotated[str | None, Query(max_length=96)] = None,
    task: Task | None = None,
    modality: Annotated[Word, Query(description="Such as `CT`; case does not matter, here and below.")] = None,
    license: Annotated[Word, Query(description="Such as `CC-BY-4.0`.")] = None,
    label: Annotated[
        list[Annotated[str, Query(max_length=_LONGEST)]] | None,
        Query(max_length=20, description="A label that it gives; all of them, when repeated."),
    ] = None,
    format: InputFormat | None = None,
    num_channels: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    spatial_dims: Annotated[int | None, Query(ge=0, le=3, description="Axes of the input: 2 for images.")] = None,
    min_n: Annotated[int | None, Query(ge=0, le=2**53, description="Training samples, at least.")] = None,
    sort: Annotated[Sort, Query(description="By name, or the latest first.")] = "name",
) -> ModelQuery:
    """Return what the query asks for; a dependency."""
    asked: dict[FacetKind, Any] = {
        "modality": modality,
        "license": license,
        "format": format,
        "num_channels": num_channels,
        "spatial_dims": spatial_dims,
    }
    facets = [(kind, _folded(str(value))) for kind, value in asked.items() if value is not None]
    facets += [("label", _folded(name)) for name in label or ()]
    return ModelQuery(search, party, task, min_n, tuple(facets), sort)


def facets_of(metadata: ModelMetadata | None) -> list[tuple[FacetKind, str]]:
    """Return the words a model is found by, each with its kind."""
    if metadata is None:
        return []
    facets: list[tuple[FacetKind, str]] = [("license", metadata.license)]
    for spec in metadata.inputs.values():
        facets += [("format", spec.format), ("num_channels", str(spec.num_channels))]
        facets += [("spatial_dims", str(len(spec.spatial_shape))), ("modality", spec.modality or "")]
    facets += [("label", label) for label in metadata.labels or ()]
    folded = ((kind, _folded(value)) for kind, value in facets)
    return list(dict.fromkeys((kind, value) for kind, value in folded if 0 < len(value) <= _LONGEST))[:MAX_FACETS]


def training_n(metadata: ModelMetadata | None) -> int | None:
    """Return how many samples a model learnt from, as far as it says so and a database can count."""
    data = metadata.training_data if metadata is not None else None
    return None if data is None or data.n is None else min(data.n, 2**53)


def search_text(repo: str, description: str) -> str:
    """Return what `mentions` looks into."""
    return f"{_folded(repo)}\n{_folded(description)}"


def mentions(session: Session, wanted: str) -> ColumnElement[bool]:
    """The condition under which a text is part of a model's `party/name` or description; case does not matter.

    PostgreSQL finds texts of three characters and more by an index of all such runs; everything else reads.
    """
    folded = _folded(wanted)
    has = Model.search_text.contains(folded, autoescape=True)
    runs = sorted({folded[at : at + _RUN] for at in range(len(folded) - _RUN + 1)})
    if not runs or session.get_bind().dialect.name != "postgresql":
        return has
    indexed = func.suture_trigrams(Model.search_text, type_=ARRAY(Text))
    return and_(indexed.contains(cast(runs, ARRAY(Text))), has)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def list_models(
    session: Session, party_id: int, wanted: ModelQuery, *, cursor: str | None, limit: int
) -> Sequence[Listed]:
    """Return readable models in the order asked for; one more than `limit`.

    A model that changes between two pages moves in the order by `updated`; no other one is left out or comes twice.
    """
    statement = readable(party_id, by_name=wanted.sort == "name").limit(limit + 1)
    if wanted.search:
        statement = statement.where(mentions(session, wanted.search))
    if wanted.party is not None:
        statement = statement.where(Party.name == wanted.party)
    if wanted.task is not None:
        statement = statement.where(Model.task == wanted.task)
    if wanted.min_n is not None:
        statement = statement.where(Model.training_n >= wanted.min_n)
    for kind, value in wanted.facets:
        having = select(ModelFacet.model_id).where(ModelFacet.kind == kind, ModelFacet.value == value)
        statement = statement.where(Model.id.in_(having))
    if wanted.sort == "name":
        after = decode(cursor, str, str)
        if after is not None:
            statement = statement.where(tuple_(Party.name, Model.name) > tuple_(*after))
        return session.execute(statement.order_by(Party.name, Model.name)).all()
    moment = _MOMENTS[wanted.sort]
    if (before := _moment(cursor, wanted.sort)) is not None:
        when: ColumnElement[datetime] = literal(before[0], moment.type)
        statement = statement.where(tuple_(moment, Model.id) < tuple_(when, literal(before[1])))
    return session.execute(statement.order_by(moment.desc(), Model.id.desc())).all()


def key_of(row: Listed, sort: Sort) -> tuple[str | int, ...]:
    """Return a row's place in the order, for the cursor of the next page."""
    model = row.Model
    if sort == "name":
        return model.party.name, model.name
    return sort, (model.created_at if sort == "newest" else model.updated_at).isoformat(), model.id


def _moment(cursor: str | None, sort: Sort) -> tuple[datetime, int] | None:
    key = decode(cursor, str, str, int)
    if key is None:
        return None
    try:
        when = datetime.fromisoformat(str(key[1]))
    except ValueError:
        when = None
    if key[0] != sort or when is None or when.tzinfo is None:
        raise HubError(
            "request.cursor", "not a cursor of this list", where="cursor", hint="use the `next` of a page, same `sort`"
        )
    return when, int(key[2])
