"""Dividing samples into train, validation and test: as the data say, or deterministically from a seed (torch-free)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.spec import SPLITS, Split, SplitRule
from suture_stitching.data.words import split_of

Indices: TypeAlias = NDArray[np.int64]
Splits: TypeAlias = Mapping[Split, Indices]
#: What tells samples apart, one per sample: a path, a digest of the content, or the group (the patient) it belongs to.
Keys: TypeAlias = Sequence[bytes] | NDArray[np.void]


def by_name(names: Sequence[str] | NDArray[Any], *, where: str) -> dict[Split, Indices]:
    """Return the indices of each split, given one name per sample, such as `val`; raise `SutureError` for others."""
    written, places = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)
    meant = [split_of(str(name)) for name in written]
    array = np.array([name or "" for name in meant], dtype=np.str_)[places.reshape(-1)]
    unknown = array == ""
    if unknown.any():
        raise SutureError(
            "dataset.unknown_split",
            f"sample {int(np.argmax(unknown))}: the split is not one of {', '.join(SPLITS)}",
            where=where,
            hint="correct this entry, or remove the split to have it made from a seed",
        )
    return {split: np.flatnonzero(array == split) for split in SPLITS}


def split_samples(
    keys: Keys,
    classes: ArrayLike,
    rule: SplitRule,
    *,
    names: Sequence[str] | NDArray[Any] | None = None,
    groups: Sequence[str] | NDArray[Any] | None = None,
    where: str,
) -> dict[Split, Indices]:
    """Divide by the split `names` if there are any, else by `rule`; samples of one of `groups` stay together.

    Raises `SutureError` `dataset.group_divided` where the names put one group into two splits.
    """
    if groups is not None:
        keys = [str(group).encode() for group in groups]
    if names is None:
        return stratified(keys, classes, rule)
    splits = by_name(names, where=where)
    if groups is not None:
        _check_groups(splits, np.asarray(groups), where)
    return carve_validation(splits, keys, classes, rule)


def stratified(keys: Keys, classes: ArrayLike, rule: SplitRule) -> dict[Split, Indices]:
    """Divide samples so that each class is shared out alike; return the indices of each split, ascending.

    `keys` name the samples and `classes` `(N,)` are their strata. The result depends on keys and seed alone, never on
    the order of the samples, and samples with the same key stay together (in the stratum that most of them are of), so
    that a copy of a training image is never tested on.
    """
    return _divide(_ranks(keys, rule.seed), np.asarray(classes), rule.validation, rule.test)


def carve_validation(splits: Splits, keys: Keys, classes: ArrayLike, rule: SplitRule) -> dict[Split, Indices]:
    """Return `splits` with a validation split taken from its training split where it has none."""
    if len(splits["validation"]) or not len(splits["train"]):
        return dict(splits)
    train = splits["train"]
    # No test share: the test split is given and must stay as it is.
    share = rule.validation / (1 - rule.test)
    inner = _divide(_ranks(keys, rule.seed)[train], np.asarray(classes)[train], share, 0.0)
    return {"train": train[inner["train"]], "validation": train[inner["validation"]], "test": splits["test"]}


def digests(samples: NDArray[Any]) -> NDArray[np.void]:
    """Return a key per sample of `samples` `(N, ...)`, made of its content."""
    keys = b"".join(hashlib.sha256(np.ascontiguousarray(sample).reshape(-1).data).digest() for sample in samples)
    return np.frombuffer(keys, dtype="V32")


def _divide(ranks: NDArray[np.uint64], classes: NDArray[Any], validation: float, test: float) -> dict[Split, Indices]:
    strata = _common_class(ranks, classes)
    order = np.lexsort((ranks, strata))
    places = np.zeros(len(order), dtype=np.int8)
    for members in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1):
        tested, validated = _shares(len(members), validation, test)
        group = np.cumsum(np.diff(ranks[members], prepend=ranks[members[0]]) != 0)
        # A group goes where its first sample falls; the last one trains, however large the groups are.
        before = np.searchsorted(group, group)
        place = np.where(before < tested, 2, np.where(before < tested + validated, 1, 0))
        places[members] = np.where(group == group[-1], 0, place)
    return {split: np.flatnonzero(places == place) for place, split in enumerate(SPLITS)}


def _common_class(ranks: NDArray[np.uint64], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Return, per sample, the class that most samples of its group have."""
    _, codes = np.unique(classes, return_inverse=True)
    distinct, groups = np.unique(ranks, return_inverse=True)
    if len(distinct) == len(ranks):
        return codes.astype(np.int64)
    width = int(codes.max()) + 1
    pairs, counts = np.unique(groups * width + codes, return_counts=True)
    # By group, the largest count last; of equal ones the first class.
    ascending = np.lexsort((-(pairs % width), counts, pairs // width))
    last = np.append(np.flatnonzero(np.diff(pairs[ascending] // width)), len(pairs) - 1)
    common: NDArray[np.int64] = (pairs[ascending][last] % width)[groups]
    return common


def _check_groups(splits: Splits, groups: NDArray[Any], where: str) -> None:
    pairs: tuple[tuple[Split, Split], ...] = (("train", "validation"), ("train", "test"), ("validation", "test"))
    for first, second in pairs:
        both = np.isin(groups[splits[second]], groups[splits[first]])
        if both.any():
            raise SutureError(
                "dataset.group_divided",
                f"sample {int(splits[second][np.argmax(both)])} is in {second}, others of its group are in {first}",
                where=where,
                hint="all samples of a patient belong into one split; leave the split out to have it made so",
            )


def _shares(samples: int, validation_share: float, test_share: float) -> tuple[int, int]:
    """Numbers of (test, validation) samples out of `samples`: one each at least, as long as one is left to train."""
    test = round(samples * test_share)
    validation = round(samples * validation_share)
    if test_share > 0:
        test = max(test, min(1, samples - 1))
    validation = max(validation, min(1, samples - test - 1))
    validation = max(0, min(validation, samples - test - 1))
    return test, validation


def _ranks(keys: Keys, seed: int) -> NDArray[np.uint64]:
    """Return a number per key, random but for the seed."""
    start = hashlib.sha256(str(seed).encode() + b"\0")
    ranks = bytearray()
    for key in keys:
        own = start.copy()
        own.update(key)
        ranks += own.digest()[:8]
    return np.frombuffer(bytes(ranks), dtype=">u8").astype(np.uint64)
