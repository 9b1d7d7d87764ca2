"""Tokens are told to nobody, whatever text they have got into."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"suture_[A-Za-z0-9-]+_[A-Za-z0-9_-]{8,}")


def without_tokens(text: str) -> str:
    """Return the text without what looks like a token of a party or site."""
    return _TOKEN.sub("suture_…", text)
