"""How measured numbers are rounded for people: in one way everywhere, by the decimals they are written with."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal


def fixed(value: float, places: int, *, percent: bool = False, sign: bool = False) -> str:
    """Return a number with so many decimals, halves away from zero: 0.5725 is 0.573, and 57.3 in per cent.

    With `sign`, one that is not negative begins with `+`. What is no number is written as Python does.
    """
    plus = "+" if sign else ""
    if not math.isfinite(value):
        return f"{value:{plus}f}"
    # The shortest decimals that mean this number: its binary digits lie at random beside a half.
    written = Decimal(repr(float(value))).scaleb(2 if percent else 0)
    return f"{written.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):{plus}f}"


__all__ = ["fixed"]
