"""What each page of the console shows, and what each of its forms does: by the functions that the commands call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypedDict, cast, get_args

from suture_contract.errors import SutureError
from suture_worker.check import check_dataset, check_site
from suture_worker.config import SiteConfig
from suture_worker.console.answers import Answer, Download, Rendered
from suture_worker.egress.held import Held, Manifest
from suture_worker.egress.log import EgressEntry, verify
from suture_worker.egress.shown import assumed, held_result, withheld
from suture_worker.leased_task import Action
from suture_worker.rules.inbox import MAX_REMEMBERED_DAYS, Inbox, Reply, Request
from suture_worker.rules.ledger import Ledger

#: Records on one page; messages that only say how far a task is are left out unless they are asked for.
PAGE = 100
_SIGNS = ("progress", "wait")
#: What would leave for an action, in a sentence; a request has every field of it.
_EGRESS_WORDS: dict[Action, str] = {
    "fit": "The fitted stitches and the list of candidates; later the chosen ensemble and its report.",
    "contribute": "Means and second moments of the models' features, summed over samples.",
    "evaluate": "Of every candidate its metrics, with intervals and numbers of samples.",
}


class _Why(TypedDict):
    """What is written down with a decision, and what the requester is told."""

    reason: str | None
    reply: Reply | None


#: The site, the parts of the path, and what the query or the form says.
View: TypeAlias = Callable[[SiteConfig, Mapping[str, Any], Mapping[str, str]], Answer]


def overview(site: SiteConfig, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """What waits for a person, and what is set up here."""
    inbox, held = _inbox(site), _held(site)
    return Rendered(
        "inbox.html.jinja",
        {
            "site": site,
            "requests": [request for request in inbox.requests() if inbox.decided(request) is None],
            "held": [manifest for manifest in held.manifests() if held.verdict(manifest.task) is None],
            "standing": [rule for rule in inbox.standing() if datetime.now(UTC) < rule.until],
        },
    )


def show_request(site: SiteConfig, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """One request."""
    inbox = _inbox(site)
    request = inbox.request(parts["task"])
    values = {
        "request": request,
        "decided": inbox.decided(request),
        "reasons": get_args(Reply),
        "seen": _seen(request),
        "options": json.dumps(request.options) if request.options else "",
        "leaving": _EGRESS_WORDS[request.action],
    }
    return Rendered("request.html.jinja", values)


def decide_request(site: SiteConfig, parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """Approve or decline."""
    inbox = _inbox(site)
    request = inbox.request(parts["task"])
    approved, why = _decision(request, fields, "approve", "decline")
    inbox.decide(request, approved=approved, remember_days=_days(fields) if approved else None, **why)
    return "/"


def forget(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """Withdraw a standing approval."""
    _inbox(site).forget(*(fields.get(name, "") for name in ("party", "action", "dataset")))
    return "/"


def show_held(site: SiteConfig, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """One held result: exactly what would leave."""
    held = _held(site)
    manifest = held.manifest(parts["task"])
    result = held_result(held, manifest, site)
    values = {
        "manifest": manifest,
        "verdict": held.verdict(manifest.task),
        "assumed": assumed(result.terms, manifest.action),
        "sections": list(result.task.side.shown(result)),
        "withheld": withheld(result),
        "seen": _seen(manifest),
        "reasons": get_args(Reply),
    }
    return Rendered("held.html.jinja", values)


def download_part(site: SiteConfig, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """A part of a held result, byte for byte."""
    held = _held(site)
    manifest: Manifest = held.manifest(parts["task"])
    number = int(parts["number"])
    if number >= len(manifest.parts):
        raise SutureError("outbox.unknown", "there is no such part", where=str(number))
    name = manifest.parts[number].name or "document.json"
    return Download(f"{manifest.task}-{name}", held.part(manifest, number).read_bytes())


def decide_held(site: SiteConfig, parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """Release or refuse."""
    held = _held(site)
    manifest = held.manifest(parts["task"])
    released, why = _decision(manifest, fields, "release", "refuse")
    held.decide(manifest, released=released, **why)
    return "/"


def show_egress(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """What left, newest first; the whole log is checked before any of it is shown."""
    every = _egress(site)
    task, signs = fields.get("task", ""), fields.get("signs") == "on"
    entries = [entry for entry in every if task in ("", entry.task) and (signs or entry.kind not in _SIGNS)]
    before = int(fields["before"]) if fields.get("before", "").isdigit() else None
    older = [entry for entry in reversed(entries) if before is None or entry.seq < before]
    more = older[PAGE - 1].seq if len(older) > PAGE else None
    values = {"entries": older[:PAGE], "count": len(every), "task": task, "signs": signs, "more": more}
    return Rendered("egress.html.jinja", values)


def show_record(site: SiteConfig, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """One record, with the bytes that left where they are kept."""
    entry = next((entry for entry in _egress(site) if entry.seq == int(parts["number"])), None)
    if entry is None:
        raise SutureError("egress.unknown", "there is no such record", where=str(parts["number"]))
    document = _outbox(site) / "documents" / entry.sha256
    content = entry.body
    if content is None and document.exists():
        content = document.read_text(encoding="utf-8")
    return Rendered("record.html.jinja", {"entry": entry, "content": content})


def export_egress(site: SiteConfig, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """The log's file as it is, checked."""
    _egress(site)
    return Download("egress.jsonl", (_outbox(site) / "egress.jsonl").read_bytes())


