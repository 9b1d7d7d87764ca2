"""Canaries: values that occur nowhere but in a site's data, and the search for them in whatever form they take."""

from __future__ import annotations

import base64
import sqlite3
import struct
from collections.abc import Iterable, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path

from tests.security.recorder import Recorder

#: As many of a number's digits are looked for: fewer occur by chance.
DIGITS = 7


def text_forms(canary: str) -> dict[str, bytes]:
    """Return all that a text might look like, by the name of the form."""
    raw = canary.encode()
    escaped = "".join(f"\\u{ord(character):04x}" for character in canary)
    forms = {
        "as it is": raw,
        "in capitals": canary.upper().encode(),
        "UTF-16, little end first": canary.encode("utf-16-le"),
        "UTF-16, big end first": canary.encode("utf-16-be"),
        "JSON, escaped": escaped.encode(),
        "URL, escaped": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "backwards": canary[::-1].encode(),
    }
    return forms | _bytes_in_text(raw)


def number_forms(canary: float) -> dict[str, bytes]:
    """Return all that a number might look like; of its decimals the first seven, cut off, not rounded."""
    written = f"{Decimal(repr(canary)):f}".removeprefix("0.").lstrip("0")
    digits = written.replace(".", "")[:DIGITS]
    forms = {
        "digits": digits.encode(),
        "with its point": written[: DIGITS + ("." in written[:DIGITS])].encode(),
        "with an exponent": f"{digits[0]}.{digits[1:]}".encode(),
        "in per cent": f"{digits[:2]}.{digits[2:]}".encode(),
    }
    for end, order in (("little", "<"), ("big", ">")):
        single, double = struct.pack(f"{order}f", canary), struct.pack(f"{order}d", canary)
        forms[f"float32, {end} end first"] = single
        forms[f"float32, {end} end first, hex"] = single.hex().encode()
        forms[f"float64, {end} end first"] = double
        forms |= {f"float64, {end} end first, {form}": text for form, text in _bytes_in_text(double).items()}
    return forms


def bytes_forms(canary: bytes) -> dict[str, bytes]:
    """Return all that a row of pixels might look like."""
    return {"as it is": canary, "backwards": canary[::-1], **_bytes_in_text(canary)}


def _bytes_in_text(raw: bytes) -> dict[str, bytes]:
    forms = {"hex": raw.hex().encode(), "hex in capitals": raw.hex().upper().encode()}
    for offset in range(3):
        # What neighbours share a group of three bytes with is not known: those characters are left out.
        coded = base64.b64encode(bytes(offset) + raw + bytes((-offset - len(raw)) % 3))
        first, last = -(-8 * offset // 6), (8 * (offset + len(raw))) // 6
        forms[f"base64, {offset} bytes in"] = coded[first:last]
        forms[f"base64 of URLs, {offset} bytes in"] = coded[first:last].translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def needles(canaries: Mapping[str, str | float | bytes]) -> dict[str, bytes]:
    """Return the forms of all canaries, as `name: form`."""
    found = {}
    for name, canary in canaries.items():
        if isinstance(canary, str):
            forms = text_forms(canary)
        else:
            forms = bytes_forms(canary) if isinstance(canary, bytes) else number_forms(canary)
        found |= {f"{name}: {form}": text for form, text in forms.items()}
    return found


def search(wanted: Mapping[str, bytes], places: Mapping[str, bytes]) -> list[str]:
    """Return `place: canary: form` for all that is found."""
    return [f"{place}: {name}" for place, content in places.items() for name, form in wanted.items() if form in content]


def what_left(recorders: Mapping[str, Recorder]) -> dict[str, bytes]:
    """Return all that went over the wire, both ways: what came back was once sent."""
    places = {f"{site} sent": b"\n".join(recorder.outgoing()) for site, recorder in recorders.items()}
    return places | {f"{site} got": b"\n".join(recorder.incoming()) for site, recorder in recorders.items()}


def what_the_hub_has(folder: Path, log: Path) -> dict[str, bytes]:
    """Return the database as text and as bytes, every file in the store with its name, and the log."""
    places = {"hub's log": log.read_bytes()}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            places[name] = name.encode() + b"\n" + path.read_bytes()
    with closing(sqlite3.connect(f"file:{folder / 'hub.db'}?mode=ro", uri=True)) as database:
        places["tables"] = "\n".join(database.iterdump()).encode()
    return places


def what_a_site_logged(folders: Iterable[Path]) -> dict[str, bytes]:
    """Return the egress logs and the documents beside them."""
    paths = [path for folder in folders for path in sorted((folder / "outbox").rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in paths}
