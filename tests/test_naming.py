"""What was meant by a name nobody knows, and how problems of documents are told."""

from __future__ import annotations

import unicodedata

import pytest
from pydantic import ValidationError

from suture_contract.model.metadata import ModelMetadata
from suture_contract.naming import did_you_mean, folded, nearest, problems_of, shown


@pytest.mark.parametrize(
    "others",
    [
        ("normal", "Normal", " NORMAL "),
        ("no finding", "No_Finding", "no-finding", "no  finding", "No\u2011finding"),
        ("Läsion", unicodedata.normalize("NFD", "Läsion"), "LÄSION"),
        ("straße", "STRASSE"),
    ],
)
def test_what_differs_in_writing_only_folds_to_the_same(others):
    assert len({folded(other) for other in others}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("HER2-", "HER2"), ("HER2+", "HER2-"), ("grade 1", "grade 2"), ("o", "ö")]
)
def test_what_differs_in_meaning_does_not(one, other):
    assert folded(one) != folded(other)


def test_the_nearest_come_first_whatever_their_case():
    assert nearest("licence", ["task", "license", "labels"])[0] == "license"
    assert nearest("REFINE-STEPS", ["refine", "refine_steps"])[0] == "refine_steps"
    assert nearest("zebra", ["task", "license"]) == []


def test_a_hint_names_the_nearest_or_all_there_are():
    assert did_you_mean("licence", ["license", "doi"], page="docs/x.md") == "did you mean 'license'? See docs/x.md"
    assert did_you_mean("zebra", ["a1", "b2"]) == "there are: a1, b2"
    assert did_you_mean("zebra", []) == "there are none"
    assert did_you_mean("zebra", [f"n{number}" for number in range(20)]).endswith("n11 and 8 more")


def test_a_value_is_shown_on_one_line_and_bounded():
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10_000)) < 80
    assert shown(10**5000) == "a number of that size"
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list"


def problems(document):
    with pytest.raises(ValidationError) as caught:
        ModelMetadata.model_validate(document)
    return problems_of(caught.value.errors(include_url=False), ModelMetadata)


DOCUMENT = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"num_channels": 1}},
    "outputs": {"out": {"num_channels": 2}},
    "labels": ["a", "b"],
    "license": "CC0-1.0",
}


def test_a_misspelt_field_comes_before_the_one_that_is_missing_for_it():
    document = {**DOCUMENT, "licence": "CC0-1.0"}
    del document["license"]
    first, second = problems(document)
    assert (first.field, first.message) == ("licence", "there is no field 'licence'")
    assert first.hint is not None
    assert "'license'" in first.hint
    assert (second.field, second.message) == ("license", "it is missing")


def test_fields_deep_in_a_document_have_their_own_neighbours():
    (problem,) = problems({**DOCUMENT, "inputs": {"image": {"num_channels": 1, "chanel_def": ["x"]}}})
    assert problem.field == "inputs.image.chanel_def"
    assert problem.hint is not None
    assert "'channel_def'" in problem.hint


def test_a_word_that_is_none_of_those_allowed_is_named():
    (problem,) = problems({**DOCUMENT, "task": "clasification"})
    assert problem.message == "'clasification' is none of those allowed"
    assert problem.hint == "did you mean 'classification'?"


def test_a_key_that_is_not_legible_is_escaped():
    (problem,) = problems({**DOCUMENT, "\u202elabels": 1})
    assert problem.field.isascii()
    assert "\\u202e" in problem.message
