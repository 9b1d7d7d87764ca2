"""How much there is in a JSON text, told before it is parsed: a few MiB of brackets become hundreds of them."""

from __future__ import annotations

import re

#: A string, an opening bracket or a comma: there are at most as many values as there are of these. What is in a string
#: counts as one. A run that was matched is never divided again, so that every text takes one pass.
_VALUES = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)


def holds_more(text: bytes, most: int) -> bool:
    """Say whether a JSON text holds more than `most` values, names of fields counted; stops as soon as it does."""
    if sum(map(text.count, (b'"', b"[", b"{", b","))) <= most:
        return False
    return any(count > most for count, _ in enumerate(_VALUES.finditer(text), 1))
