"""Signatures over all files of a model: which files, and the SHA-256 of each, signed with a party's own key.

`model.sig` is what the OpenSSF's model-signing writes and reads: a Sigstore bundle that holds an in-toto statement of
the files' digests. It needs no network and no certificate, and `model_signing verify key` checks it as well. The
digests are known where a model is verified, so no file is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from model_signing.hashing import Config

SIGNATURE = "model.sig"
#: Of a signature and of a public key, in bytes; both are far smaller.
MAX_SIGNATURE = 256 * 1024
MAX_KEY = 16 * 1024
PKCS11 = "pkcs11:"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with: what its reader calls it, and its PEM text."""

    name: str
    pem: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the PEM text, by which a signature names its key: `sha256sum key.pub`."""
        return hashlib.sha256(self.pem.encode()).hexdigest()


def read_public_key(text: str | bytes, name: str, *, where: str) -> PublicKey:
    """Return a public key in the one PEM form of it; raises `SutureError` (`key.*`)."""
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    hint = "give the public key in PEM, of the curve P-256, P-384 or P-521, as `suture keys create` writes it"
    content = text.encode() if isinstance(text, str) else text
    if b"PRIVATE KEY" in content:
        raise SutureError("key.private", "this is a private key, which must stay where it is", where=where, hint=hint)
    try:
        key = serialization.load_pem_public_key(content[: MAX_KEY + 1])
    except Exception:  # whatever a parser of foreign bytes may raise
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise SutureError("key.invalid", "this is no public key that signs models", where=where, hint=hint)
    return PublicKey(name, _pem(key))


def create_key(password: str | None = None) -> tuple[bytes, PublicKey]:
    """Return a new key on P-256: the private one in PEM, encrypted if there is a `password`, and the public one."""
    _require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    secret = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    return private, PublicKey("new", _pem(key.public_key()))


def sign(digests: Mapping[str, str], key: str | Path, *, password: str | None = None, name: str = "model") -> bytes:
    """Return the content of `model.sig` over files with these SHA-256 digests, by file name.

    `key` is the file of a private key, or a `pkcs11:` URI of one that never leaves its token. `name` is what the
    signature calls the model. Raises `SutureError` (`key.*`).
    """
    _require_library()
    from model_signing import signing

    config = signing.Config()
    try:
        if str(key).startswith(PKCS11):
            config.use_pkcs11_signer(pkcs11_uri=str(key))
        else:
            # The library hands the password on to one that takes bytes alone.
            secret: Any = password.encode() if password else None
            config.use_elliptic_key_signer(private_key=Path(key), password=secret)
        with tempfile.TemporaryDirectory(prefix="suture-") as folder:
            target = Path(folder) / SIGNATURE
            config.set_hashing_config(_known(digests)).sign(name, target)
            return target.read_bytes()
    except Exception as error:  # of the key's file, its password, or the token's own library
        raise SutureError(
            "key.unusable",
            f"this key cannot sign: {_words(error)}",
            where="pkcs11" if str(key).startswith(PKCS11) else str(key),
            hint="a PEM file of a private key on P-256, P-384 or P-521, with its password, or a pkcs11: URI",
        ) from None


def key_of(signature: bytes, *, where: str = SIGNATURE) -> str:
    """Return the fingerprint of the key that a signature says it is made with; raises `signature.invalid`."""
    try:
        if len(signature) > MAX_SIGNATURE:
            raise ValueError("too large")
        hint = json.loads(signature)["verificationMaterial"]["publicKey"]["hint"]
        if not isinstance(hint, str) or not hint:
            raise ValueError("no key is named")
        return hint
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SutureError(
            "signature.invalid",
            "this is no signature by a key",
            where=where,
            hint="sign with `suture sign`, or with `model_signing sign key` 1.1 or newer",
        ) from None


def verify(
    digests: Mapping[str, str], signature: bytes, keys: Sequence[PublicKey], *, where: str = SIGNATURE
) -> PublicKey | None:
    """Return that of `keys` which signed exactly these files with these SHA-256 digests; None if it is another key.

    Raises `SutureError` `signature.mismatch` when a file was changed, added, left out or renamed, or the signature
    itself was changed, and `signature.invalid` when it is none.
    """
    fingerprint = key_of(signature, where=where)
    key = next((key for key in keys if key.fingerprint == fingerprint), None)
    if key is None:
        return None
    _require_library()
    from model_signing import verifying

    with tempfile.TemporaryDirectory(prefix="suture-") as folder:
        public, bundle = Path(folder) / "key.pub", Path(folder) / SIGNATURE
        public.write_text(key.pem, encoding="ascii")
        bundle.write_bytes(signature)
        config = verifying.Config().use_elliptic_key_verifier(public_key=public)
        try:
            config.set_hashing_config(_known(digests)).verify("model", bundle)
        except Exception as error:  # whatever is wrong with foreign bytes: it does not verify
            raise SutureError(
                "signature.mismatch",
                f"these are not the files that {key.name} signed: {_words(error)}",
                where=where,
                hint="do not use it; tell whoever published it",
            ) from None
    return key


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder but its signature, by path; raises `signature.link` at a link."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise SutureError("signature.link", "links are not signed", where=str(path), hint="put the file itself")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SIGNATURE:
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _known(digests: Mapping[str, str]) -> Config:
    """Return the library's way of hashing, with digests that are known instead.

    A signature may name paths that its verifier should leave out: none is.
    """
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    description = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        # What the library adds by itself when it signs a folder, for its own verifier.
        "ignore_paths": [SIGNATURE],
    }
    serialization = manifest.SerializationType.from_args(description)
    items = [
        manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(sha256)))
        for name, sha256 in sorted(digests.items())
        if name != SIGNATURE
    ]

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            return manifest.Manifest(str(model_path), items, serialization)

        def add_ignored_paths(self, *, model_path: Any, paths: Any) -> None:
            pass

    return Known()  # type: ignore[no-untyped-call]


def _pem(key: EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return os.strerror(error.errno) if error.errno else error.strerror
    # Names in it may be a stranger's: cut first, since the expression below takes longer than in proportion.
    text = str(error)[:2000]
    text = re.sub(r"(Hash mismatch for '.*?'): Expected 'Digest.*?\)', Actual 'Digest.*?\)'", r"\1", text)
    text = re.sub(r"pin-value=[^&;\s]*", "pin-value=…", text)
    return " ".join(text.split()).removeprefix("Signature mismatch: ")[:500] or "the signature was changed"


def _require_library() -> None:
    try:
        import model_signing.signing  # noqa: F401
    except ImportError as error:
        raise SutureError(
            "signing.missing",
            f"signatures need a library that is not installed ({error.name})",
            hint=how_to_install("signing"),
        ) from None
