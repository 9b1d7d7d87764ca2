"""Model cards: YAML that reads back as the same values, text that is shown as it is, and a card of one's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import ValidationError
from tests import strategies
from tests.stitching.test_metadata import read

from suture_contract.card import merge_card, write_card
from suture_contract.card.markdown import line, paragraphs, table
from suture_contract.card.yaml_block import _divide, split_card
from suture_contract.documents import Report
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata

quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])

MEMBERS = [
    {"repo": f"{party}/digits", "revision": digit * 40, "sha256": digit * 64}
    for party, digit in (("north", "a"), ("south", "b"))
]
RESULT = "{task: {type: a}, dataset: {type: b, name: c}, metrics: [{type: d, value: 1}]}"
INTERVAL = {"value": 0.9123, "low": 0.85, "high": 0.95}


def report_of(chosen: str = "c03") -> Report:
    kinds = ("single", "single", "ensemble", "stitched")
    rows = {"own": INTERVAL, "ensemble": INTERVAL, "stitched": {**INTERVAL, "value": 0.9345}}
    return Report.model_validate(
        {
            "requester": "south",
            "parties": {
                "north": {
                    "metric": "accuracy",
                    "n": 269,
                    "rows": {**rows, "peer:south/digits": {**INTERVAL, "value": 0.4}},
                    "verdict": "adopt",
                },
                "south": {"metric": "accuracy", "n": 1268, "rows": rows, "verdict": "reject"},
            },
            "chosen": chosen,
            "candidates": [
                {"id": f"c0{index}", "kind": kind, "label": kind, "metrics": {}, "front": True}
                for index, kind in enumerate(kinds)
            ],
            "lineage": {"job": "job_1", "members": MEMBERS},
            "missing": [{"party": "west", "reason": "too_few_samples"}],
        }
    )


def stitched() -> ModelMetadata:
    lineage = {"job": "job_1", "requester": "south", "members": MEMBERS, "candidate": "c03"}
    return read(lineage=lineage)


def shown(token: Token) -> str:
    """The text of a rendered line."""
    parts = token.children or []
    return "".join(" " if part.type in ("softbreak", "hardbreak") else part.content for part in parts)


def kinds_of(text: str) -> set[str]:
    tokens = renderer.parse(text)
    return {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}


def test_texts_of_a_report_hold_nothing_that_is_not_shown():
    content = report_of().model_dump(mode="json", by_alias=True)
    assert Report.model_validate(content) == report_of()
    for strange in ("\0", "\u202e", "\u2066"):
        for place, field in (
            (content["candidates"][0], "label"),
            (content["candidates"][0], "words"),
            (content["lineage"], "job"),
        ):
            kept = place[field]
            place[field] = f"a{strange}b"
            with pytest.raises(ValidationError, match="not shown"):
                Report.model_validate(content)
            place[field] = kept


# The YAML


@quick
@given(strategies.repos, strategies.metadata)
def test_the_yaml_reads_back_as_the_values_that_were_written(repo, metadata):
    card = ModelCard(write_card(repo, metadata))
    data = card.data
    assert data.library_name == "suture"  # type: ignore[attr-defined]
    name = data.license_name if data.license == "other" else data.license  # type: ignore[attr-defined]
    assert name.lower() == metadata.license.lower()
    assert data.get("doi") == metadata.doi
    assert data.tags[:2] == ["suture", metadata.task]  # type: ignore[attr-defined]
    members = metadata.lineage.members if metadata.lineage is not None else ()
    assert (data.base_model or []) == sorted({member.repo for member in members})  # type: ignore[attr-defined]
    assert ("stitched" in data.tags[2:]) >= bool(members)  # type: ignore[attr-defined]
    found = {result.metric_type: result.metric_value for result in data.eval_results or []}  # type: ignore[attr-defined]
    assert found == (metadata.eval_metrics or {})
    if metadata.eval_data is not None:
        assert {result.dataset_args["n"] for result in data.eval_results} == {metadata.eval_data.n}  # type: ignore[attr-defined]
        assert {result.dataset_split for result in data.eval_results} == {metadata.eval_data.split}  # type: ignore[attr-defined]
    assert set(data.to_dict()) <= {
        "base_model", "base_model_relation", "doi", "library_name", "license", "license_name", "model-index",
        "pipeline_tag", "tags",
    }  # fmt: skip


@quick
@given(strategies.repos, strategies.metadata)
def test_texts_add_no_heading_link_picture_html_or_code(repo, metadata):
    card = ModelCard(write_card(repo, metadata))
    tokens = renderer.parse(card.text)
    headings = [shown(after) for token, after in pairwise(tokens) if token.type == "heading_open"]
    allowed = [
        repo, "Use", "What it reads and gives", "Intended use", "Limitations", "Training data", "Results", "Made of",
        "What is in the files", "Authors", "Citation", "References",
    ]  # fmt: skip
    assert headings == [heading for heading in allowed if heading in headings]
    assert len(set(headings)) == len(headings)
    kinds = kinds_of(card.text)
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "hr", "blockquote_open", "code_block"}
    assert not kinds & {"ordered_list_open", "em_open", "strong_open", "s_open", "hardbreak"}
    assert sum(token.type == "fence" for token in tokens) == 1
    text = [shown(token) for token in tokens if token.type == "inline"]
    for label in metadata.labels or ():
        assert any(" ".join(label.split()) in found for found in text), label
    for reference in metadata.references:
        assert " ".join(reference.split()) in text or not reference.strip()


# Text as text


@quick
@given(strategies.texts)
@example("a\\|b")
@example("a\\\nb")
@example("a\\")
def test_a_text_is_shown_as_it_is_wherever_it_stands(text):
    said = " ".join(text.split())
    cells = "\n".join(table([["a", "b"], [line(text), "end"]]))
    for page, expected in (
        (f"# {line(text)}", said),
        (f"- {line(text)}", said),
        (paragraphs(text), said),
        (cells, " ".join(f"a b {said} end".split())),
    ):
        tokens = [token for token in renderer.parse(page) if token.type == "inline"]
        assert " ".join(" ".join(map(shown, tokens)).split()) == expected
        assert kinds_of(page) <= {
            "text", "text_special", "softbreak", "inline", "heading_open", "heading_close", "paragraph_open",
            "paragraph_close", "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close",
            "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open",
            "tr_close", "th_open", "th_close", "td_open", "td_close",
        }  # fmt: skip


# What a stitched ensemble's card says


def test_the_card_of_a_stitched_ensemble_has_lineage_and_each_partys_results():
    text = write_card("south/joint", stitched(), report_of())
    card = ModelCard(text)
    assert card.data.base_model == ["north/digits", "south/digits"]  # type: ignore[attr-defined]
    assert card.data.base_model_relation == "merge"  # type: ignore[attr-defined]
    found = {result.dataset_config: result for result in card.data.eval_results}  # type: ignore[attr-defined]
    assert {party: (result.metric_type, result.metric_value) for party, result in found.items()} == {
        "north": ("accuracy", 0.9345),
        "south": ("accuracy", 0.9345),
    }
    assert found["south"].dataset_args == {"n": 1268}
    assert "| model | south: accuracy | north: accuracy |" in text
    assert "| peer south/digits |  | 0.400 [0.850, 0.950] |" in text
    assert "| test samples (n) | 1,268 | 269 |" in text
    assert "| verdict | do not adopt | adopt |" in text
    assert "- west has fewer test samples than its own policy asks for" in text
    assert f"- north/digits at {'a' * 40}" in text


@pytest.mark.parametrize(
    ("chosen", "results"),
    [("c02", {"north": 0.9123, "south": 0.9123}), ("c01", {"north": 0.4, "south": 0.9123})],
)
def test_the_results_are_those_of_the_model_that_was_chosen(chosen, results):
    card = ModelCard(write_card("south/joint", stitched(), report_of(chosen)))
    assert {result.dataset_config: result.metric_value for result in card.data.eval_results} == results  # type: ignore[attr-defined]


def test_a_licence_that_hubs_do_not_know_keeps_its_name():
    data = ModelCard(write_card("north/digits", read(license="Hospital licence 1"))).data
    assert (data.license, data.license_name) == ("other", "Hospital licence 1")  # type: ignore[attr-defined]
    assert ModelCard(write_card("north/digits", read(license="Apache-2.0"))).data.license == "apache-2.0"  # type: ignore[attr-defined]


def test_a_card_is_written_without_torch_and_without_network():
    code = f"""
