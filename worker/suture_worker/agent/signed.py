"""Who signed the models that this site is asked to run: looked at before a rule that names signers allows them.

The hub says which files a revision has; their digests, the signature over them, and the model's description are checked
here, with keys that this site's operator has from their owners.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from suture.responses import File
from suture.signing import check_flags, read_key_file, signer
from suture_contract.errors import SutureError
from suture_worker.agent.hub import HubClient
from suture_worker.config import SiteConfig
from suture_worker.leased_task import LeasedMember


class Signers:
    """The keys of `[keys]` in site.toml; raises `SutureError` (`key.*`, `signing.missing`) where one cannot be used."""

    def __init__(self, config: SiteConfig) -> None:
        self._keys = tuple(read_key_file(path, name) for name, path in config.keys.items())

    def name(self, fingerprint: str | None) -> str | None:
        """Return what site.toml calls a key, None if it has no such key."""
        return next((key.name for key in self._keys if key.fingerprint == fingerprint), None)

    def find(self, hub: HubClient, member: LeasedMember) -> str | None:
        """Return the fingerprint of the key that signed a member; None if it is none of this site's keys.

        Raises `SutureError`: `model.flagged` for what was taken back, `signature.*` for what was changed since one of
        the keys signed it, `member.mismatch` if the task describes it differently.
        """
        revision = hub.revision(member)
        check_flags(revision)
        if not self._keys:
            return None

        def read(file: File) -> bytes:
            with tempfile.TemporaryDirectory(prefix="suture-") as folder:
                path = Path(folder) / "content"
                hub.fetch_file(revision, file, path)
                return path.read_bytes()

        key = signer(revision, read, self._keys)
        if key is None:
            return None
        if (revision.model_file.sha256, revision.metadata) != (member.sha256, member.metadata):
            raise SutureError(
                "member.mismatch",
                f"the task describes the model in other words than {key.name} signed",
                where=f"{member.repo} at {member.revision}",
                hint="tell the hub's operator",
            )
        return key.fingerprint
