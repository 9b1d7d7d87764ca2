"""Text that others wrote, made fit for a terminal and for a file that somebody shows on one."""

from __future__ import annotations

import io


def inert(text: str) -> str:
    """Return text with its lines as they are, and escapes such as `\\x1b` in place of whatever else is not printed."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def one_line(text: str) -> str:
    """Return text on one line, without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _shown(character: str) -> str:
    kept = character.isprintable() or character in "\n\t"
    return character if kept else character.encode("unicode_escape").decode()


class InertStream(io.TextIOWrapper):
    """Text for a file that is open already, each write made `inert`."""

    def __init__(self, descriptor: int) -> None:
        file = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(io.BufferedWriter(file), encoding="utf-8", line_buffering=True)

    def write(self, text: str, /) -> int:
        """Write text, and return how many characters that were."""
        super().write(inert(text))
        return len(text)
