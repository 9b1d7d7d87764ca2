"""The page that `suture up` opens with: two hospitals on one machine, and what to do at each, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.bundle import Bundle
from suture.errors import HubError
from suture.http import Connection
from suture.hub import Hub
from suture_contract.errors import SutureError
from suture_contract.files import read_text
from suture_contract.pages import with_query
from suture_worker.console.answers import Answer, Rendered
from suture_worker.console.app import Pages

#: The model of each party, below its name, and the dataset at each site.
MODEL = "digits"


@dataclass(frozen=True)
class FirstRun:
    """What is on this machine: the first of `parties` asks; `folders` hold models to publish, `consoles` links."""

    url: str
    parties: tuple[str, ...]
    tokens: Mapping[str, str]
    folders: Mapping[str, Path]
    keys: Mapping[str, Callable[[], Path]]
    consoles: Mapping[str, Path]

    @property
    def asking(self) -> str:
        """The party whose eyes one sees the hub with."""
        return self.parties[0]

    @property
    def repos(self) -> dict[str, str]:
        """The models to publish, by party."""
        return {party: f"{party}/{MODEL}" for party in self.folders}


def show(run: FirstRun, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """The steps, and how far one is."""
    with Connection(run.url, run.tokens[run.asking]) as hub:
        published = {party: _is_there(hub, repo) for party, repo in run.repos.items()}
        newest = hub.get("/v1/jobs", limit=1)["items"]
        job = hub.get(f"/v1/jobs/{newest[0]['id']}") if newest else None
    others = [party for party in run.parties if party != run.asking]
    ask = with_query("/-/jobs/new", model=list(run.repos.values()), dataset=MODEL, evaluate_at=others)
    ready = bool(published) and all(published.values())

    def signed_in(path: str) -> str:
        return f"{with_query(f'{run.url}/-/sign-in', next=path)}#{run.tokens[run.asking]}"

    values = {
        "asking": run.asking,
        "others": others,
        "hub": run.url,
        # Who has asked for a job has signed in: from then on links lead to the pages themselves.
        "sign_in": signed_in(ask if ready and job is None else "/"),
        "look": {repo: run.url + f"/{repo}" if job else signed_in(f"/{repo}") for repo in run.repos.values()},
        "repos": run.repos,
        "published": published,
        "ready": ready,
        "ask": run.url + ask,
        "job": job,
        "waiting": {task["party"] for task in (job or {"tasks": ()})["tasks"] if _waits_for_a_person(task)},
        "consoles": {party: read_text(link).strip() for party, link in run.consoles.items() if link.exists()},
    }
    return Rendered("guide.html.jinja", values)


def publish(run: FirstRun, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """Publish a party's example model, signed with its key, for every party of this hub."""
    party = parts["party"]
    if party not in run.folders:
        raise SutureError("up.unknown", "there is no such example", where=party, hint=", ".join(run.folders))
    hub = Hub(run.url, run.tokens[party])
    try:
        key = run.keys[party]()
        hub.publish_file(run.folders[party], run.repos[party], key=key, visibility="all", show=_nothing)
    finally:
        hub.connection.close()
    return "/"


def _nothing(_bundle: Bundle) -> None:
    """What is in a bundle is told on no terminal."""


def _is_there(hub: Connection, repo: str) -> bool:
    try:
        hub.get(f"/v1/models/{repo}")
    except HubError as error:
        if error.status == 404:
            return False
        raise
    return True


def _waits_for_a_person(task: Mapping[str, Any]) -> bool:
    return (task.get("waits") or {}).get("why") in ("approval", "release")


GUIDE: Pages[FirstRun] = Pages(
    package="suture_local",
    name="Suture on this machine",
    note="Hub and sites run on this machine alone, until suture up is stopped with Ctrl-C.",
    menu=(("First steps", "/"),),
    shown={"/": show},
    acts={"/publish/{party}": publish},
)
