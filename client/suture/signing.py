"""Whose models a reader uses: the keys it trusts, and the check of a revision before anything of it is loaded.

The hub is not asked whether a signature is right, nor for the key: the reader has the key from its owner.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from suture.credentials import write_private
from suture.responses import File, Revision
from suture.seen import Seen
from suture_contract import home
from suture_contract.errors import SutureError
from suture_contract.model.format import METADATA
from suture_contract.model.metadata import MAX_BYTES, ModelMetadata
from suture_contract.model.signature import MAX_SIGNATURE, SIGNATURE, PublicKey, Signed, read_public_key, verify
from suture_contract.toml_text import toml, toml_key

#: Gives the content of a small file of a revision, verified against its digest.
Read = Callable[[File], bytes]


@dataclass(frozen=True)
class Trust:
    """The keys whose signatures are trusted, and whether models without one of them are used all the same."""

    keys: tuple[PublicKey, ...] = ()
    unsigned: bool = True

    @classmethod
    def of(cls, *files: str | Path, unsigned: bool = False) -> Self:
        """Return trust in the public keys in these PEM files, called as the files."""
        return cls(tuple(read_key_file(Path(file), Path(file).stem) for file in files), unsigned)

    @classmethod
    def stored(cls) -> Self:
        """Return what `suture keys trust` has written; without it, models are used signed or not."""
        path = trust_file()
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ValueError):
            raise _damaged(path) from None
        keys, unsigned = content.get("keys", {}), content.get("unsigned", False)
        if not isinstance(keys, dict) or not isinstance(unsigned, bool) or content.keys() - {"keys", "unsigned"}:
            raise _damaged(path)
        return cls(
            tuple(read_public_key(str(pem), name, where=f"{path}: {name}") for name, pem in keys.items()), unsigned
        )

    def store(self) -> Path:
        """Keep it for later, readable by this user alone; returns the file."""
        path = trust_file()
        home.make(path.parent, code="trust.unwritable")
        lines = [f"{toml_key(key.name)} = {toml(key.pem)}" for key in self.keys]
        write_private(path, "\n".join([f"unsigned = {toml(self.unsigned)}", "", "[keys]", *lines, ""]))
        return path

    def adding(self, key: PublicKey, *, unsigned: bool) -> Self:
        """Return it with one more key; one of the same name is replaced."""
        kept = tuple(known for known in self.keys if known.name != key.name)
        return replace(self, keys=(*kept, key), unsigned=unsigned)

    def check(self, revision: Revision, read: Read, *, newest: bool) -> Signed | None:
        """Return what the signature of a revision by a trusted key says, None where unsigned ones are used.

        `newest` says that the hub gave it as the newest of the model, and not because it was asked for by its id: then
        it must not be older than one that was seen here before. Raises `SutureError`: `signature.*` for what must not
        be used, `seen.*` where what was seen cannot be remembered.
        """
        signed = signature_of(revision, read, self.keys) if self.keys else None
        if signed is not None:
            seen = Seen.stored()
            older = seen.older(revision.repo, signed, self.keys)
            if newest and older is not None:
                raise SutureError(
                    "signature.rolled_back",
                    f"the hub gives it as the newest, but {older}",
                    where=f"{revision.repo} at {revision.id}",
                    hint="ask its owner which is the newest; to use this one all the same, name it: "
                    f"--revision {revision.id[:12]}",
                )
            seen.note(revision.repo, revision.id, signed)
        if signed is not None or self.unsigned:
            return signed
        names = ", ".join(known.name for known in self.keys) or "nobody"
        if revision.file(SIGNATURE) is None:
            code, problem = "signature.missing", "it is not signed"
        else:
            code, problem = "signature.untrusted", "it is signed with a key that you do not trust"
        raise SutureError(
            code,
            f"{problem}; you trust {names}",
            where=f"{revision.repo} at {revision.id}",
            hint="ask its owner for the public key and, if you are sure of it: suture keys trust NAME FILE",
        )


def signature_of(revision: Revision, read: Read, keys: tuple[PublicKey, ...]) -> Signed | None:
    """Return what a signature by one of `keys` over exactly the files of a revision says; None if none of them signed.

    What `revision` says of the model is that of its signed `suture.json`. Raises `SutureError` (`signature.*`) when
    files, name and signature of one of the keys do not fit together, `metadata.too_large` before so much is fetched.
    """
    where = f"{revision.repo} at {revision.id}"
    file = revision.file(SIGNATURE)
    if file is None:
        return None
    if file.size > MAX_SIGNATURE:
        raise SutureError("signature.invalid", "it is too large for a signature", where=f"{where}: {SIGNATURE}")
    digests = {file.name: file.sha256 for file in revision.files if file.name != SIGNATURE}
    signed = verify(digests, read(file), keys, repo=revision.repo, where=where)
    if signed is None:
        return None
    metadata = revision.file(METADATA)
    # The hub says how large it is: it could fill the disk before its digest is looked at.
    if metadata is not None and metadata.size > MAX_BYTES:
        raise SutureError("metadata.too_large", f"larger than {MAX_BYTES} bytes", where=f"{where}: {METADATA}")
    if metadata is None or ModelMetadata.from_json(read(metadata), where=where) != revision.metadata:
        raise SutureError(
            "signature.metadata",
            f"the hub describes the model in other words than the {METADATA} that {signed.key.name} signed",
            where=where,
            hint="do not use it; tell the hub's operator",
        )
    return signed


def check_flags(revision: Revision) -> None:
    """Raise `SutureError` `model.flagged` if a revision, or one that it was made of, was taken back."""
    if revision.flags:
        raise SutureError(
            "model.flagged",
            "; ".join(str(flag) for flag in revision.flags[:5]),
            where=f"{revision.repo} at {revision.id}",
            hint="use a newer revision; or, knowing why it was taken back, say that you want it flagged as it is",
        )


def read_key_file(path: Path, name: str) -> PublicKey:
    """Return the public key in a PEM file; raises `SutureError` (`key.*`)."""
    try:
        return read_public_key(path.read_bytes(), name, where=str(path))
    except OSError as error:
        raise SutureError(
            "key.unreadable",
            error.strerror or "cannot be read",
            where=str(path),
            hint="save there, in PEM, the public key that its owner handed over: a file that ends in .pub",
        ) from None


def trust_file() -> Path:
    """Return where `suture keys trust` keeps what is trusted."""
    return home.config_folder() / "trust.toml"


def _damaged(path: Path) -> SutureError:
    return SutureError(
        "trust.damaged", "this file is not what `suture keys trust` writes", where=str(path), hint="write it anew"
    )
