"""Commands about keys: make, register, revoke and trust them; sign and verify models; withdraw what was wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from suture.cli.documents import CreatedKey, TrustedKeys, Verified
from suture.credentials import write_private
from suture.hub import Hub
from suture.responses import Key, Revision
from suture.signing import Trust, read_key_file
from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.errors import SutureError
from suture_contract.model.signature import MAX_SIGNATURE, PKCS11, SIGNATURE, create_key, folder_digests
from suture_contract.model.signature import verify as verify_signature

PASSWORD = "SUTURE_KEY_PASSWORD"  # noqa: S105 - the name of a variable
RepoArgument = Annotated[str, typer.Argument(metavar="PARTY/NAME", help="the model's name at the hub")]
KeyOption = Annotated[
    str | None, typer.Option("--key", help=f"sign with this private key: a file ({PASSWORD} opens it) or a pkcs11: URI")
]
ReasonOption = Annotated[str, typer.Option(help="everyone who sees it reads this", prompt="Why (all will read this)")]


@prints(CreatedKey)
def create(
    path: Annotated[Path, typer.Argument(metavar="NAME", help="writes NAME.pem, which is secret, and NAME.pub")],
    password: Annotated[bool, typer.Option("--password", help="encrypt the private key; asks for a password")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Make a pair of keys on the curve P-256.

    Keys that your organisation has already do as well: P-256, P-384 or P-521, in a PEM file or on a PKCS #11 token.

    \b
    Example:
      suture keys create north
    """
    private, public = Path(f"{path}.pem"), Path(f"{path}.pub")
    for file in (private, public):
        if file.exists():
            raise SutureError("key.exists", "there is such a file", where=str(file), hint="give another name")
    content, key = create_key(_new_password() if password else None)
    write_private(private, content.decode())
    write_private(public, key.pem)
    public.chmod(0o644)
    if format is Format.json:
        print_json(CreatedKey(str(private), str(public), key.fingerprint))
        return
    console.print(key.fingerprint)
    notes.print(f"wrote {private}, which must stay with you, and {public}")
    notes.print(f"next:  suture keys register {public}, and hand {public} to those who are to trust it")


