"""Revisions of models at a hub: which one a name means, and what must hold before one is used."""

from __future__ import annotations

from dataclasses import replace

from suture.arguments import checked_repo, checked_revision
from suture.content import cached
from suture.errors import NotFound
from suture.http import Connection, model_path, segment
from suture.responses import File, Revision
from suture.signing import Read, Trust, check_flags
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef


def find(connection: Connection, repo: str, revision: str | None = None) -> Revision:
    """Return a revision by its id or the first digits of it, or the newest; see `Hub.revision`."""
    checked_repo(repo)
    revision = checked_revision(revision)
    path = f"{model_path(repo)}/revisions/{segment(revision or 'latest')}"
    resolved = Revision.of(connection.get(path), path)
    if resolved.repo != repo or not resolved.id.startswith(revision or ""):
        raise SutureError("hub.answer", f"the hub answered with {resolved.repo} at {resolved.id}", where=path)
    return resolved


def usable(connection: Connection, trust: Trust, repo: str, revision: str | None, *, allow_flagged: bool) -> Revision:
    """Return a revision once nothing speaks against using it: flag, signature, age or lineage."""
    resolved = find(connection, repo, revision)
    if not allow_flagged:
        check_flags(resolved)
    trust.check(resolved, reading(connection, resolved), newest=checked_revision(revision) is None)
    unseen_members(connection, resolved)
    return resolved


def check_signature(connection: Connection, trust: Trust, revision: Revision, *, newest: bool) -> None:
    """Check what a trusted key has signed; what is not signed is let pass."""
    replace(trust, unsigned=True).check(revision, reading(connection, revision), newest=newest)


def reading(connection: Connection, revision: Revision) -> Read:
    """Return what reads a file of a revision, from the cache where it is there already."""
    return lambda file: cached(connection, revision, file).read_bytes()


def report_file(revision: Revision) -> File:
    """Return the file with the party report of a stitched ensemble; raises `SutureError` `report.none` without one."""
    file = revision.file("report.json")
    if file is None:
        raise SutureError(
            "report.none",
            "this revision has no report: it was published, not stitched",
            where=f"{revision.repo} at {revision.id}",
        )
    return file


def unseen_members(connection: Connection, revision: Revision) -> list[MemberRef]:
    """Check a revision's lineage against the hub, and return the members that cannot be seen; see `Hub.verify_lineage`.

    Raises `SutureError` `lineage.contradiction` when one is visible and differs.
    """
    lineage = revision.metadata.lineage
    unseen: list[MemberRef] = []
    for member in lineage.members if lineage is not None else ():
        try:
            held = find(connection, member.repo, member.revision)
        except NotFound:
            unseen.append(member)
            continue
        if held.model_file.sha256 != member.sha256:
            raise SutureError(
                "lineage.contradiction",
                f"it names {member.repo} at {member.revision} with another digest than the hub has",
                where=f"{revision.repo} at {revision.id}",
                hint="do not use it; tell the hub's operator",
            )
    return unseen
