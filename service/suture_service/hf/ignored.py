"""Which files a `.gitignore` leaves out, as git reads it.

Whoever uploads sends the patterns, so no regular expression is made of them: a short one can take longer than anybody
waits. A wildcard here takes the first place that fits and never comes back to look for another, which finds whatever
there is to find; and the steps are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from suture_service.hf.errors import BadRequest

#: Comparisons for one request: many more than honest patterns and a thousand files need, and about a second.
MAX_STEPS = 2_000_000
#: As long as so many comparisons takes what is done before the first one of a pattern and a path.
_BEGUN = 8

#: Of a part of a pattern between two wildcards: one character itself, or whether a character fits.
_Sign: TypeAlias = "str | Callable[[str], bool]"
_Sort = TypeVar("_Sort")
_Item = TypeVar("_Item")


class _Pieces(Generic[_Sort]):
    """What must come in this order: the first piece at the start, the last at the end, anything between them."""

    def __init__(self, pieces: Sequence[Sequence[_Sort]]) -> None:
        self.first, self.between, self.last = pieces[0], pieces[1:-1], pieces[-1]
        self.is_whole = len(pieces) == 1
        self.length = sum(map(len, pieces))


#: A part of a path: its pieces between `*`. None stands for `**`, any number of parts.
_Part: TypeAlias = "_Pieces[_Sign] | None"


@dataclass(frozen=True)
class _Rule:
    parts: _Pieces[_Pieces[_Sign]]
    keeps: bool
    folders_only: bool


class Ignored:
    """The rules of one `.gitignore`; the last that fits a file decides, and what is in an ignored folder is, too."""

    def __init__(self, text: str) -> None:
        rules = [rule for line in text.split("\n") if (rule := _rule(line.removesuffix("\r"))) is not None]
        self._rules = rules[::-1]
        self._folders: dict[str, bool] = {}
        self._steps = 0

    def __call__(self, path: str) -> bool:
        """Say whether the file at `path` is left out; raises `BadRequest` where all in all it takes too long."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in self._folders:
                self._folders[folder] = self._decide(parts[:depth], is_folder=True)
            if self._folders[folder]:
                return True
        return self._decide(parts, is_folder=False)

    def _decide(self, parts: Sequence[str], *, is_folder: bool) -> bool:
        for rule in self._rules:
            self._count(_BEGUN)
            if (is_folder or not rule.folders_only) and self._fits(rule.parts, parts):
                return not rule.keeps
        return False

    def _fits(self, pattern: _Pieces[_Pieces[_Sign]], parts: Sequence[str]) -> bool:
        """Whether the parts of a path fit; each `**` takes as few as it can."""
        return _in_turn(pattern, parts, self._names)

    def _names(self, pieces: _Pieces[_Sign], name: str) -> bool:
        """Whether one part of a path fits; each `*` takes as few characters as it can."""
        self._count()
        return _in_turn(pieces, name, self._is)

    def _is(self, sign: _Sign, character: str) -> bool:
        self._count()
        return sign == character if isinstance(sign, str) else sign(character)

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            hint = "shorten .gitignore, upload fewer files at a time, or leave .gitignore out of the commit"
            raise BadRequest("commit.ignore", "too many patterns for so many files", where="gitIgnore", hint=hint)


def _in_turn(pieces: _Pieces[_Sort], whole: Sequence[_Item], fits: Callable[[_Sort, _Item], bool]) -> bool:
    """Whether `whole` is the pieces in their order."""

    def at(piece: Sequence[_Sort], start: int) -> bool:
        return all(fits(sign, item) for sign, item in zip(piece, whole[start : start + len(piece)], strict=True))

    if pieces.length > len(whole) or (pieces.is_whole and pieces.length < len(whole)):
        return False
    start, end = len(pieces.first), len(whole) - len(pieces.last)
    if not at(pieces.first, 0) or not (pieces.is_whole or at(pieces.last, end)):
        return False
    for piece in pieces.between:
        while start + len(piece) <= end and not at(piece, start):
            start += 1
        if start + len(piece) > end:
            return False
        start += len(piece)
    return True


def _between(pattern: Sequence[_Part]) -> list[list[_Pieces[_Sign]]]:
    """Return what is between the `**` of a pattern."""
    pieces: list[list[_Pieces[_Sign]]] = [[]]
    for part in pattern:
        if part is None:
            pieces.append([])
        else:
            pieces[-1].append(part)
    return pieces


def _rule(line: str) -> _Rule | None:
    """Return what a line says; None where it is empty, a comment, or nothing could ever fit it."""
    if line.startswith("#"):
        return None
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    keeps = line.startswith("!")
    line = line[keeps:]
    folders_only = line.endswith("/")
    line = line.removesuffix("/")
    names = line.removeprefix("/").split("/")
    if "" in names:
        return None
    parts: list[_Part] = []
    for index, name in enumerate(names):
        pieces = _part(name)
        if name == "**":
            parts.append(None)
            if index == len(names) - 1 and index > 0:
                parts.append(_Pieces(((), ())))  # what is in the folder, not the folder itself
        elif pieces is None:
            return None
        else:
            parts.append(pieces)
    if "/" not in line:
        parts.insert(0, None)  # at any depth
    return _Rule(_Pieces(_between(parts)), keeps, folders_only)


def _part(name: str) -> _Part:
    """Return the pieces between the `*` of one part; None for what git takes for a pattern that nothing fits."""
    pieces: list[list[_Sign]] = [[]]
    at = 0
    while at < len(name):
        sign = name[at]
        at += 1
        if sign == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append([])
        elif sign == "?":
            pieces[-1].append(lambda _: True)
        elif sign == "[":
            parsed = _class(name, at)
            if parsed is None:
                return None
            fits, at = parsed
            pieces[-1].append(fits)
        elif sign == "\\":
            if at == len(name):
                return None
            pieces[-1].append(name[at])
            at += 1
        else:
            pieces[-1].append(sign)
    return _Pieces(pieces)


def _class(name: str, at: int) -> tuple[Callable[[str], bool], int] | None:
    """Read `[...]`, whose content starts at `at`; return what it says of a character, and where it ends."""
    others = name[at : at + 1] in ("!", "^")
    at += others
    begin = at
    ranges: list[tuple[str, str]] = []
    while at < len(name) and (name[at] != "]" or at == begin):
        low, at = _escaped(name, at)
        high = low
        if name[at : at + 1] == "-" and name[at + 1 : at + 2] not in ("", "]"):
            high, at = _escaped(name, at + 1)
        ranges.append((low, high))
    if at >= len(name):
        return None
    among = tuple(ranges)
    return lambda character: others != any(low <= character <= high for low, high in among), at + 1


def _escaped(name: str, at: int) -> tuple[str, int]:
    escaped = name[at] == "\\" and at + 1 < len(name)
    return name[at + escaped], at + escaped + 1
