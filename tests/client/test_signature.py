"""A signature by itself, without a hub: no byte of it can be changed, and it binds these files alone."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_signing import signing

from suture_contract.errors import SutureError
from suture_contract.model.signature import (
    PublicKey,
    Signed,
    _known,
    folder_digests,
    read_public_key,
    sign,
    verify,
)

SIGNED = {"model.safetensors": "1" * 64, "suture.json": "2" * 64, "README.md": "3" * 64}


@pytest.fixture(scope="module")
def pair(keys: Path) -> tuple[bytes, PublicKey]:
    """A signature of `SIGNED`, and the key to verify it with."""
    return sign(SIGNED, "north/animals", keys / "north.pem"), read_public_key(
        (keys / "north.pub").read_bytes(), "north", where=""
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_a_signature_can_be_changed(pair: tuple[bytes, PublicKey], data: st.DataObject) -> None:
    signature, key = pair
    at = data.draw(st.integers(0, len(signature) - 1))
    changed = bytearray(signature)
    changed[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != signature[at]))
    try:
        found = verify(SIGNED, bytes(changed), [key], repo=None)
    except SutureError:
        return
    # Named after another key, which nobody trusts; or the same in other letters, such as unused bits of base64.
    assert found is None or content(bytes(changed)) == content(signature)


def content(signature: bytes) -> tuple[bytes, bytes]:
    envelope = json.loads(signature)["dsseEnvelope"]
    return base64.b64decode(envelope["payload"]), base64.b64decode(envelope["signatures"][0]["sig"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.sampled_from([*SIGNED, "more.txt", "a/b.txt"]), st.sampled_from(["1" * 64, "2" * 64, "3" * 64])
    )
)
def test_only_the_signed_files_verify(pair: tuple[bytes, PublicKey], files: dict[str, str]) -> None:
    signature, key = pair
    if files == SIGNED:
        signed = verify(files, signature, [key], repo="north/animals")
        assert signed is not None
        assert (signed.key, signed.name) == (key, "north/animals")
        return
    with pytest.raises(SutureError) as caught:
        verify(files, signature, [key], repo=None)
    assert caught.value.code == "signature.mismatch"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (None, "north/animals"),
        ({"schema": "suture.signature/2", "name": "north/animals"}, "signature.format"),
        ({"schema": "suture.signature/1", "name": "north/animals"}, "signature.invalid"),
        ({"schema": "suture.signature/1", "name": "no name", "signed_at": "2026-01-01T00:00:00Z"}, "signature.invalid"),
        (
            {"schema": "suture.signature/1", "name": "north/animals", "signed_at": "0001-01-01T00:00:00+14:00"},
            "signature.invalid",
        ),
        ("text", "signature.invalid"),
    ],
)
def test_what_other_versions_have_signed(keys: Path, tmp_path: Path, entry: object, expected: str) -> None:
    class Saying:
        """A signer whose statement has this entry, as other versions of Suture write it."""

        def __init__(self, signer: Any) -> None:
            self._signer = signer

        def sign(self, payload: Any) -> Any:
            if entry is not None:
                payload.statement.pb.predicate.update({"suture": entry})
            return self._signer.sign(payload)

    config = signing.Config().use_elliptic_key_signer(private_key=keys / "north.pem")
    config._signer = Saying(config._signer)
    config.set_hashing_config(_known(SIGNED)).sign("north/animals", tmp_path / "sig")
    key = read_public_key((keys / "north.pub").read_bytes(), "north", where="")
    content = (tmp_path / "sig").read_bytes()
    if entry is not None:
        with pytest.raises(SutureError) as caught:
            verify(SIGNED, content, [key], repo="north/animals")
        assert caught.value.code == expected
        return
    signed = verify(SIGNED, content, [key], repo="north/animals")
    assert signed == Signed(key, expected, None)
    assert signed is not None
    assert signed.words == "signed by north as north/animals; the signature binds no time"
    with pytest.raises(SutureError, match="as north/animals, and here they are called north/others"):
        verify(SIGNED, content, [key], repo="north/others")


def test_a_pin_is_not_said() -> None:
    for uri in ("pkcs11:token=x;object=y?pin-value=5678&module-path=/none", "pkcs11:nonsense?pin-value=5678"):
        with pytest.raises(SutureError) as caught:
            sign(SIGNED, "north/animals", uri)
        assert caught.value.code == "key.unusable"
        assert "5678" not in str(caught.value)


def test_links_are_not_signed(tmp_path: Path) -> None:
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(SutureError, match="links are not signed"):
        folder_digests(tmp_path)
