"""What commands print as JSON, where it is neither an answer of the hub nor a document of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from suture.responses import Revision
from suture_contract.model.signature import Signed


@dataclass(frozen=True)
class SignedIn:
    """Whose token was stored."""

    party: str
    kind: str
    roles: list[str]
    site: str | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Return what the hub answered."""
        return cls(
            str(answer.get("party")), str(answer.get("kind")), list(answer.get("roles") or ()), answer.get("site")
        )


@dataclass(frozen=True)
class Login:
    """A stored login: its profile, the hub, whose token it is, and whether it is used where nothing is named."""

    profile: str
    hub: str
    party: str | None
    used: bool


@dataclass(frozen=True)
class FileToSend:
    """A file with its size in bytes; `sha256` is null for a signature, which differs each time it is made."""

    name: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class DryRun:
    """What `suture publish` would send, and where."""

    repo: str
    hub: str
    visibility: Literal["private", "all"]
    files: list[FileToSend]


@dataclass(frozen=True)
class Signature:
    """Whose key signed, by the name under which it is trusted; for which model and when, null where it says nothing."""

    signed_by: str
    fingerprint: str
    name: str | None
    signed_at: datetime | None

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Return what a verified signature says."""
        return cls(signed.key.name, signed.key.fingerprint, signed.name, signed.signed_at)


@dataclass(frozen=True)
class Pulled:
    """What was downloaded into a folder; its signature by a trusted key, and how it is older than one seen before."""

    folder: str
    revision: Revision
    signature: Signature | None = None
    older: str | None = None


@dataclass(frozen=True)
class Division:
    """How a dataset is divided: the digest that says so, samples per split, and the split of each sample.

    `label_prior` is the share of each label in the train split, null where labels do not exclude each other.
    """

    digest: str
    n: dict[str, int]
    splits: Mapping[str, str]
    label_prior: dict[str, float] | None = None


@dataclass(frozen=True)
class CreatedKey:
    """The files of a new pair of keys, and the fingerprint of the public one."""

    private: str
    public: str
    fingerprint: str


@dataclass(frozen=True)
class TrustedKeys:
    """Fingerprints of the trusted keys by their names; `unsigned` says whether unsigned models are used, too."""

    unsigned: bool
    keys: dict[str, str]


@dataclass(frozen=True)
class Verified:
    """Whose key signed a folder, and the files that the signature covers; for which model, and when, where it says."""

    signed_by: str
    fingerprint: str
    files: list[str]
    name: str | None = None
    signed_at: datetime | None = None
