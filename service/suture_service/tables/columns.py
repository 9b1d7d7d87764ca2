"""Types of columns."""

from __future__ import annotations

from typing import Any

from sqlalchemy import String

NAME = String(96)
#: In the order of its characters' numbers on either database, as Python compares: `parts` are found by it.
PATH = String(1024).with_variant(String(1024, collation="C"), "postgresql")
STATE = String(16)
SHA256 = String(64)
ID = String(40)
Json = dict[str, Any]


class BlobDigest(String):
    """The sha256 of content in the blob store. What no column of this type names is garbage (`maintenance`)."""


BLOB = BlobDigest(64)
