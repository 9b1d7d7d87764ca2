"""`/{party}/{name}` and what lies below it: a model with its card, files, history and lineage."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from suture_contract.card.body import use
from suture_contract.pages import HEADERS, url
from suture_service.access import endpoints as access
from suture_service.access.schemas import AccessIn, AccessOut
from suture_service.auth import Caller
from suture_service.errors import NotFound
from suture_service.hf import commits, files, repos
from suture_service.hf.errors import EntryNotFound, GatedRepo
from suture_service.hf.files import ListingWish, Wish
from suture_service.hf.routing import FilePath, Namespace, PlaceDep, RepoName, RoutePlace
from suture_service.hf.schemas import CommitOut
from suture_service.hub import HubContext, HubDep
from suture_service.models import endpoints as models
from suture_service.models.repository import MAIN
from suture_service.models.schemas import ModelOut, RevisionOut
from suture_service.models.service import CARD
from suture_service.pages import markdown
from suture_service.pages.content import ReadableFile, draw_network, read_file, without_block
from suture_service.pages.drawing import draw
from suture_service.pages.frame import render
from suture_service.pages.route import PageCaller, own_form, pages
from suture_service.revisions.endpoints import get_lineage

router = pages()
_REPO = "/{namespace}/{name}"
_LATEST = "latest"
#: Of the history, on the page of the model.
_NEWEST = 5


@router.get(_REPO)
def show_model(hub: HubDep, request: Request, caller: PageCaller, namespace: Namespace, name: RepoName) -> Response:
    """Show a repository at its branch `main`."""
    place = RoutePlace(namespace, name, MAIN)
    repo = repos.model_info(hub, caller, place, blobs=True)
    model, revision = _portable(hub, caller, namespace, name)
    card, base = _card(hub, caller, place, [file.rfilename for file in repo.siblings or ()]), url(namespace, name)
    lineage = get_lineage(hub, caller, namespace, name, _LATEST) if revision is not None else None
    return render(
        request,
        "model.html.jinja",
        repo=repo,
        base=base,
        model=model,
        revision=revision,
        facts=_facts(revision.metadata) if revision is not None else [],
        card=card,
        text=markdown.to_html(without_block(card.text), f"{base}/blob/{MAIN}", repo.id) if card and card.text else None,
        refs=repos.list_refs(hub, caller, place),
        history=commits.list_commits(hub, caller, request, Response(), place, None)[:_NEWEST],
        lineage=lineage,
        drawing=draw(lineage) if lineage is not None else None,
        access=_access(hub, caller, namespace, name) if repo.gated and namespace != caller.party else None,
        open=_may_download(hub, caller, place),
        how=_python(use(repo.id)),
    )


@router.post("/-/request-access" + _REPO, dependencies=[Depends(own_form)])
def ask_for_access(
    hub: HubDep,
    caller: PageCaller,
    namespace: Namespace,
    name: RepoName,
    reason: Annotated[str, Form(min_length=1, max_length=1000)],
) -> Response:
    """Ask for the files of a gated model."""
    access.ask(hub, caller, namespace, name, AccessIn(reason=reason))
    return RedirectResponse(url(namespace, name), status_code=303)


@router.get(_REPO + "/tree/{revision}")
def show_root(hub: HubDep, request: Request, caller: PageCaller, place: PlaceDep, wish: Wish) -> Response:
    """List the root folder."""
    return show_folder(hub, request, caller, place, "", wish)


@router.get(_REPO + "/tree/{revision}/{path:path}")
def show_folder(
    hub: HubDep, request: Request, caller: PageCaller, place: PlaceDep, path: FilePath, wish: Wish
) -> Response:
    """List a folder."""
    answer, folder = Response(), path.strip("/")
    expanded = ListingWish(expand=True, cursor=wish.cursor)
    entries = files.list_folder(hub, caller, request, answer, place, folder, expanded)
    return render(
        request,
        "tree.html.jinja",
        **_place(hub, caller, place, folder),
        entries=sorted(entries, key=lambda entry: (entry.type == "file", entry.path)),
        more=_next(answer),
    )


@router.get(_REPO + "/blob/{revision}/{path:path}")
def show_file(hub: HubDep, request: Request, caller: PageCaller, place: PlaceDep, path: FilePath) -> Response:
    """Show a file: the text of a small one, of others what can be said of them."""
    try:
        file = read_file(hub, caller, place, path)
    except EntryNotFound:
        with suppress(EntryNotFound):  # a folder, as the official client links both alike
            files.list_folder(hub, caller, request, Response(), place, path, ListingWish())
            return RedirectResponse(url(place.namespace, place.name, "tree", place.revision, path), status_code=302)
        raise
    base = url(place.namespace, place.name, "blob", place.revision)
    marked = file.text is not None and file.name.lower().endswith(".md")
    text = without_block(file.text) if marked and file.text is not None else ""
    return render(
        request,
        "blob.html.jinja",
        **_place(hub, caller, place, path),
        file=file,
        open=_may_download(hub, caller, place),
        marked=markdown.to_html(text, base) if marked else None,
    )


@router.get(_REPO + "/network/{revision}")
def show_network(hub: HubDep, caller: PageCaller, place: PlaceDep) -> Response:
    """Draw the network of a portable model, as a picture for the model's page."""
    drawn = draw_network(hub, caller, place)
    # The drawing has its own style in it; it holds no script, and as a picture none would run.
    headers = {**HEADERS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(drawn, media_type="image/svg+xml", headers=headers)


@router.get(_REPO + "/download/{revision}/{path:path}")
async def download(hub: HubDep, request: Request, caller: PageCaller, place: PlaceDep, path: FilePath) -> Response:
    """Give a file to be kept, never to be shown by the browser as a page of this hub."""
    return await files.download(hub, request, caller, place, path)


@router.get(_REPO + "/commits/{revision}")
def show_commits(
    hub: HubDep,
    request: Request,
    caller: PageCaller,
    place: PlaceDep,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """List a branch's history, newest first."""
    answer = Response()
    history = commits.list_commits(hub, caller, request, answer, place, cursor)
    return render(request, "commits.html.jinja", **_place(hub, caller, place), history=history, more=_next(answer))


@router.get(_REPO + "/commit/{revision}")
def show_commit(hub: HubDep, request: Request, caller: PageCaller, place: PlaceDep) -> Response:
    """Show a step of the history: who made it, when, and which files it changed."""
    history = commits.list_commits(hub, caller, request, Response(), place, None)
    step, before = history[0], history[1] if len(history) > 1 else None
    changes = _changes(hub, caller, place, step, before)
    return render(request, "commit.html.jinja", **_place(hub, caller, place), step=step, before=before, changes=changes)


def _portable(hub: HubContext, caller: Caller, namespace: str, name: str) -> tuple[ModelOut | None, RevisionOut | None]:
    """Return what the API under `/v1` says of a repository; nothing where it holds no portable model."""
    try:
        model = models.get_model(hub, caller, namespace, name)
        return model, models.get_revision(hub, caller, namespace, name, _LATEST)
    except NotFound:
        return None, None


def _card(hub: HubContext, caller: Caller, place: RoutePlace, names: list[str]) -> ReadableFile | None:
    return read_file(hub, caller, place, CARD) if CARD in names else None


def _access(hub: HubContext, caller: Caller, namespace: str, name: str) -> AccessOut | None:
    try:
        return access.own_request(hub, caller, namespace, name)
    except NotFound:
        return None


def _may_download(hub: HubContext, caller: Caller, place: RoutePlace) -> bool:
    try:
        repos.auth_check(hub, caller, place)
    except GatedRepo:
        return False
    return True


def _place(hub: HubContext, caller: Caller, place: RoutePlace, path: str = "") -> dict[str, Any]:
    """Return what every page below a repository shows: where one is, and the branches and tags there are."""
    base, steps = url(place.namespace, place.name), path.split("/") if path else []
    folders = [
        url(place.namespace, place.name, "tree", place.revision, "/".join(steps[:depth]))
        for depth in range(1, len(steps))
    ]
    root = (place.name, f"{base}/tree/{quote(place.revision, safe='')}" if path else None)
    return {
        "place": place,
        "repo_id": f"{place.namespace}/{place.name}",
        "base": base,
        "path_links": [root, *zip(steps, [*folders, None], strict=False)],
        "refs": repos.list_refs(hub, caller, place),
    }


def _next(answer: Response) -> str | None:
    link = re.match(r"<[a-z]+://[^/]+(/[^>]*)>", answer.headers.get("link", ""))
    return link[1] if link else None


def _changes(
    hub: HubContext, caller: Caller, place: RoutePlace, step: CommitOut, before: CommitOut | None
) -> list[tuple[str, str]]:
    """Return which files a commit added, changed and removed, by name."""

    def contents(oid: str) -> dict[str, str | None]:
        at = RoutePlace(place.namespace, place.name, oid)
        listed = repos.revision_info(hub, caller, at, blobs=True).siblings or []
        return {file.rfilename: file.blob_id for file in listed}

    now, then = contents(step.id), contents(before.id) if before is not None else {}
    kinds = {name: "added" if name not in then else "changed" for name in now if now[name] != then.get(name)}
    kinds |= {name: "removed" for name in then if name not in now}
    return sorted(kinds.items())


def _facts(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a model reads and gives, in words."""
    facts = [("Task", metadata["task"])]
    for name, spec in metadata["inputs"].items():
        shape = " × ".join("any" if part is None else str(part) for part in spec["spatial_shape"])
        parts = [spec.get("format", "image"), f"{spec['num_channels']} channel(s)", shape, spec.get("modality")]
        facts.append((f"Input {name}", ", ".join(part for part in parts if part)))
        if spec.get("channels"):
            facts.append(("Channels", _listed(spec["channels"])))
    for name, output in metadata["outputs"].items():
        facts.append((f"Output {name}", f"{output['format']}, {output['num_channels']} channel(s)"))
    if metadata.get("labels"):
        facts.append(("Labels", _listed(metadata["labels"])))
    facts.append(("Licence", metadata["license"]))
    trained = metadata.get("training_data") or {}
    if trained.get("n") is not None:
        facts.append(("Trained on", f"{trained['n']:,} samples"))
    return facts


def _listed(names: list[str], most: int = 30) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _python(text: str) -> str:
    return text.removeprefix("```python\n").removesuffix("\n```")
