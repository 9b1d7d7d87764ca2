"""`/{party}/{name}` and what lies below it: a model with its card, files, history and lineage."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, get_args
from urllib.parse import quote

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from suture_contract.card.body import use
from suture_contract.errors import SutureError
from suture_contract.pages import HEADERS, url
from suture_service.access import endpoints as access
from suture_service.access.schemas import AccessIn
from suture_service.auth import Caller
from suture_service.hf import commits, files, repos, service
from suture_service.hf.errors import EntryNotFound
from suture_service.hf.files import ListingWish, Wish
from suture_service.hf.routing import FilePath, Namespace, PlaceDep, RepoName, RoutePlace, RouteRepo
from suture_service.hf.schemas import CommitOut
from suture_service.hub import HubContext, HubDep
from suture_service.keys.lineage import lineage_of
from suture_service.models.repository import MAIN
from suture_service.models.schemas import MOST_READERS, Gate, ModelChange
from suture_service.models.service import CARD, readers
from suture_service.models.trees import files_of
from suture_service.pages import markdown
from suture_service.pages.content import draw_network, read_file, read_named, without_block
from suture_service.pages.drawing import draw
from suture_service.pages.forms import read_form, status_of
from suture_service.pages.frame import render
from suture_service.pages.route import PageCaller, own_form, pages
from suture_service.parties.repository import party_names

router = pages()
_REPO = "/{namespace}/{name}"
_Word = Annotated[str, Form(max_length=200)]
_Choice = Annotated[str, Form(max_length=20)]
#: Of the history, on the page of the model.
_NEWEST = 5


class _SharingForm:
    """What the form of who may read holds, and what it showed when it was filled in; a dependency."""

    def __init__(
        self,
        visibility: _Choice = "",
        gated: _Choice = "",
        shown_visibility: _Choice = "",
        shown_gated: _Choice = "",
        shown: Annotated[list[_Word] | None, Form(max_length=MOST_READERS)] = None,
        shared_with: Annotated[list[_Word] | None, Form(max_length=MOST_READERS)] = None,
        add: Annotated[str, Form(max_length=2000)] = "",
    ) -> None:
        self._visibility = visibility if visibility != shown_visibility else None
        self._gated = gated if gated != shown_gated else None
        self._add = list(dict.fromkeys(add.replace(",", " ").split()))
        self._stop = [party for party in dict.fromkeys(shown or ()) if party not in (shared_with or ())]

    def read(self) -> ModelChange:
        """Return what was changed in the form, and that alone: another owner may have changed the rest meanwhile."""
        return read_form(
            ModelChange,
            visibility=self._visibility,
            gated=self._gated,
            share_with=self._add,
            stop_sharing_with=self._stop,
        )


SharingDep = Annotated[_SharingForm, Depends()]


@router.get(_REPO)
def show_model(hub: HubDep, request: Request, caller: PageCaller, namespace: Namespace, name: RepoName) -> Response:
    """Show a repository at its branch `main`."""
    return _model(hub, request, caller, namespace, name)


def _model(
    hub: HubContext, request: Request, caller: Caller, namespace: str, name: str, problem: SutureError | None = None
) -> Response:
    place = RoutePlace(namespace, name, MAIN)
    with hub.database.reading() as session:
        at = service.get_at(session, caller, place)
        revision = at.commit.revision
        files_there = files_of(session, revision.id)
        repo = repos.show_at(session, caller, at, files_there, blobs=True)
        metadata = revision.content
        lineage = lineage_of(session, revision, caller.party_id) if metadata is not None else None
        changes = _may_change(caller, namespace)
        others = bool(at.model.gated) and at.model.party_id != caller.party_id
        shown = {
            "repo": repo,
            "metadata": metadata,
            "signed_by": revision.key.fingerprint if revision.key is not None else None,
            "job": revision.job_id,
            "readers": readers(session, caller, at.model),
            "refs": repos.refs_of(session, at.model),
            "history": commits.newest(session, at, _NEWEST),
            "access": access.request_for(session, caller, at.model) if others else None,
            "open": service.may_download(session, caller, at.model),
            "requests": access.requests_for(session, caller, at.model, hub.now()),
            "parties": party_names(session) if changes else (),
        }
        oid = at.oid
    base, described = url(namespace, name), next((file for file in files_there if file.name == CARD), None)
    card = read_named(hub, oid, described) if described is not None else None
    return render(
        request,
        "model.html.jinja",
        status_of(problem),
        **shown,
        problem=problem,
        changes=changes,
        gates=get_args(Gate),
        base=base,
        facts=_facts(metadata) if metadata is not None else [],
        card=card,
        text=markdown.to_html(without_block(card.text), f"{base}/blob/{MAIN}", repo.id) if card and card.text else None,
        lineage=lineage,
        drawing=draw(lineage) if lineage is not None else None,
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


@router.post("/-/sharing" + _REPO, dependencies=[Depends(own_form)])
def share(
    hub: HubDep, request: Request, caller: PageCaller, namespace: Namespace, name: RepoName, form: SharingDep
) -> Response:
    """Change who may read an own repository, and who gets its files; refused, it is shown with the reason."""
    try:
        repos.change_repo(hub, caller, RouteRepo(namespace, name), form.read())
    except SutureError as error:
        return _model(hub, request, caller, namespace, name, error)
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


def _may_change(caller: Caller, party: str) -> bool:
    return party == caller.party and "publisher" in caller.roles


def _may_download(hub: HubContext, caller: Caller, place: RoutePlace) -> bool:
    with hub.database.reading() as session:
        return service.may_download(session, caller, service.get_repo(session, caller, place))


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
        shape = "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(
            "any" if part is None else str(part) for part in spec["spatial_shape"]
        )
        parts = [spec.get("format", "image"), _channels(spec["num_channels"]), shape, spec.get("modality")]
        facts.append((f"Input {name}", ", ".join(part for part in parts if part)))
        if spec.get("channels"):
            facts.append(("Channels", _listed(spec["channels"])))
    for name, output in metadata["outputs"].items():
        facts.append((f"Output {name}", f"{output['format']}, {_channels(output['num_channels'])}"))
    if metadata.get("labels"):
        facts.append(("Labels", _listed(metadata["labels"])))
    facts.append(("Licence", metadata["license"]))
    trained = metadata.get("training_data") or {}
    if trained.get("n") is not None:
        facts.append(("Trained on", f"{trained['n']:,} samples"))
    return facts


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count:,} channels"


def _listed(names: list[str], most: int = 30) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _python(text: str) -> str:
    # On lines of its own, a name has room beside a card.
    shown = text.removeprefix("```python\n").removesuffix("\n```")
    return shown.replace('.load("', '.load(\n    "').replace('")', '"\n)')
