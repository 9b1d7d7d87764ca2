"""What a page on the loopback address, or a form of one, is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Rendered:
    """A template and what it shows."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Download:
    """Bytes to be kept as a file."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Picture:
    """A picture in a page, as PNG."""

    content: bytes


#: A page, a file, a picture, or the path to go on to.
Answer: TypeAlias = Rendered | Download | Picture | str
