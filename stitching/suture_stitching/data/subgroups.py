"""Subgroups of samples that a site names: by the texts of a column, or by where its numbers lie."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.dataset import NamedSubgroup
from suture_stitching.data.spec import DatasetSpec


def read_subgroups(spec: DatasetSpec, read: Callable[[str, bool], NDArray[Any]]) -> tuple[NamedSubgroup, ...]:
    """Return the subgroups that `spec` names, in its order; samples of other values are in none.

    `read` gives a column's values `(N,)`, as numbers or as texts. Raises `SutureError` `dataset.subgroups` naming the
    column.
    """
    subgroups = []
    for column, listed in spec.subgroups.items():
        banded = not isinstance(listed[0], str)
        values = read(column, banded)
        if banded:
            bounds = [-np.inf, *map(float, listed), np.inf]
            parts = [(values >= low) & (values < high) for low, high in pairwise(bounds)]
        else:
            parts = [values == value for value in listed]
        names = spec.subgroup_values[column]
        subgroups += [NamedSubgroup(column, name, part) for name, part in zip(names, parts, strict=True)]
        if not any(part.any() for part in parts):
            raise SutureError(
                "dataset.subgroups",
                f"no sample has one of the values that subgroups name for '{column}'",
                where=str(spec.path),
                hint="name values as they are in the data, or numbers to divide a column of numbers at",
            )
    return tuple(subgroups)


def as_numbers(values: NDArray[Any], column: str, where: str) -> NDArray[np.float64]:
    """Return a column's values as numbers, NaN for those that are missing; raises `SutureError` `dataset.subgroups`."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise SutureError(
            "dataset.subgroups",
            f"'{column}' has values that are no numbers, and cannot be divided at numbers",
            where=where,
            hint="name the values themselves, as texts",
        ) from None


__all__ = ["as_numbers", "read_subgroups"]