@prints(Key)
def register(
    file: Annotated[Path, typer.Argument(help="the public key in PEM")],
    name: Annotated[str | None, typer.Option(help="what it is called; by default as the file")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Register a public key of your party at the hub (role admin).

    The hub takes no signature by other keys, and shows who has revoked which.

    \b
    Example:
      suture keys register north.pub
    """
    key = read_key_file(file, name or file.stem)
    with Hub() as hub:
        made = hub.keys.register(hub.whoami()["party"], key.name, key.pem)
    if format is Format.json:
        print_json(made)
    else:
        console.print(f"{made.party} has the key {made.name}: {made.fingerprint}")


@prints(list[Key])
def list_keys(
    party: Annotated[str | None, typer.Argument(help="whose; by default your own")] = None,
    format: FormatOption = Format.text,
) -> None:
    """List a party's public keys.

    \b
    Example:
      suture keys list north
    """
    with Hub() as hub:
        keys = hub.keys.list(party or hub.whoami()["party"])
    if format is Format.json:
        print_json(keys)
        return
    rows = [
        (
            key.name,
            key.fingerprint,
            f"{key.created_at:%Y-%m-%d}",
            f"revoked {key.revoked_at:%Y-%m-%d}: {key.revoked_reason}" if key.revoked_at else "",
        )
        for key in keys
    ]
    print_table(
        ("key", "fingerprint", "since", "state"), rows, empty="no keys; register one with `suture keys register`"
    )


@prints(Key)
def revoke(
    fingerprint: Annotated[str, typer.Argument(help="as `suture keys list` shows it")],
    reason: ReasonOption,
    format: FormatOption = Format.text,
) -> None:
    """Revoke a key of your party for good (role admin): somebody else may have it.

    All that it signed, and all that was made of that, is flagged. To go over to a new key, just register that one.

    \b
    Example:
      suture keys revoke 170f6c67… --reason "laptop lost"
    """
    with Hub() as hub:
        revoked = hub.keys.revoke(hub.whoami()["party"], fingerprint, reason)
    if format is Format.json:
        print_json(revoked)
    else:
        console.print(f"{revoked.name} is revoked")


@prints(TrustedKeys)
def trust(
    name: Annotated[str, typer.Argument(help="what you call it, such as the party's name")],
    file: Annotated[Path, typer.Argument(help="the public key in PEM, as its owner handed it over")],
    unsigned: Annotated[bool, typer.Option("--unsigned", help="still use models that nobody you trust signed")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Use models that are signed with this key, and from now on no others.

    Take the file from its owner, or compare the fingerprint with them by phone: the hub is not to be believed here.

    \b
    Example:
      suture keys trust north north.pub
    """
    key = read_key_file(file, name)
    trusted = Trust.stored().adding(key, unsigned=unsigned)
    path = trusted.store()
    if format is Format.json:
        print_json(TrustedKeys(trusted.unsigned, {known.name: known.fingerprint for known in trusted.keys}))
        return
    for known in trusted.keys:
        console.print(f"{known.name}  {known.fingerprint}")
    others = "other models are used, too" if unsigned else "models that none of these signed are refused"
    notes.print(f"{others}; kept in {path}")


@prints(Revision)
def sign(
    repo: RepoArgument,
    key: Annotated[str, typer.Option(help=f"the private key: a file ({PASSWORD} opens it) or a pkcs11: URI")],
    format: FormatOption = Format.text,
) -> None:
    """Sign the newest revision of an own model, such as a stitched ensemble that the hub has published.

    Its files are fetched and checked first. The signed revision is a new one with the same files.

    \b
    Example:
      suture sign north/stitched --key north.pem
    """
    with Hub() as hub:
        signed = hub.sign(repo, key=key, password=password_of(key))
    if format is Format.json:
        print_json(signed)
    else:
        console.print(f"{repo} is now at revision {signed.id}")


@prints(Verified)
def verify(
    folder: Annotated[Path, typer.Argument(help="a folder that `suture pull` wrote")],
    key: Annotated[list[Path] | None, typer.Option(help="a public key in PEM; by default those you trust")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Check the signature over all files of a folder; needs no network.

    Says for which model it holds, and when it was made: a folder does not tell whether there is a newer revision.

    \b
    Examples:
      suture verify digits
      suture verify digits --key north.pub
    """
    keys = (Trust.of(*key) if key else Trust.stored()).keys
    if not keys:
        raise SutureError("key.none", "there is no key to verify with", where="--key", hint="give the public key")
    try:
        with (folder / SIGNATURE).open("rb") as file:
            signature = file.read(MAX_SIGNATURE + 1)
    except FileNotFoundError:
        raise SutureError(
            "signature.missing", f"there is no {SIGNATURE}: it is not signed", where=str(folder)
        ) from None
    digests = folder_digests(folder)
    signed = verify_signature(digests, signature, keys, repo=None, where=str(folder))
    if signed is None:
        raise SutureError(
            "signature.untrusted",
            f"it is signed with another key than {', '.join(known.name for known in keys)}",
            where=str(folder),
            hint="ask whoever gave you the folder for the public key",
        )
    if format is Format.json:
        signer = signed.key
        print_json(Verified(signer.name, signer.fingerprint, sorted(digests), signed.name, signed.signed_at))
    else:
        console.print(f"{signed.words}: {', '.join(sorted(digests))}")


@prints(Revision)
def withdraw(
    repo: RepoArgument,
    revision: Annotated[str, typer.Argument(help="40 hex digits")],
    reason: ReasonOption,
    format: FormatOption = Format.text,
) -> None:
    """Withdraw a revision of an own model for good: it should not be used.

    It, and all that was made of it, is flagged with the reason. Its files stay, so that this can be traced.

    \b
    Example:
      suture withdraw north/digits 3f0c… --reason "trained on wrong labels"
    """
    with Hub() as hub:
        withdrawn = hub.withdraw(repo, revision, reason)
    if format is Format.json:
        print_json(withdrawn)
    else:
        console.print(f"{repo} at {withdrawn.id} is withdrawn")


def password_of(key: str | None) -> str | None:
    """Return what opens a private key's file, None where nothing does: from the environment, or asked for."""
    if key is None or key.startswith(PKCS11):
        return None
    password = os.environ.get(PASSWORD)
    if password is not None:
        return password
    try:
        encrypted = b"ENCRYPTED" in Path(key).read_bytes()
    except OSError:
        return None
    if not encrypted or not sys.stdin.isatty():
        return None
    return str(typer.prompt(f"password of {key}", hide_input=True, err=True))


def _new_password() -> str:
    return os.environ.get(PASSWORD) or str(
        typer.prompt("password of the new key", hide_input=True, confirmation_prompt=True, err=True)
    )
