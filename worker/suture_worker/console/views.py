"""What each page of the console shows, and what each of its forms does: by the functions that the commands call."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast, get_args

from suture_contract.errors import SutureError
from suture_contract.pages import with_query
from suture_contract.report import curves
from suture_stitching.data import open_dataset
from suture_stitching.data.look import contact_sheet
from suture_worker.check import check_dataset, check_site
from suture_worker.config import SiteConfig
from suture_worker.console.answers import Answer, Download, Picture, Rendered
from suture_worker.egress import readable
from suture_worker.egress.held import Held, Manifest
from suture_worker.egress.log import EgressEntry, in_words, kept, verify
from suture_worker.egress.shown import assumed, held_result, withheld
from suture_worker.leased_task import Action
from suture_worker.rules.inbox import MAX_REMEMBERED_DAYS, Inbox, Reply, Request
from suture_worker.rules.ledger import Ledger, LedgerEntry
from suture_worker.rules.policy import SPENT, Asked, budget_of, rules_for
from suture_worker.status import SiteStatus, site_status

#: Records on one page; messages that only say how far a task is are left out unless they are asked for.
PAGE = 100
_SIGNS = ("progress", "wait")
#: What would leave for an action, in a sentence; a request has every field of it.
_EGRESS_WORDS: dict[Action, str] = {
    "fit": "The fitted stitches and the list of candidates; later the chosen ensemble and its report.",
    "contribute": "Means and second moments of the models' features, summed over samples.",
    "evaluate": "Of every candidate its metrics, with intervals and numbers of samples.",
}


#: What is said of a decision on the page that one comes back to.
_DONE = {
    "approve": "Approved, and written down with your name. The site begins with it by itself.",
    "decline": "Declined, and written down with your name. The requester is told so.",
    "release": "Released, and written down with your name. The site sends it by itself.",
    "refuse": "Refused, and written down with your name. It does not leave; the requester is told so.",
    "withdraw": "Withdrawn. From now on, such requests wait here again.",
}


class _Why(TypedDict):
    """What is written down with a decision, and what the requester is told."""

    reason: str | None
    reply: Reply | None


#: The site, the parts of the path, and what the query or the form says.
View: TypeAlias = Callable[[SiteConfig, Mapping[str, Any], Mapping[str, str]], Answer]


def overview(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """What waits for a person, what is set up here, and what was decided just now."""
    inbox, held = _inbox(site), _held(site)
    return Rendered(
        "inbox.html.jinja",
        {
            "site": site,
            "requests": [request for request in inbox.requests() if inbox.decided(request) is None],
            "held": [manifest for manifest in held.manifests() if held.verdict(manifest.task) is None],
            "done": _DONE.get(fields.get("done", "")),
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
        "own": site.site.party,
        "left": _left(site, request),
    }
    return Rendered("request.html.jinja", values)


def decide_request(site: SiteConfig, parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """Approve or decline."""
    inbox = _inbox(site)
    request = inbox.request(parts["task"])
    approved, why = _decision(request, fields, "approve", "decline")
    inbox.decide(request, approved=approved, remember_days=_days(fields) if approved else None, **why)
    return _back(fields["decision"])


def forget(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """Withdraw a standing approval."""
    _inbox(site).forget(*(fields.get(name, "") for name in ("party", "action", "dataset")))
    return _back("withdraw")


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
        "curve_frame": curves,
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
    return _back(fields["decision"])


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
    entry = _record(site, parts)
    content = kept(_log(site), entry)
    text = in_words(content) if content is not None else None
    sections = readable.sections(text) if text is not None else readable.tensors(content or b"")
    values = {"entry": entry, "kept": content is not None, "text": text, "sections": sections}
    return Rendered("record.html.jinja", values)


def download_record(site: SiteConfig, parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """What left with one record, byte for byte."""
    entry = _record(site, parts)
    content = kept(_log(site), entry)
    if content is None:
        raise SutureError("egress.not_kept", "of this file the digest alone is kept", where=str(entry.seq))
    return Download(f"{entry.task}-{entry.name or f'{entry.kind}.json'}", content)


def export_egress(site: SiteConfig, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """The log's file as it is, checked."""
    _egress(site)
    return Download("egress.jsonl", _log(site).read_bytes())


