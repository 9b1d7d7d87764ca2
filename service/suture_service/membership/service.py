"""The rules of suspending, resuming, renaming and removing parties and sites; each may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Literal

from sqlalchemy.orm import Session

from suture_service.audit.chain import OPERATOR, record
from suture_service.errors import Conflict, NotFound
from suture_service.hub import HubContext
from suture_service.jobs.lifecycle import Lifecycle
from suture_service.jobs.repository import count_active, lock_job
from suture_service.membership import repository
from suture_service.membership.schemas import Affected, QuotaIn, QuotaOut
from suture_service.models.repository import bytes_held
from suture_service.models.search import search_text
from suture_service.models.service import delete_model
from suture_service.parties.repository import lock_party
from suture_service.parties.service import check_new_name, checked_name, end, get_party
from suture_service.people.repository import forget
from suture_service.settings import Settings
from suture_service.sites.repository import find_site
from suture_service.tables import FormerName, Party, Site

Change = Literal["suspend", "resume", "rename", "remove"]

#: What becomes of what a party has, in words; docs/hub-operator.md has the same as a table.
PARTY_WORDS: dict[Change, tuple[str, ...]] = {
    "suspend": (
        "its tokens and those of its sites open nothing until it is resumed, and nobody signs in for it",
        "its models stay as they are: whoever may read them goes on reading and stitching them",
        "tasks that its sites work at are given back; jobs of others go on without it after their deadlines",
        "its own jobs wait; a new job that asks it is refused",
        "its keys hold, and so do the signatures that they made",
    ),
    "resume": (
        "its tokens, sites and people are let in again",
        "tasks that still wait for it are given out again",
    ),
    "rename": (
        "its models are called after the new name; addresses and scripts with the old one find nothing",
        "a signature holds for one name: what is signed has to be signed again",
        "tokens, sites, keys, people, shares and access stay",
        "jobs that run and name it are in the way; answers that ended jobs still wait for are given up",
        "nobody else gets the old name, and the audit log keeps it",
    ),
    "remove": (
        "its tokens and those of its sites end for good, and its people are removed",
        "its own jobs are cancelled, and jobs of others go on without it",
        "its models are deleted; running jobs keep the files that they need until they have ended",
        "what others shared with it, and its access to gated models, end",
        "its keys are looked up no more; signatures hold for those who have the keys",
        "nobody else gets its name; lineage and the audit log keep it",
    ),
}
SITE_WORDS: dict[Change, tuple[str, ...]] = {
    "suspend": (
        "its token opens nothing until it is resumed",
        "the tasks that it works at are given back, and wait for it or for another site of its party",
    ),
    "resume": ("its token is let in again, and it is given tasks",),
    "rename": ("its token goes on working; reports and the audit log keep the name that it had",),
    "remove": (
        "its token ends for good",
        "the tasks that it works at are given back; without another site of its party they wait for their deadline",
        "a site of the same name may be added again, with another token",
    ),
}


def affected(session: Session, party: Party, change: Change, now: datetime, site: Site | None = None) -> Affected:
    """Return what a party, or a site of it, has, and what becomes of it."""
    amounts = repository.counts(session, party.id, now, site.id if site is not None else None)
    words = (PARTY_WORDS if site is None else SITE_WORDS)[change]
    return Affected(party=party.name, site=site.name if site is not None else None, consequences=list(words), **amounts)


def get_site(session: Session, party: Party, name: str) -> Site:
    """Return a party's site; raises `NotFound`."""
    site = find_site(session, party.id, name)
    if site is None:
        raise NotFound(f"{party.name} has no site {name!r}", where=f"{party.name}/{name}")
    return site


def suspend_party(hub: HubContext, name: str, *, by: str = OPERATOR) -> Affected:
    """Let none of a party's tokens open anything, until it is resumed."""
    with hub.database.writing() as session:
        party = lock_party(session, get_party(session, name).id)
        shown = affected(session, party, "suspend", hub.now())
        if party.suspended_at is None:
            party.suspended_at = hub.now()
            repository.end_leases(session, hub.now(), party_id=party.id)
            record(session, by, "party.suspend", name, owner=name)
        return shown


def resume_party(hub: HubContext, name: str, *, by: str = OPERATOR) -> Affected:
    """Let a party's tokens open again what they did."""
    with hub.database.writing() as session:
        party = lock_party(session, get_party(session, name).id)
        if party.suspended_at is not None:
            party.suspended_at = None
            record(session, by, "party.resume", name, owner=name)
        return affected(session, party, "resume", hub.now())


