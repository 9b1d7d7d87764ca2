"""`/`: what waits for one, and models to search; `/{party}`: a party; `/-/parties`: all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, get_args

from fastapi import Depends, Request, Response

from suture_contract.model.metadata import InputFormat, Task
from suture_service.access import endpoints as access
from suture_service.access.service import is_steward
from suture_service.hf.routing import Namespace
from suture_service.hub import HubDep
from suture_service.jobs import endpoints as jobs
from suture_service.jobs import service
from suture_service.keys import endpoints as keys
from suture_service.models import endpoints as models
from suture_service.models.search import ModelQuery, Sort
from suture_service.models.search import wanted as wanted_models
from suture_service.pages.frame import next_of, render
from suture_service.pages.route import PageCaller, pages
from suture_service.paging import Cursor
from suture_service.parties import endpoints as parties
from suture_service.states import ACTIVE_JOBS

router = pages()
#: Models on one page; jobs and requests that are told of on the first.
PAGE, NEWS = 20, 5
#: What narrows a search beside its words, in the order of the form.
_CHOICES: dict[str, tuple[str, ...]] = {"task": get_args(Task), "format": get_args(InputFormat)}
_WORDS = ("modality", "label", "license", "party")

Wanted = Annotated[ModelQuery, Depends(wanted_models)]


@router.get("/")
def start(hub: HubDep, request: Request, caller: PageCaller, wanted: Wanted, cursor: Cursor = None) -> Response:
    """Show what waits for the caller, and the models that fit the search, the latest first."""
    query = dict(request.query_params.items())
    query.pop("cursor", None)
    wanted = wanted if "sort" in query else replace(wanted, sort="updated")
    results = models.list_models(hub, caller, wanted, PAGE, cursor)
    active, requests, decide, awaited = [], [], [], []
    if not query and cursor is None:
        newest = jobs.list_jobs(hub, caller, None, NEWS, None).items
        active = [job for job in newest if job.state in ACTIVE_JOBS] or newest[:1]
        if is_steward(caller):
            requests = access.list_requests(hub, caller, "pending", NEWS, None).items
        with hub.database.reading() as session:
            waiting = service.waits_for_person(session, caller)
            decide = [(kind, why, job.id, job.requester.name) for kind, why, job in waiting]
            awaited = access.open_requests(session, caller, NEWS)
    return render(
        request,
        "start.html.jinja",
        models=results.items,
        query=query,
        narrowed={name for name in query if name not in ("search", "sort")},
        more=next_of("/", results, **query),
        choices=_CHOICES,
        word_fields=_WORDS,
        sorts=get_args(Sort),
        sort=wanted.sort,
        jobs=active,
        requests=requests,
        decide=decide,
        awaited=awaited,
    )


@router.get("/-/parties")
def list_parties(hub: HubDep, request: Request, caller: PageCaller, cursor: Cursor = None) -> Response:
    """List the parties, with which of their sites are online."""
    results = parties.list_parties(hub, caller, 50, cursor)
    return render(request, "parties.html.jinja", parties=results.items, more=next_of("/-/parties", results))


@router.get("/{namespace}")
def show_party(
    hub: HubDep, request: Request, caller: PageCaller, namespace: Namespace, cursor: Cursor = None
) -> Response:
    """Show a party: its sites, its models that the caller may read, its keys."""
    party = parties.read_party(hub, caller, namespace)
    wanted = ModelQuery(None, party.name, None, None, (), "name")
    results = models.list_models(hub, caller, wanted, PAGE, cursor)
    return render(
        request,
        "party.html.jinja",
        party=party,
        models=results.items,
        more=next_of(f"/{party.name}", results),
        keys=keys.list_keys(hub, caller, party.name, 50, None).items,
    )
