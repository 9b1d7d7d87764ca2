"""What a person picks for a job: models that go together, and datasets that the own sites have told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from suture_contract.compatibility import incompatibilities
from suture_contract.model.metadata import ModelMetadata
from suture_service.access.repository import unusable_by
from suture_service.auth import Caller
from suture_service.hub import HubContext
from suture_service.keys.flags import flags_of
from suture_service.models.repository import find_revision
from suture_service.models.search import FacetKind, ModelQuery, list_models
from suture_service.models.service import no_readable_model
from suture_service.sites.repository import datasets_told, told_by_site
from suture_service.tables import Revision

#: Models that are offered at once, and that a job may name.
OFFERED, MOST = 8, 16


@dataclass(frozen=True)
class PickedModel:
    """A model in the form for a job; `problem` says why it cannot be picked, and is empty where nothing speaks
    against it.
    """

    name: str
    content: dict[str, Any] | None
    problem: str = ""
    #: Nothing but its owner's leave is missing.
    on_request: bool = False


@dataclass(frozen=True)
class ModelPicks:
    """What is picked, what else can be, and how that was narrowed down."""

    picked: Sequence[PickedModel]
    offered: Sequence[PickedModel]
    more: bool
    #: What was probably meant, where a search finds nothing.
    hint: str
    #: What all that are offered do, as what is picked does; empty where nothing is.
    task: str
    format: str


def choices(
    hub: HubContext, caller: Caller, names: Sequence[str], search: str, refused: Mapping[str, str]
) -> ModelPicks:
    """Return the models that are picked, `party/name` or `party/name@revision`, and those that go with them.

    Offered are the latest of those that `search` finds, of the same task and kind of input as what is picked. `refused`
    says of names, by name, why they mean nothing.
    """
    with hub.database.reading() as session:
        named = [_revision_of(session, caller, name) for name in names[:MOST]]
        known = [revision for revision in named if revision is not None]
        first = known[0].content if known else None
        task = first["task"] if first else None
        format_ = next(iter(first["inputs"].values())).get("format", "image") if first else ""
        facets: tuple[tuple[FacetKind, str], ...] = (("format", format_),) if format_ else ()
        query = ModelQuery(search or None, None, task, None, facets, "updated")
        # What is picked already may be among the latest.
        rows = list_models(session, caller.party_id, query, cursor=None, limit=OFFERED + len(known))
        there = {revision.model_id for revision in known}
        others = [row.Revision for row in rows if row.Model.id not in there]
        shown = others[:OFFERED]
        checked = [*known, *shown]
        flags = flags_of(session, [revision.id for revision in checked], caller.party_id)
        closed = unusable_by(session, [revision.model_id for revision in checked], caller.party_id, hub.now())
        hint = no_readable_model(session, caller, search, "search").hint if "/" in search and not others else ""

        def choice(revision: Revision, name: str, beside: Sequence[Revision]) -> PickedModel:
            if revision.id in flags:
                return PickedModel(name, revision.content, f"should not be used: {flags[revision.id][0].words}")
            if revision.model_id in closed:
                return PickedModel(name, revision.content, "its files are given on request", on_request=True)
            return PickedModel(name, revision.content, _differs(revision, beside))

        picked = [
            choice(revision, name, known[:1] if revision is not known[0] else ())
            if revision is not None
            else PickedModel(name, None, refused.get(name) or _unknown(session, caller, name))
            for name, revision in zip(names, named, strict=False)
        ]
        offered = [choice(revision, revision.model.repo, known[:1]) for revision in shown]
    return ModelPicks(picked, offered, len(others) > OFFERED, hint or "", task or "", format_)


@dataclass(frozen=True)
class Datasets:
    """The names that the caller's sites have told of, each with the sites that have it; `complete` where all sites
    tell, so that no other name can be meant.
    """

    sites: dict[str, list[str]]
    complete: bool


def own_datasets(hub: HubContext, caller: Caller) -> Datasets:
    """Return which datasets the caller's own sites have."""
    sites: dict[str, list[str]] = {}
    with hub.database.reading() as session:
        for site, names in sorted(told_by_site(session, caller.party_id)):
            for name in names:
                sites.setdefault(name, []).append(site)
        complete = datasets_told(session, caller.party_id) is not None
    return Datasets(dict(sorted(sites.items())), complete and bool(sites))


def _revision_of(session: Session, caller: Caller, name: str) -> Revision | None:
    repo, _, revision = name.partition("@")
    return find_revision(session, caller.party_id, repo, revision or "latest")


def _unknown(session: Session, caller: Caller, name: str) -> str:
    refusal = no_readable_model(session, caller, name.partition("@")[0], "model")
    return f"{refusal.message}; {refusal.hint}"


def _differs(revision: Revision, beside: Sequence[Revision]) -> str:
    """Return why a model cannot be combined with what is picked; empty where it can."""
    models = [(other.model.repo, ModelMetadata.model_validate(other.content)) for other in (*beside, revision)]
    return "; ".join(incompatibilities(models)) if len(models) > 1 else ""