def rename_party(hub: HubContext, name: str, new: str, *, by: str = OPERATOR) -> Affected:
    """Call a party otherwise; raises `Conflict` (`party.in_use`) while a job runs that names it, and `party.exists`."""
    with hub.database.reading() as session:
        late = repository.late_jobs_naming(session, get_party(session, name).id)
    _each_job(hub, late, lambda lifecycle, _party_id: lifecycle.give_up_late("party.renamed"), 0)
    with hub.database.writing() as session:
        party = lock_party(session, get_party(session, name).id)
        check_new_name(session, new, party)
        running = repository.jobs_in_the_way(session, party.id)
        if running:
            raise Conflict(
                "party.in_use",
                f"jobs that run name it: {', '.join(running)}",
                where=name,
                hint="wait until they have ended, or have them cancelled: suture jobs cancel JOB",
            )
        known = session.get(FormerName, new)
        if known is not None:
            session.delete(known)
        session.add(FormerName(name=name, party_id=party.id, until=hub.now()))
        party.name = new
        session.flush()
        for model in repository.models_of(session, party.id):
            model.search_text = search_text(model.repo, model.description)
        record(session, by, "party.rename", name, owner=new, to=new)
        return affected(session, party, "rename", hub.now())


def remove_party(hub: HubContext, name: str, *, by: str = OPERATOR) -> Affected:
    """Let a party go for good. Broken off, it can be repeated: its row goes last."""
    with hub.database.writing() as session:
        party = lock_party(session, get_party(session, name).id)
        shown = affected(session, party, "remove", hub.now())
        party_id = party.id
        for token in repository.live_tokens(session, hub.now(), party_id=party_id):
            end(session, token, hub.now(), by=by)
        for person in repository.people_of(session, party_id):
            forget(session, person)
    with hub.database.reading() as session:
        waiting = repository.jobs_waiting_for(session, party_id)
    _each_job(hub, waiting, Lifecycle.lose_party, party_id)
    with hub.database.writing() as session:
        party = lock_party(session, party_id)
        for model in repository.models_of(session, party_id):
            delete_model(session, model, hub.now(), by=by)
        for site in repository.sites_of(session, party_id):
            site.removed_at = hub.now()
        repository.forget_shares(session, party_id)
        party.removed_at = hub.now()
        record(session, by, "party.remove", name, owner=name)
    return shown


def suspend_site(hub: HubContext, name: str, site: str, *, by: str = OPERATOR) -> Affected:
    """Let a site's token open nothing, until it is resumed; what it works at is given back."""
    return _change_site(hub, name, site, "suspend", by, lambda _session, row: setattr(row, "suspended_at", hub.now()))


def resume_site(hub: HubContext, name: str, site: str, *, by: str = OPERATOR) -> Affected:
    """Let a site's token open again what it did."""
    return _change_site(hub, name, site, "resume", by, lambda _session, row: setattr(row, "suspended_at", None))


def rename_site(hub: HubContext, name: str, site: str, new: str, *, by: str = OPERATOR) -> Affected:
    """Call a site otherwise; raises `Conflict` (`site.exists`)."""
    checked_name(new, "name")

    def rename(session: Session, row: Site) -> None:
        if find_site(session, row.party_id, new, gone=True) is not None:
            raise Conflict("site.exists", f"{name} has, or had, a site {new!r} already", where="name")
        row.name = new

    return _change_site(hub, name, site, "rename", by, rename, to=new)


def remove_site(hub: HubContext, name: str, site: str, *, by: str = OPERATOR) -> Affected:
    """Let a site go: its token ends, and what it works at is given back."""
    return _change_site(hub, name, site, "remove", by, lambda _session, row: setattr(row, "removed_at", hub.now()))


def _change_site(
    hub: HubContext,
    name: str,
    site: str,
    change: Change,
    by: str,
    apply: Callable[[Session, Site], None],
    **detail: str,
) -> Affected:
    with hub.database.writing() as session:
        party = lock_party(session, get_party(session, name).id)
        row = get_site(session, party, site)
        shown = affected(session, party, change, hub.now(), row)
        if change == "remove":
            for token in repository.live_tokens(session, hub.now(), party_id=party.id, site_id=row.id):
                end(session, token, hub.now(), by=by)
        if change in ("suspend", "remove"):
            repository.end_leases(session, hub.now(), site_id=row.id)
        apply(session, row)
        record(session, by, f"site.{change}", f"{name}/{site}", owner=name, **detail)
        return shown


def _each_job(hub: HubContext, job_ids: Iterable[str], change: Callable[[Lifecycle, int], None], party_id: int) -> None:
    for job_id in job_ids:
        with hub.database.writing() as session:
            job = lock_job(session, job_id)
            if job is not None:
                change(Lifecycle(hub, session, job, None), party_id)


def quota_of(session: Session, party: Party, settings: Settings) -> QuotaOut:
    """Return what a party may fill, and what it does."""
    return QuotaOut(
        party=party.name,
        max_bytes=party.max_bytes if party.max_bytes is not None else settings.max_party_bytes,
        bytes=bytes_held(session, party.id),
        max_jobs=party.max_jobs if party.max_jobs is not None else settings.max_party_jobs,
        jobs=count_active(session, party.id),
        own_limits=party.max_bytes is not None or party.max_jobs is not None,
    )


def set_quota(session: Session, party: Party, wanted: QuotaIn, *, by: str = OPERATOR) -> None:
    """Set what a party may fill. What it holds already stays, also where it is more."""
    lock_party(session, party.id)
    party.max_bytes, party.max_jobs = wanted.max_bytes, wanted.max_jobs
    record(session, by, "party.quota", party.name, owner=party.name, **wanted.model_dump())
