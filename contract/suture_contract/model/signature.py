"""Signatures over all files of a model: which files, the SHA-256 of each, the model's name, and when it was signed.

`model.sig` is what the OpenSSF's model-signing writes and reads: a Sigstore bundle that holds an in-toto statement of
the files' digests. It needs no network and no certificate, and `model_signing verify key` checks it as well. Its
predicate has one more entry, `suture`, which other verifiers leave aside as its format asks them to: name and time. The
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
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_contract.model.metadata import Repo

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from model_signing.hashing import Config
    from model_signing.manifest import Manifest

SIGNATURE = "model.sig"
#: Of a signature and of a public key, in bytes; both are far smaller.
MAX_SIGNATURE = 256 * 1024
MAX_KEY = 16 * 1024
PKCS11 = "pkcs11:"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
#: The entry of the signed predicate that is Suture's own, and its format.
_ENTRY = "suture"
_PREDICATE = "https://model_signing/signature/v1.0"
_REPO: TypeAdapter[str] = TypeAdapter(Repo)


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with: what its reader calls it, and its PEM text."""

    name: str
    pem: str

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the PEM text, by which a signature names its key: `sha256sum key.pub`."""
        return hashlib.sha256(self.pem.encode()).hexdigest()


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:  # the first or the last day of the calendar
        raise ValueError("no moment in UTC") from None


class _Bound(BaseModel):
    """What a signature says besides files and digests."""

    # A later format of the same number may say more; one that must be understood has another number.
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    format: Literal["suture.signature/1"] = Field(default="suture.signature/1", alias="schema")
    name: Repo
    signed_at: Annotated[AwareDatetime, AfterValidator(_in_utc)]


@dataclass(frozen=True)
class Signed:
    """What a signature over the files of a model says: whose key made it, for which name, and when.

    `name` is `party/name`. Without it the signature binds no name: the same files may be shown under any. Without
    `signed_at` it binds no age: nobody can tell it from a newer one.
    """

    key: PublicKey
    name: str | None
    signed_at: datetime | None

    @property
    def words(self) -> str:
        """The signature as people read it."""
        by = f"signed by {self.key.name}"
        if self.name is None:
            return f"{by}; the signature binds no name and no time"
        if self.signed_at is None:
            return f"{by} as {self.name}; the signature binds no time"
        return f"{by} as {self.name} on {moment(self.signed_at)}"


def moment(time: datetime) -> str:
    """Return when something was signed, to the second, as people read it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


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


def sign(
    digests: Mapping[str, str],
    repo: str,
    key: str | Path,
    *,
    password: str | None = None,
    signed_at: datetime | None = None,
) -> bytes:
    """Return the content of `model.sig` over files with these SHA-256 digests, by file name.

    It holds for the model `repo` (`party/name`) alone. `signed_at` is now by default: of two signed revisions the one
    that was signed later is the newer. `key` is the file of a private key, or a `pkcs11:` URI of one that never leaves
    its token. Raises `SutureError` (`key.*`).
    """
    _require_library()
    from model_signing import signing

    bound = _Bound(name=repo, signed_at=signed_at or datetime.now(UTC))

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
            config._signer = _Binding(config._signer, bound)
            config.set_hashing_config(_known(digests)).sign(repo, target)
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
    digests: Mapping[str, str],
    signature: bytes,
    keys: Sequence[PublicKey],
    *,
    repo: str | None,
    where: str = SIGNATURE,
) -> Signed | None:
    """Return what a signature by one of `keys` over exactly these files says; None if it is by another key.

    `digests` are the files' SHA-256 by name; `repo` is the name under which they were found, None where that is not
    known, as for a folder. Raises `SutureError` `signature.mismatch` when a file was changed, added, left out or
    renamed, or the signature itself was changed, `signature.name` when it is that of another model, and
    `signature.invalid` when it is none.
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
        config._verifier = reading = _Reading(config._verifier)
        try:
            config.set_hashing_config(_known(digests)).verify("model", bundle)
        except Exception as error:  # whatever is wrong with foreign bytes: it does not verify
            raise SutureError(
                "signature.mismatch",
                f"these are not the files that {key.name} signed: {_words(error)}",
                where=where,
                hint="do not use it; tell whoever published it",
            ) from None
    signed = _signed(key, reading.statement, where)
    if repo is not None and signed.name not in (None, repo):
        raise SutureError(
            "signature.name",
            f"{key.name} signed these files as {signed.name}, and here they are called {repo}",
            where=where,
            hint=f"do not use it as {repo}; an owner who has renamed it publishes it anew, signed for the new name",
        )
    return signed


def _signed(key: PublicKey, statement: dict[str, Any], where: str) -> Signed:
    """Return what a verified statement says, that of an older Suture or of another tool as well."""
    predicate = statement.get("predicate")
    content = predicate.get(_ENTRY) if isinstance(predicate, dict) else None
    if content is None:
        # Before there was such an entry, Suture called the model by its name at the hub. Other tools name a folder, and
        # the format before this one named files.
        try:
            name = statement["subject"][0]["name"] if statement["predicateType"] == _PREDICATE else None
            return Signed(key, _REPO.validate_python(name), None)
        except (ValidationError, KeyError, IndexError, TypeError):
            return Signed(key, None, None)
    if isinstance(content, dict) and content.get("schema") != _Bound.model_fields["format"].default:
        raise SutureError(
            "signature.format",
            "this signature is of a format that this version does not know",
            where=where,
            hint="update Suture here",
        )
    try:
        bound = _Bound.model_validate(content)
    except ValidationError:
        raise SutureError(
            "signature.invalid", "what it says of name and time cannot be read", where=where, hint="sign it anew"
        ) from None
    return Signed(key, bound.name, bound.signed_at)


class _Binding:
    """Signs, as a signer of the library does, a statement that says name and time as well.

    The format allows more entries in a predicate, the library's interface does not.
    """

    def __init__(self, signer: Any, bound: _Bound) -> None:
        self._signer, self._bound = signer, bound

    def sign(self, payload: Any) -> Any:
        payload.statement.pb.predicate.update({_ENTRY: self._bound.model_dump(mode="json", by_alias=True)})
        return self._signer.sign(payload)


class _Reading:
    """Verifies as a verifier of the library does, and keeps the statement that was verified."""

    def __init__(self, verifier: Any) -> None:
        self._verifier = verifier
        self.statement: dict[str, Any] = {}

    def verify(self, signature: Any) -> Manifest:
        manifest: Manifest = self._verifier.verify(signature)
        # The same bytes once more: what a signature says is read from nowhere else.
        self.statement = json.loads(self._verifier._verify_signed_content(signature)[1])
        return manifest


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