import socket, sys
socket.socket.connect = None
from suture_contract.card import merge_card, write_card
from suture_contract.model.metadata import ModelMetadata
metadata = ModelMetadata.from_json({json.dumps(read().to_json())})
merge_card(write_card("north/digits", metadata), "north/digits", metadata)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# A card of one's own


@quick
@given(strategies.repos, strategies.metadata)
def test_a_written_card_is_left_as_it_is(repo, metadata):
    text = write_card(repo, metadata)
    assert merge_card(text, repo, metadata) == text


@quick
@given(
    strategies.metadata,
    st.dictionaries(
        st.sampled_from(["language", "datasets", "tags", "thumbnail", "license_link"]),
        strategies.labels,
    ),
    strategies.texts,
)
def test_a_card_of_ones_own_keeps_its_words_and_other_fields(metadata, fields, words):
    if "tags" in fields:
        fields["tags"] = [fields["tags"]]
    own = f"---\n{yaml.safe_dump(fields, allow_unicode=True)}\n---\n{words}"
    merged = merge_card(own, "north/digits", metadata)
    assert merge_card(merged, "north/digits", metadata) == merged
    split_card(merged)
    assert merged.endswith(f"\n---\n{words}")
    data = ModelCard(merged).data
    for field in {"language", "datasets", "thumbnail", "license_link"} & fields.keys():
        assert data.get(field) == fields[field]
    assert {*fields.get("tags", ())} <= set(data.tags)  # type: ignore[attr-defined]
    name = data.license_name if data.license == "other" else data.license  # type: ignore[attr-defined]
    assert name.lower() == metadata.license.lower()


