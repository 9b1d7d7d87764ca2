import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, SplitRule
from suture_stitching.data.splits import by_name, carve_validation, stratified

samples = st.lists(st.tuples(st.binary(min_size=1, max_size=8), st.integers(0, 3)), min_size=1, max_size=80)
rules = st.builds(SplitRule, validation=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4), seed=st.integers(0, 2**63 - 1))


def place(items, rule):
    keys, classes = zip(*items, strict=True)
    splits = stratified(keys, classes, rule)
    return splits, {(items[i], split) for split in SPLITS for i in splits[split]}


@given(samples, rules)
def test_every_sample_is_in_exactly_one_split(items, rule):
    splits, _ = place(items, rule)
    assert sorted(np.concatenate([splits[split] for split in SPLITS])) == list(range(len(items)))


@given(samples, rules, st.randoms(use_true_random=False))
def test_reordering_the_samples_changes_nothing(items, rule, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    assert place(items, rule)[1] == place(shuffled, rule)[1]


@given(samples, rules)
def test_copies_of_one_sample_stay_together(items, rule):
    _, placed = place(items, rule)
    assert len(placed) == len(set(items))


def test_each_class_is_shared_out_alike_and_another_seed_divides_otherwise():
    classes = [0] * 800 + [1] * 200
    keys = [str(i).encode() for i in range(1000)]
    splits = stratified(keys, classes, SplitRule(validation=0.2, test=0.3, seed=1))
    rare = {split: sum(classes[i] for i in indices) for split, indices in splits.items()}
    assert {split: len(indices) for split, indices in splits.items()} == {"train": 500, "validation": 200, "test": 300}
    assert rare == {"train": 100, "validation": 40, "test": 60}
    other = stratified(keys, classes, SplitRule(seed=2))
    assert set(splits["test"]) != set(other["test"])


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_a_small_class_is_trained_on_first_then_tested_then_validated(count, expected):
    splits = stratified([bytes([i]) for i in range(count)], [0] * count, SplitRule())
    assert tuple(len(splits[split]) for split in SPLITS) == expected


def test_a_missing_validation_split_is_taken_from_train_and_test_stays():
    names = ["train"] * 70 + ["test"] * 30
    given_splits = by_name(names, where="x")
    splits = carve_validation(given_splits, [str(i).encode() for i in range(100)], [0] * 100, SplitRule())
    assert list(splits["test"]) == list(range(70, 100))
    assert len(splits["validation"]) == 20
    assert sorted([*splits["train"], *splits["validation"]]) == list(range(70))


def test_an_unknown_split_name_is_refused_by_position():
    with pytest.raises(SutureError, match="sample 1") as error:
        by_name(["Training", "holdout"], where="data.csv: split")
    assert error.value.code == "dataset.unknown_split"
