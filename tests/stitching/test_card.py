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
        st.sampled_from(["language", "datasets", "license", "tags", "thumbnail", "license_link", "doi"]),
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
    for field in {"language", "datasets", "thumbnail"} & fields.keys():
        assert data.get(field) == fields[field]
    assert {*fields.get("tags", ())} <= set(data.tags)  # type: ignore[attr-defined]
    name = data.license_name if data.license == "other" else data.license  # type: ignore[attr-defined]
    assert name.lower() == metadata.license.lower()


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
        ("tags: x", "tags: "),
        ("tags: [1]", "tags: "),
        ("model-index: [{name: x}]", "model-index"),
        ("self: x", "model-index"),
        ("a: 2020-13-45", "not YAML"),
        ("[" * 5000, "not YAML"),
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
    assert refused in (None, "card.yaml")


@given(st.lists(st.sampled_from(["---", "\n", "\r", "\r\n", "a: b", " ", "-"]), max_size=14).map("".join))
@example("---" + "\n" * 500_000 + "a: b")
@example("---" + "\n" * 500_000 + "---")
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_block_is_found_where_the_official_client_finds_it_at_any_length(text):
    """The client's expression takes hours for the examples, so that it is asked about a short form of them."""
    found = _divide(text)
    short = _divide(text.replace("\n" * 500_000, "\n" * 3))
    official = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---(?:\r\n|\n|$)", text.replace("\n" * 500_000, "\n" * 3), re.DOTALL)
    assert short[0] == (official and official.group(1))
    assert found[0] == short[0]
    assert official is None or short[1] == official.string[official.end() :]
