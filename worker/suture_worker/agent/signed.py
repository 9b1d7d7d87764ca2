"""Who signed the models that this site is asked to run: looked at before a rule that names signers allows them.

The hub says which files a revision has. Their digests, the signature over them, its name and its time, and the model's
description are checked here, with keys that this site's operator has from their owners.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from suture.responses import File
from suture.seen import SEEN, Seen
from suture.signing import check_flags, read_key_file, signature_of
from suture_contract.errors import SutureError
from suture_worker.agent.begun import Begun
from suture_worker.agent.hub import HubClient
from suture_worker.config import SiteConfig
from suture_worker.leased_task import LeasedMember


@dataclass(frozen=True)
class SignedBy:
    """Which key of this site signed a member, by its fingerprint, if one did; how that is older than one seen here."""

    key: str | None = None
    older: str | None = None


class Signers:
    """The keys of `[keys]` in site.toml; raises `SutureError` (`key.*`, `signing.missing`) where one cannot be used."""

    def __init__(self, config: SiteConfig) -> None:
        self._keys = tuple(read_key_file(path, name) for name, path in config.keys.items())
        self._seen = Seen(config.state / SEEN)
        self.begun = Begun(config.state / "begun.json")

    def name(self, fingerprint: str | None) -> str | None:
        """Return what site.toml calls a key, None if it has no such key."""
        return next((key.name for key in self._keys if key.fingerprint == fingerprint), None)

    def find(self, hub: HubClient, member: LeasedMember, job: str) -> SignedBy:
        """Return which of this site's keys signed a member, and whether a newer revision of it was seen here before.

        A job that has begun here with this revision goes on with it. Raises `SutureError`: `model.flagged` for what
        was taken back, `signature.*` for what was changed since one of the keys signed it, or was signed for another
        name, `member.mismatch` if the task describes it differently.
        """
        revision = hub.revision(member)
        check_flags(revision)
        if not self._keys:
            return SignedBy()

        def read(file: File) -> bytes:
            with tempfile.TemporaryDirectory(prefix="suture-") as folder:
                path = Path(folder) / "content"
                hub.fetch_file(revision, file, path)
                return path.read_bytes()

        signed = signature_of(revision, read, self._keys)
        if signed is None:
            return SignedBy()
        if (revision.model_file.sha256, revision.metadata) != (member.sha256, member.metadata):
            raise SutureError(
                "member.mismatch",
                f"the task describes the model in other words than {signed.key.name} signed",
                where=f"{member.repo} at {member.revision}",
                hint="tell the hub's operator",
            )
        older = self._seen.older(revision.repo, signed, self._keys)
        self._seen.note(revision.repo, revision.id, signed)
        return SignedBy(signed.key.fingerprint, None if self.begun.with_(job, member) else older)
