"""The documents that leave a site are closed and finite: nothing can be smuggled in, nothing is lost on the way."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from suture_contract.compatibility import check_labels, incompatibilities
from suture_contract.documents import (
    Candidate,
    CandidateReport,
    CandidateSet,
    Evaluation,
    Interval,
    Match,
    Missing,
    PartyReport,
    Report,
    ReportLineage,
    Score,
    SplitScores,
    Stitch,
)
from suture_contract.errors import SutureError
from suture_contract.model.metadata import MemberRef, ModelMetadata, check_name, check_repo

finite = st.floats(-1e6, 1e6, allow_nan=False)
intervals = st.builds(Interval, value=finite, low=finite, high=finite)
ids = st.integers(0, 99).map(lambda i: f"c{i:02}")
scores = st.builds(
    Score,
    value=finite,
    low=finite,
    high=finite,
    difference=st.none() | intervals,
    against=st.dictionaries(ids, intervals, max_size=2),
)
#: What may be said to others: see `suture_contract.unseen`.
seen = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Zl", "Zp"]), max_size=20)
members = st.builds(
    MemberRef,
    repo=st.sampled_from(["north/digits", "south/Scans_2.1"]),
    revision=st.text("0123456789abcdef", min_size=40, max_size=40),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
stitches = st.builds(
    Stitch, source=st.just(0), target=st.just(1), weight=st.just("s0.weight"), bias=st.just("s0.bias"), r2=finite
)
matches = st.builds(
    Match,
    points=st.dictionaries(st.sampled_from("01"), st.sampled_from(["n1", "n17"])),
    alpha=st.floats(0, 1),
    stitches=st.lists(stitches, max_size=2).map(tuple),
)


@st.composite
def candidate_sets(draw):
    found = draw(st.lists(members, min_size=2, max_size=3))
    everyone = tuple(range(len(found)))
    kinds = [*(("single", (i,), ()) for i in everyone), ("ensemble", everyone, ())]
    kinds += [
        ("stitched", everyone, tuple(joined)) for joined in draw(st.lists(st.lists(matches, max_size=2), max_size=3))
    ]
    return CandidateSet(
        task=draw(st.sampled_from(["classification", "segmentation", "regression"])),
        members=tuple(found),
        labels=draw(st.none() | st.just(("a", "b"))),
        n=draw(st.integers(0, 10**9)),
        seed=draw(st.integers()),
        candidates=tuple(
            Candidate(id=f"c{i:02}", kind=kind, members=which, matches=joined, refined=draw(st.booleans()))
            for i, (kind, which, joined) in enumerate(kinds)
        ),
    )


CHOSEN = CandidateReport(id="c03", kind="stitched", label="stitched", metrics={}, front=True)
documents = st.one_of(
    candidate_sets(),
    st.builds(
        Evaluation,
        metric=st.sampled_from(["accuracy", "dice", "mae"]),
        higher_is_better=st.booleans(),
        own=st.none() | st.integers(0, 5),
        splits=st.dictionaries(
            st.sampled_from(["validation", "test"]),
            st.builds(SplitScores, n=st.integers(0, 10**6), scores=st.dictionaries(ids, scores, max_size=3)),
        ),
    ),
    st.builds(
        Report,
        requester=st.just("north"),
        parties=st.dictionaries(
            st.sampled_from(["north", "south"]),
            st.builds(
                PartyReport,
                metric=st.just("auroc"),
                n=st.integers(0, 10**6),
                rows=st.dictionaries(st.sampled_from(["chosen", "own", "peer:south/digits", "ensemble"]), intervals),
                verdict=st.sampled_from(["adopt", "care", "reject"]),
                differences=st.dictionaries(st.sampled_from(["ensemble", "stitched"]), intervals),
                gains=st.dictionaries(st.sampled_from(["own", "ensemble", "routed"]), intervals),
            ),
        ),
        chosen=st.just("c03"),
        candidates=st.lists(
            st.builds(
                CandidateReport,
                id=ids,
                kind=st.just("stitched"),
                label=seen,
                metrics=st.dictionaries(st.just("north"), finite),
                front=st.booleans(),
                words=st.none() | seen,
            ),
            max_size=3,
        ).map(lambda found: (CHOSEN, *found)),
        lineage=st.builds(ReportLineage, job=st.just("job_1"), members=st.lists(members, max_size=2).map(tuple)),
        missing=st.lists(
            st.builds(Missing, party=st.just("west"), reason=st.sampled_from(["declined", "no_answer"])), max_size=2
        ).map(tuple),
        hypervolume=st.none() | finite,
    ),
)


def objects(value, path=()):
    """Yield the path of every JSON object whose keys are fields (not names, ids or points)."""
    free = {"scores", "splits", "points", "metrics", "rows", "parties", "differences", "gains", "against"}
    if isinstance(value, dict):
        if not path or path[-1] not in free:
            yield path
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from objects(inner, (*path, index))


def numbers(value, path=()):
    """Yield the path of every floating-point number."""
    if isinstance(value, float):
        yield path
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*path, key))


def changed(content, path, change):
    """Return a copy of `content` in which `change` was applied to the container at `path`."""
    copy = json.loads(json.dumps(content))
    target = copy
    for key in path:
        target = target[key]
    change(target)
    return copy


@given(documents)
def test_a_document_survives_its_json(document):
    text = document.model_dump_json(by_alias=True)
    again = type(document).model_validate_json(text)
    assert again == document
    assert again.model_dump_json(by_alias=True) == text


@given(documents, st.data())
def test_an_unknown_field_is_refused_at_every_depth(document, data):
    content = json.loads(document.model_dump_json(by_alias=True))
    path = data.draw(st.sampled_from(list(objects(content))))
    extra = changed(content, path, lambda target: target.update(patient="mrs smith"))
    with pytest.raises(ValidationError, match="patient"):
        type(document).model_validate_json(json.dumps(extra))


@given(documents, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_a_number_that_is_not_finite_is_refused(document, value, data):
    content = json.loads(document.model_dump_json(by_alias=True))
    places = list(numbers(content))
    if not places:
        return
    path = data.draw(st.sampled_from(places))
    broken = changed(content, path[:-1], lambda target: target.__setitem__(path[-1], value))
    with pytest.raises(ValidationError):
        type(document).model_validate_json(json.dumps(broken))


@given(documents)
def test_another_schema_version_is_refused(document):
    content = json.loads(document.model_dump_json(by_alias=True))
    with pytest.raises(ValidationError):
        type(document).model_validate({**content, "schema": content["schema"].replace("/1", "/2")})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Candidate, {"id": "c1", "kind": "single", "members": [0]}),
        (Candidate, {"id": "c01", "kind": "best", "members": [0]}),
        (Match, {"points": {"0": "../n1"}, "alpha": 0.5, "stitches": []}),
        (Match, {"points": {"zero": "n1"}, "alpha": 0.5, "stitches": []}),
        (Match, {"points": {}, "alpha": 1.5, "stitches": []}),
        (Stitch, {"source": 0, "target": 1, "weight": "a/b", "bias": "b"}),
        (Stitch, {"source": -1, "target": 1, "weight": "a", "bias": "b"}),
        (Missing, {"party": "west", "reason": "the chief physician said no"}),
        (SplitScores, {"n": -1, "scores": {}}),
        (SplitScores, {"n": 1, "scores": {"mrs smith": {"value": 1, "low": 1, "high": 1}}}),
    ],
)
def test_values_outside_their_pattern_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind.model_validate(values)


JOINED = [
    {"id": "c00", "kind": "single", "members": [0]},
    {"id": "c01", "kind": "single", "members": [1]},
    {"id": "c02", "kind": "ensemble", "members": [0, 1]},
    {
        "id": "c03",
        "kind": "stitched",
        "members": [0, 1],
        "matches": [
            {
                "points": {"0": "n1", "1": "n2"},
                "alpha": 0.5,
                "stitches": [{"source": 0, "target": 1, "weight": "w", "bias": "b"}],
            }
        ],
    },
]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ((0, "members"), [1], "members alone come first"),
        ((1, "kind"), "ensemble", "members alone come first"),
        ((2, "members"), [0], "members alone come first"),
        ((3, "id"), "c02", "count up"),
        ((3, "id"), "c07", "count up"),
        ((3, "members"), [0, 2], "only 2 members"),
        ((3, "matches", 0, "points"), {"0": "n1", "2": "n2"}, "only 2 members"),
        ((3, "matches", 0, "stitches", 0, "source"), 2, "only 2 members"),
        ((3, "matches", 0, "stitches", 0, "source"), 1, "two different members"),
    ],
)
def test_candidates_name_only_what_is_there(path, value, says):
    content = {
        "task": "classification",
        "members": [{"repo": "north/a", "revision": "a" * 40, "sha256": "1" * 64}] * 2,
        "n": 1,
        "seed": 0,
        "candidates": JOINED,
    }
    CandidateSet.model_validate(content)
    broken = changed(JOINED, path[:-1], lambda target: target.__setitem__(path[-1], value))
    with pytest.raises(ValidationError, match=says):
        CandidateSet.model_validate({**content, "candidates": broken})


METADATA = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"num_channels": 1, "spatial_shape": [8, 8], "value_range": [0, 1]}},
    "outputs": {"class": {"num_channels": 2}},
    "labels": ["normal", "pneumonia"],
    "license": "Apache-2.0",
}


def image(channels, *sizes, **given):
    return {"inputs": {"image": {"num_channels": channels, "spatial_shape": sizes, "value_range": [0, 1], **given}}}


def metadata(**changes):
    return ModelMetadata.from_json(
        json.dumps({key: value for key, value in {**METADATA, **changes}.items() if value is not None})
    )


def test_metadata_survives_its_canonical_text():
    first = metadata(
        description="naïve ünïcode",
        training_data={"n": 900},
        lineage={
            "job": "job_1",
            "requester": "north",
            "members": [{"repo": "north/digits", "revision": "a" * 40, "sha256": "1" * 64}],
            "candidate": "c07",
        },
    )
    text = first.to_json()
    again = ModelMetadata.from_json(text)
    assert again == first
    assert again.to_json() == text
    assert text.endswith("}\n")
    assert "null" not in text


def test_inputs_keep_the_order_of_the_graphs_inputs():
    two = {"volume": {"num_channels": 2}, "age": {"num_channels": 1}}
    assert list(ModelMetadata.from_json(metadata(inputs=two).to_json()).inputs) == ["volume", "age"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"task": None}, "task"),
        ({"license": None}, "license"),
        ({"inputs": None}, "inputs"),
        ({"inputs": {}}, "inputs"),
        ({"licence": "MIT"}, "licence"),
        ({"inputs": {"image": {"num_channels": 1, "size": 8}}}, "inputs.image.size"),
        ({"inputs": {"image": {"num_channels": 0}}}, "inputs.image.num_channels"),
        ({"inputs": {"image": {"num_channels": 3, "channels": ["r", "g"]}}}, "channel_def: one entry per channel"),
        ({"inputs": {"image": {"num_channels": 2, "preprocessing": {"mean": [0], "std": [1]}}}}, "preprocessing.mean"),
        ({"inputs": {"image": {"num_channels": 1, "spatial_shape": [8, 8], "spacing": [1]}}}, "spacing"),
        ({"inputs": {"image": {"num_channels": 1, "value_range": [1, 0]}}}, "value_range"),
        ({"labels": None}, "labels"),
        ({"labels": ["a"]}, "labels"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"schema": "suture.model/2"}, "schema"),
        ({"eval_metrics": {"accuracy": "high"}}, "eval_metrics.accuracy"),
    ],
)
def test_metadata_that_is_wrong_names_the_field(changes, field):
    with pytest.raises(SutureError) as error:
        metadata(**changes)
    assert error.value.code == "metadata.invalid"
    assert field in error.value.message
    assert error.value.where == "suture.json"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field", ['"eval_metrics": {"accuracy": %s}', '"inputs": {"image": {"num_channels": 1, "value_range": [0, %s]}}']
)
def test_metadata_holds_finite_numbers_only(field, value):
    text = json.dumps({key: item for key, item in METADATA.items() if not field.startswith(f'"{key}"')})
    with pytest.raises(SutureError):
        ModelMetadata.from_json(text[:-1] + ", " + field % value + "}")


def test_metadata_that_is_not_json_or_far_too_long_is_refused():
    for text in ("", "[]", "{", "null"):
        with pytest.raises(SutureError):
            ModelMetadata.from_json(text)
    with pytest.raises(SutureError) as error:
        ModelMetadata.from_json(b" " * 300_000)
    assert error.value.code == "metadata.too_large"


@pytest.mark.parametrize("name", ["a", "north", "St_Mary.2", "0-0", "x" * 96])
def test_good_names(name):
    assert check_name(name) == name
    assert check_repo(f"{name}/{name}") == f"{name}/{name}"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "a-", ".a", "a.", "a--b", "a..b", "a b", "a/b", "ä", "a\n", "a.git", "x" * 97, "a\0"]
)
def test_bad_names(name):
    with pytest.raises(ValueError):
        check_name(name)
    with pytest.raises(ValueError):
        check_repo(f"good/{name}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, None),
        ({"labels": ["flu", "cold"]}, None),
        (image(1, None, None), None),
        (image(3, 8, 8), None),
        (image(4, 8, 8), "1 channel(s) cannot be made of 4"),
        (image(1, 8, 9), None),
        (image(1, 8, 8, 8), "8 x 8 x 8"),
        (image(1, 8, 8, value_range=None), "value_range"),
        (image(1, 8, 8, format="table"), "table"),
        (image(1, 8, 8, dtype="bfloat16"), "bfloat16"),
        (image(1, 8, 8, dtype="int64"), "int64"),
        ({"task": "regression", "labels": None}, "regression"),
        ({"inputs": {"a": {"num_channels": 1}, "b": {"num_channels": 1}}}, "several"),
    ],
)
def test_models_that_cannot_be_combined_say_why(changes, says):
    problems = incompatibilities([("north/a", metadata()), ("south/b", metadata(**changes))])
    if says is None:
        assert problems == []
    else:
        assert problems
        assert any(says in problem and "south/b" in problem for problem in problems)
    assert incompatibilities([("north/a", metadata())]) == ["a stitch needs at least two models"]


ALIKE = [
    ("normal", "Normal"),
    ("no finding", "No_Finding"),
    ("no finding", "no-finding "),
    ("L\u00e4sion", "La\u0308sion"),
]


@pytest.mark.parametrize(("ours", "theirs"), ALIKE)
def test_labels_that_differ_in_writing_only_are_refused_with_both_and_what_to_do(ours, theirs):
    models = [("north/a", metadata(labels=[ours, "x"])), ("south/b", metadata(labels=["x", theirs]))]
    (problem,) = incompatibilities(models)
    assert f"'{ours}'" in problem
    assert f"'{theirs}'" in problem
    assert "publish one model again" in problem
    if ours.casefold().isascii() is False:  # what looks the same on a screen is told apart
        assert "\\xe4" in problem
        assert "\\u0308" in problem


def test_labels_that_a_model_tells_apart_are_two():
    """A model with both spellings knows them as two, and the other's is one of these."""
    models = [("north/a", metadata(labels=["Aa", "aa"])), ("south/b", metadata(labels=["aa", "x"]))]
    assert incompatibilities(models) == []


def test_channels_that_differ_in_writing_only_are_refused_too():
    named = [metadata(**image(2, 8, 8, channel_def={"0": first, "1": "T2"})) for first in ("T1", "t1")]
    problems = incompatibilities(list(zip(("north/a", "south/b"), named, strict=True)))
    assert any("'T1' of north/a and 't1' of south/b" in problem for problem in problems)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_a_model_with_two_such_labels_is_refused(one, other):
    with pytest.raises(SutureError) as caught:
        check_labels(["x", one, other])
    assert caught.value.code == "metadata.labels_alike"
    check_labels(["x", one])
