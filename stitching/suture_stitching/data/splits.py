"""Dividing samples into train, validation and test: as the data say, or deterministically from a seed (torch-free)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from suture_stitching.data.spec import SPLITS, Split, SplitRule
from suture_stitching.errors import SutureError

Indices: TypeAlias = NDArray[np.int64]
Splits: TypeAlias = Mapping[Split, Indices]


def by_name(names: Sequence[str], *, where: str) -> dict[Split, Indices]:
    """Return the indices of each split, given one split name per sample; raise `SutureError` for an unknown name."""
    for row, name in enumerate(names):
        if name not in SPLITS:
            raise SutureError(
                "dataset.unknown_split",
                f"sample {row}: the split is not one of {', '.join(SPLITS)}",
                where=where,
                hint="correct this entry, or remove the split to have it made from a seed",
            )
    array = np.asarray(names, dtype=object)
    return {split: np.flatnonzero(array == split) for split in SPLITS}


def stratified(keys: Sequence[bytes], classes: Sequence[Hashable], rule: SplitRule) -> dict[Split, Indices]:
    """Divide samples so that each class is shared out alike; return the indices of each split, ascending.

    `keys` name the samples (a relative path, or a digest of the content) and `classes` are their strata. The result
    depends on keys and seed alone, never on the order of the samples, and samples with the same key stay together, so
    that a copy of a training image is never tested on.
    """
    strata: dict[Hashable, dict[bytes, list[int]]] = {}
    for index, (key, stratum) in enumerate(zip(keys, classes, strict=True)):
        strata.setdefault(stratum, {}).setdefault(key, []).append(index)
    chosen: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for groups in strata.values():
        samples = sum(len(group) for group in groups.values())
        test, validation = _shares(samples, rule)
        placed = 0
        for key in sorted(groups, key=lambda key: _rank(key, rule.seed)):
            split: Split = "test" if placed < test else "validation" if placed < test + validation else "train"
            chosen[split] += groups[key]
            placed += len(groups[key])
    return {split: np.array(sorted(indices), dtype=np.int64) for split, indices in chosen.items()}


def carve_validation(
    given: Splits, keys: Sequence[bytes], classes: Sequence[Hashable], rule: SplitRule
) -> dict[Split, Indices]:
    """Return `given` with a validation split taken from its training split where it has none."""
    if len(given["validation"]) or not len(given["train"]):
        return dict(given)
    train = given["train"]
    share = rule.validation / (1 - rule.test)
    # A vanishing test share: the test split is given and must stay as it is.
    inner = stratified(
        [keys[i] for i in train],
        [classes[i] for i in train],
        SplitRule.model_construct(validation=share, test=0.0, seed=rule.seed),
    )
    return {"train": train[inner["train"]], "validation": train[inner["validation"]], "test": given["test"]}


def _shares(samples: int, rule: SplitRule) -> tuple[int, int]:
    """Numbers of (test, validation) samples out of `samples`: one each at least, as long as one is left to train."""
    test = round(samples * rule.test)
    validation = round(samples * rule.validation)
    if rule.test > 0:
        test = max(test, min(1, samples - 1))
    validation = max(validation, min(1, samples - test - 1))
    validation = max(0, min(validation, samples - test - 1))
    return test, validation


def _rank(key: bytes, seed: int) -> bytes:
    return hashlib.sha256(str(seed).encode() + b"\0" + key).digest()