OWN = """\
# who wrote it
language: no   # Norwegian
version: 1.10
ward: 01234
since: 2020-01-02
parts: !!set {b, a}
about: |
  Two lines,
    one of them further in.

quoted: 'it''s'
"""
OWN_TAGS = """\
tags:
  # mine
  - 'x'   # first
  - y
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("words", ["# Words\n\n---\n\nmore\n", ""])
def test_what_authors_write_stays_byte_for_byte(line_end, words):
    own = f"---\n{OWN}{OWN_TAGS}---\n{words}".replace("\n", line_end)
    merged = merge_card(own, "north/digits", read())
    kept = [OWN, "tags:\n  # mine\n", "  - 'x'   # first\n  - y\n---\n" + words]
    for part in kept:
        assert part.replace("\n", line_end) in merged
    assert line_end == "\n" or "\n" not in merged.replace("\r\n", "")
    assert ModelCard(merged).data.tags == ["suture", "classification", "MR", "x", "y"]  # type: ignore[attr-defined]
    added = [line for line in merged.split(line_end) if line not in own.split(line_end)]
    assert not [line for line in added if line.partition(":")[0] in ("language", "version", "about")]
    assert merge_card(merged, "north/digits", read()) == merged


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ("license: CC BY 4.0 # as agreed\nv: 1.10", "license: cc-by-4.0 # as agreed\nv: 1.10"),
        ("pipeline_tag: |\n  x\n\n# next\nv: 1.10", "pipeline_tag: image-classification\n\n# next\nv: 1.10"),
        ("tags: []  # none\nv: 1.10", "v: 1.10"),
        ("tags:\nv: 1.10", "v: 1.10"),
        ("tags: [ a, 'b' ]\nv: 1.10", "tags: [suture, classification, MR, a, 'b' ]\nv: 1.10"),
        ("  v: 1.10\n  tags:\n  - a", "  v: 1.10\n  tags:\n  - suture\n  - classification\n  - MR\n  - a"),
        ('{"v": 1.10, "license": "cc-by-4.0"}', '"v": 1.10, "license": "cc-by-4.0"}'),
        ("{}", "{library_name: suture, "),
        ("# a remark alone", "# a remark alone"),
        ("library_name: suture\nabout: |\n  text", "library_name: suture\nabout: |\n  text"),
        ("model-index:\n- name: old\n  results: []\n# last", "# last"),
    ],
)  # fmt: skip
def test_what_suture_sets_is_put_where_it_stands(own, kept):
    merged = merge_card(f"---\n{own}\n---\n# x\n", "north/digits", read())
    assert f"{kept}" in merged
    data = ModelCard(merged).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("cc-by-4.0", "image-classification", "suture")  # type: ignore[attr-defined]
    assert data.tags[:3] == ["suture", "classification", "MR"]  # type: ignore[attr-defined]
    assert data.model_name == "north/digits"  # type: ignore[attr-defined]
    assert merge_card(merged, "north/digits", read()) == merged


@pytest.mark.parametrize(
    ("card", "line", "problem"),
    [
        ("---\na: b\n# x\n", 1, "no line `---` ends it"),
        ("\n\n---\na: b\n", 3, "no line `---` ends it"),
        ("---\na: b\n...\n# x\n", 3, "`...` stands where a line `---` is to end it"),
        ("---\na: b\n...\n# x\n---\n", 3, "`...` stands"),
        ("--- \na: b\n---\n", 1, "spaces stand after `---`"),
        ("---\na: b\n---\t\n# x\n", 3, "spaces stand after `---`"),
        ("---\r\na: b\r\n---  \r\n# x\r\n---\r\n", 3, "spaces stand after `---`"),
        ("---\ra: b\r---\r# x\r", 3, "CR alone"),
        ("---\n---\n# x\n", 1, "nothing stands in it"),
    ],
)
def test_a_block_that_hubs_would_take_for_text_is_refused(card, line, problem):
    with pytest.raises(SutureError, match=f"^README.md, line {line}: the YAML at its top: ") as caught:
        merge_card(card, "north/digits", read())
    assert caught.value.code == "card.yaml"
    assert problem in caught.value.message
    assert "`---`" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["# x\n\n---\n", "----\n# x\n", "--- a\n", "***\na: b\n---\n", "x\n...\n"])
def test_rules_within_a_text_are_no_block(text):
    assert split_card(text) == ({}, text)


@pytest.mark.parametrize(
    "character", ["\0", "\x1b", "\x85", "\ufeff", *map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))]
)
def test_characters_that_are_not_shown_are_refused_with_their_line(character):
    for card, number in (
        (f"# x\r\n\r\na{character}b", 3),
        (f"---\na: {character}\n---\n", 2),
        (f"{character}---\na: b\n---\n", 1),
    ):
        with pytest.raises(SutureError, match=f"^README.md, line {number}: ") as caught:
            split_card(card)
        assert caught.value.code == "card.characters"
        assert f"U+{ord(character):04X}" in caught.value.message
    assert split_card("\u06a9\u200c\u0627 \U0001f9d1\u200d\u2695 \u00a0\t\n")[0] == {}, "joiners are part of scripts"


@pytest.mark.parametrize(
    ("own", "metadata", "line", "both"),
    [
        ("language: en\nlicense: mit", {}, 3, ("license", "'mit'", "'CC-BY-4.0'")),
        ("license: other\nlicense_name: x", {}, 3, ("license_name", "'x'", "'CC-BY-4.0'")),
        ("license: other", {}, 2, ("license", "'other'", "'CC-BY-4.0'")),
        ("license: mit", {"license": "Hospital licence 1"}, 2, ("license", "'mit'", "'Hospital licence 1'")),
        ("doi: 10.5281/zenodo.1", {"doi": "10.5281/zenodo.2"}, 2, ("doi", "'10.5281/zenodo.1'", "'10.5281/zenodo.2'")),
    ],
)
def test_a_card_that_contradicts_suture_json_is_refused(own, metadata, line, both):
    with pytest.raises(SutureError, match=f"^README.md, line {line}: ") as caught:
        merge_card(f"---\n{own}\n---\n# x\n", "north/digits", read(**metadata))
    assert caught.value.code == "card.mismatch"
    assert all(part in caught.value.message for part in both)
    assert "write the right one into both" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("own", "metadata"),
    [
        ("license: CC BY 4.0", {}),
        ("license:", {}),
        ("license: other", {"license": "Hospital licence 1"}),
        ("license: other\nlicense_name: hospital-licence-1", {"license": "Hospital licence 1"}),
        ("license: Hospital licence 1", {"license": "Hospital licence 1"}),
        ("doi: https://doi.org/10.5281/zenodo.2", {"doi": "10.5281/zenodo.2"}),
        ("doi: 10.5281/zenodo.2", {"doi": None}),
    ],
)
def test_what_a_card_states_in_another_spelling_is_no_contradiction(own, metadata):
    merged = merge_card(f"---\n{own}\n---\n# x\n", "north/digits", read(**metadata))
    data = ModelCard(merged).data
    licence = read(**metadata).license
    assert (data.license_name or data.license).lower() == licence.lower()  # type: ignore[attr-defined]
    assert "doi" not in own or data.get("doi") == "10.5281/zenodo.2"


def test_a_card_without_yaml_gets_some():
    merged = merge_card("# Digits\n", "north/digits", read())
    assert merged.endswith("\n---\n# Digits\n")
    assert ModelCard(merged).data.license == "cc-by-4.0"  # type: ignore[attr-defined]


def test_a_card_that_was_written_before_the_model_had_a_name_learns_it():
    before = write_card("lesions", read())
    assert 'load("PARTY/NAME")' in before
    assert 'load("north/digits")' in merge_card(before, "north/digits", read())


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("a: [", "line 2"),
        ("a: &x [1]\nb: *x", "line 3: "),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("- a", "not a list of"),
        ("1: a", "not a list of"),
        ("tags: x", "line 2: the YAML at its top: tags: a list of words is needed, not 'x'"),
        ("tags:\n- a\n- 1.10", "line 4: the YAML at its top: tags: item 2 of the list is 1.1, which is no text"),
        ("license: no", "line 2: the YAML at its top: license: one word is needed, not False"),
        ("model-index: [{name: x}]", "line 2: the YAML at its top: model-index[0].results is missing"),
        (
            f"model-index: [{{name: x, results: [{RESULT}, {RESULT.replace('value', 'worth')}]}}]",
            "model-index[0].results[1].metrics[0].value is missing",
        ),
        ("model-index: 3", "model-index: a list is wanted, not 3"),
        (
            "model-index: [{name: x, results: [3]}]",
            "model-index[0].results[0]: task and dataset and metrics are wanted",
        ),
        ("self: x", "multiple values for argument 'self'"),
        ("a: 1\nb: 2\na: 3", "line 4: the YAML at its top: 'a' is there twice, first in line 2"),
        ("a: {x: 1, 'x': 2}", "'x' is there twice"),
        ("a: {1: x, '1': y}", "'1' is there twice"),
        ("<<: {license: mit}", "line 2: the YAML at its top: `<<` is not accepted"),
        ('a: "\\u202e"', "line 2: the YAML at its top: a value holds U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("? pipeline_tag\n: x", "cannot be put into it as it is written"),
        ("!!map\na: b", "cannot be put into it as it is written"),
        ("b: 1\na: 2020-13-45", "line 3: the YAML at its top: '2020-13-45' is no timestamp"),
        ("[" * 5000, "nest"),
        ("- " * 5000, "nested deeper"),
        ("a: [" + "x," * 20_000 + "]", "more than 10000 values"),
        (
            "a: 1" + ":11" * 20_000 + ".5",
            "line 2: the YAML at its top: '1:11:11:11:11:11:11:11:11:11:11:11:11:11' is no float",
        ),
        ("a: " + "x" * 70_000, "longer than"),
    ],
)
def test_yaml_that_hubs_could_not_read_is_refused(block, problem):
    with pytest.raises(SutureError) as caught:
        merge_card(f"---\n{block}\n---\n# x\n", "north/digits", read())
    assert caught.value.code == "card.yaml"
    assert problem in str(caught.value)


@quick
@given(st.text() | strategies.texts | st.builds("---\n{}\n---\n".format, st.text() | strategies.texts))
def test_any_text_is_a_card_or_is_refused(text):
    try:
        merged = merge_card(text, "north/digits", read())
    except SutureError as error:
        refused: str | None = error.code
    else:
        refused = None
        data: Any = ModelCard(merged).data
        assert data.license == "cc-by-4.0"
    assert refused in (None, "card.yaml", "card.characters", "card.mismatch")


@given(st.lists(st.sampled_from(["---", "\n", "\r", "\r\n", "a: b", " ", "-"]), max_size=14).map("".join))
@example("---" + "\n" * 500_000 + "a: b")
@example("---" + "\n" * 500_000 + "---")
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_block_is_found_where_the_official_client_finds_it_at_any_length(text):
    """The client's expression takes hours for the examples, so that it is asked about a short form of them."""
    found = _divide(text)
    short = _divide(text.replace("\n" * 500_000, "\n" * 3))
    official = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r\n|\n|$)", text.replace("\n" * 500_000, "\n" * 3), re.DOTALL)
    assert (short and short[1]) == (official and official.group(1))
    assert (found and found[1]) == (short and short[1])
    assert short is None or "".join(short) == official.string
    assert official is None or short[3] == official.string[official.end() :]
