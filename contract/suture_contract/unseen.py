"""Characters that are not shown, or that change what is shown around them: no text that others read may hold them.

With a text direction mark, `gpj.exe` reads `exe.jpg`; a NUL ends a text for some programs, and not for others.
"""

from __future__ import annotations

import unicodedata

#: Unicode categories: control, format (right-to-left overrides, zero-width spaces), surrogates, private use, line and
#: paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # part of how Persian and many Indian scripts are spelt, and of emoji
LINES = "\n\r\t"


def first_unseen(text: str, *, besides: str = "") -> int | None:
    """Return where the first character stands that is not shown, None where all are; those in `besides` may be there.

    It takes one pass over the text, whatever that holds.
    """
    if text.isprintable():
        return None
    unseen = {c for c in set(text) if unicodedata.category(c) in _UNSEEN} - {*_JOINERS, *besides}
    return next((index for index, c in enumerate(text) if c in unseen), None) if unseen else None


def name_of(character: str) -> str:
    """Return what such a character is called: `U+202E RIGHT-TO-LEFT OVERRIDE`."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'control character')}"


def legible(text: str, *, besides: str = "") -> str:
    """Return `text` if what is shown of it is all there is; raise `ValueError` otherwise."""
    place = first_unseen(text, besides=besides)
    if place is not None:
        raise ValueError(
            "holds characters that are not shown, such as control characters or text direction marks: "
            f"{name_of(text[place])}"
        )
    return text


def legible_lines(text: str) -> str:
    """Return a text of several lines as `legible` does."""
    return legible(text, besides=LINES)