def show_ledger(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """What was counted and spent, newest first, and what it comes to."""
    entries = _ledger(site).entries()
    party, dataset = fields.get("party", ""), fields.get("dataset", "")
    wanted = [entry for entry in entries if party in ("", entry.party) and dataset in ("", entry.dataset)]
    values = {
        "entries": wanted[::-1][:PAGE],
        "count": len(wanted),
        "sums": _sums(wanted),
        "party": party,
        "dataset": dataset,
        "parties": sorted({entry.party for entry in entries}),
        "datasets": sorted({entry.dataset for entry in entries}),
    }
    return Rendered("ledger.html.jinja", values)


def export_ledger(site: SiteConfig, _parts: Mapping[str, Any], _fields: Mapping[str, str]) -> Answer:
    """The ledger's file as it is, once each entry of it could be read."""
    ledger = _ledger(site)
    return Download("ledger.jsonl", ledger.path.read_bytes() if ledger.entries() else b"")


def show_datasets(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """The datasets, and what one of them holds if it shall be looked into."""
    name = fields.get("look")
    checks = check_dataset(site, name) if name in site.datasets else []
    values = {"datasets": site.datasets, "looked": name, "checks": checks, "sheet": "sheet" in fields}
    return Rendered("datasets.html.jinja", values)


def show_sheet(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """A contact sheet of a dataset, made anew each time and kept nowhere."""
    name = fields.get("look", "")
    if name not in site.datasets:
        raise SutureError("dataset.unknown", "there is no such dataset", where=name[:200])
    dataset = open_dataset(site.datasets[name])
    if len(dataset.input_shape) < 2:
        raise SutureError("dataset.no_picture", "its samples are no pictures", where=name)
    made = io.BytesIO()
    contact_sheet(dataset).save(made, "PNG")
    return Picture(made.getvalue())


def show_health(site: SiteConfig, _parts: Mapping[str, Any], fields: Mapping[str, str]) -> Answer:
    """What the site does just now, and what `suture site check` finds."""
    now: SiteStatus | None = None
    with suppress(SutureError):  # it has not run yet
        now = site_status(site)
    checks = check_site(site) if "check" in fields else None
    return Rendered("health.html.jinja", {"site": site, "now": now, "checks": checks})


PAGES: dict[str, View] = {
    "/": overview,
    "/inbox/{task}": show_request,
    "/outbox/{task}": show_held,
    "/outbox/{task}/part/{number:int}": download_part,
    "/egress": show_egress,
    "/egress/export": export_egress,
    "/egress/{number:int}": show_record,
    "/egress/{number:int}/bytes": download_record,
    "/ledger": show_ledger,
    "/ledger/export": export_ledger,
    "/datasets": show_datasets,
    "/datasets/sheet": show_sheet,
    "/health": show_health,
}
ACTS: dict[str, View] = {"/inbox/{task}": decide_request, "/outbox/{task}": decide_held, "/standing/forget": forget}


def _back(done: str) -> str:
    return with_query("/", done=done)


def _inbox(site: SiteConfig) -> Inbox:
    return Inbox(site.state / "inbox")


def _outbox(site: SiteConfig) -> Path:
    return site.state / "outbox"


def _held(site: SiteConfig) -> Held:
    return Held(_outbox(site) / "held")


def _log(site: SiteConfig) -> Path:
    return _outbox(site) / "egress.jsonl"


def _egress(site: SiteConfig) -> list[EgressEntry]:
    return verify(_log(site))


def _record(site: SiteConfig, parts: Mapping[str, Any]) -> EgressEntry:
    entry = next((entry for entry in _egress(site) if entry.seq == int(parts["number"])), None)
    if entry is None:
        raise SutureError("egress.unknown", "there is no such record", where=str(parts["number"]))
    return entry


def _ledger(site: SiteConfig) -> Ledger:
    return Ledger(site.state / "ledger.jsonl")


def _left(site: SiteConfig, request: Request) -> str:
    """Say how often the party may have this with the dataset in this month; nothing where that is not counted."""
    rules = rules_for(Asked(request.party, request.action), request.dataset, site)
    budget = next((budget for _, rule in rules if (budget := budget_of(rule, request.action)) is not None), None)
    if budget is None:
        return ""
    used = _ledger(site).used(request.party, request.dataset, action=request.action)
    return f"{max(budget - used, 0)} of {budget} {SPENT[request.action]} are left this month"


def _sums(entries: Iterable[LedgerEntry]) -> list[tuple[str, str, str, str, str]]:
    """Return by party, dataset and action how often it was begun, and what epsilon of noise was spent in all."""
    times: Counter[tuple[str, str, str]] = Counter()
    spent: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        account = entry.party, entry.dataset, entry.action
        times[account] += entry.counts
        spent[account] += (entry.epsilon or 0.0) * (1.0 if entry.share is None else entry.share)  # type: ignore[assignment]
    return [
        (*account, f"{times[account]:,}", f"{spent[account]:g}" if spent[account] else "") for account in sorted(times)
    ]


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