def show_ledger(site: SiteConfig, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """What was counted and spent, newest first."""
    entries = Ledger(site.state / "ledger.jsonl").entries()
    return Rendered("ledger.html.jinja", {"entries": entries[::-1][:PAGE], "count": len(entries)})


def show_datasets(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """The datasets, and what one of them holds if it shall be looked into."""
    name = fields.get("look")
    checks = check_dataset(site, name) if name in site.datasets else []
    return Rendered("datasets.html.jinja", {"datasets": site.datasets, "looked": name, "checks": checks})


def show_health(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """What `suture site check` finds."""
    return Rendered("health.html.jinja", {"site": site, "checks": check_site(site) if "check" in fields else None})


PAGES: dict[str, View] = {
    "/": overview,
    "/inbox/{task}": show_request,
    "/outbox/{task}": show_held,
    "/outbox/{task}/part/{number:int}": download_part,
    "/egress": show_egress,
    "/egress/export": export_egress,
    "/egress/{number:int}": show_record,
    "/ledger": show_ledger,
    "/datasets": show_datasets,
    "/health": show_health,
}
ACTS: dict[str, View] = {"/inbox/{task}": decide_request, "/outbox/{task}": decide_held, "/standing/forget": forget}


def _inbox(site: SiteConfig) -> Inbox:
    return Inbox(site.state / "inbox")


def _outbox(site: SiteConfig) -> Any:
    return site.state / "outbox"


def _held(site: SiteConfig) -> Held:
    return Held(_outbox(site) / "held")


def _egress(site: SiteConfig) -> list[EgressEntry]:
    return verify(_outbox(site) / "egress.jsonl")


def _seen(shown: Request | Manifest) -> str:
    return hashlib.sha256(shown.model_dump_json().encode()).hexdigest()


def _decision(shown: Request | Manifest, fields: Mapping[str, str], yes: str, no: str) -> tuple[bool, _Why]:
    """Return whether a form says yes, and why; raises `SutureError` where it belongs to what was shown before."""
    if fields.get("decision") not in (yes, no):
        raise SutureError("console.decision", f"say {yes} or {no}", where="decision")
    if fields.get("seen") != _seen(shown):
        hint = "look at it again, then decide"
        raise SutureError("console.changed", "it has changed since it was shown", where=shown.task, hint=hint)
    agreed, word = fields["decision"] == yes, fields.get("tell") or None
    if agreed:
        word = None
    elif word is not None and word not in get_args(Reply):
        raise SutureError("console.decision", "this cannot be told", where="tell", hint=", ".join(get_args(Reply)))
    return agreed, {"reason": fields.get("reason") or None, "reply": cast("Reply | None", word)}


def _days(fields: Mapping[str, str]) -> int | None:
    text = fields.get("days", "")
    if not text:
        return None
    if not text.isdigit() or not 1 <= int(text) <= MAX_REMEMBERED_DAYS:
        raise SutureError("console.decision", f"a number of days from 1 to {MAX_REMEMBERED_DAYS}", where="days")
    return int(text)
