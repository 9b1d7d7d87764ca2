"""Numbers in a column that most likely stand for no value, such as -999: never taken for measured ones in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.toml_text import toml

#: What is written for no value: below all that is measured, or far above it.
_BELOW = (-9.0, -99.0, -999.0, -9999.0, -99999.0)
_ABOVE = (99.0, 999.0, 9999.0, 99999.0)
#: How many times larger than the largest other value a code is.
_FAR = 5
#: A lone 99 may be measured.
_OFTEN = 2


class NoValue:
    """Looks at columns of numbers, some rows at a time, for codes; those that `stated` names are taken out."""

    def __init__(self, names: Sequence[str], stated: Mapping[str, Sequence[float]]) -> None:
        self._names, self._stated = names, stated
        self._times = np.zeros((len(_BELOW) + len(_ABOVE), len(names)), dtype=np.int64)
        self._lowest = np.full(len(names), np.inf)
        self._highest = np.full(len(names), -np.inf)
        self._rows = 0

    def take_out(self, values: NDArray[np.float64]) -> None:
        """Make what stands for no value NaN in `values` `(N, F)`, in place, and count what may."""
        for place, name in enumerate(self._names):
            if codes := self._stated.get(name):
                column = values[:, place]
                column[np.isin(column, codes)] = np.nan
        self._rows += len(values)
        coded = np.zeros(values.shape, dtype=np.bool_)
        for number, code in enumerate((*_BELOW, *_ABOVE)):
            own = values == code
            self._times[number] += own.sum(axis=0)
            coded |= own
        measured = ~(coded | np.isnan(values))
        self._lowest = np.minimum(self._lowest, np.where(measured, values, np.inf).min(axis=0, initial=np.inf))
        self._highest = np.maximum(self._highest, np.where(measured, values, -np.inf).max(axis=0, initial=-np.inf))

    def doubts(self) -> dict[str, list[float]]:
        """Return, by column, what looks like a code; nothing for columns of which it is said what stands for none."""
        codes_of: dict[str, list[float]] = {}
        for number, code in enumerate((*_BELOW, *_ABOVE)):
            times = self._times[number]
            far = self._lowest >= 0 if code < 0 else self._highest * _FAR < code
            enough = times >= (_OFTEN if code == 99 else 1)
            for place in np.flatnonzero(far & enough & np.isfinite(self._lowest)).tolist():
                if self._names[place] not in self._stated:
                    codes_of.setdefault(self._names[place], []).append(code)
        return codes_of

    def refuse(self, where: str, *, filled: bool) -> None:
        """Raise `SutureError` `dataset.no_value` where a column holds what looks like a code.

        `filled` says whether empty cells of these columns can be filled.
        """
        codes_of = self.doubts()
        if not codes_of:
            return
        name, codes = next(iter(codes_of.items()))
        others = f", and {len(codes_of) - 1} more columns have such values" if len(codes_of) > 1 else ""
        written = {column: [int(code) for code in own] for column, own in codes_of.items()}
        times = int(self._times[[(*_BELOW, *_ABOVE).index(code) for code in codes], self._names.index(name)].sum())
        raise SutureError(
            "dataset.no_value",
            f"the column '{name}' holds {' and '.join(f'{code:g}' for code in codes)} in {times} of {self._rows} rows, "
            f"far from all its other values: most likely nothing was measured there{others}",
            where=where,
            hint=(f'say so, empty = {toml(written)}, and missing = "mean" fills them' if filled else "leave these out")
            + f"; where it was measured, empty = {toml({name: []})}",
        )


__all__ = ["NoValue"]
