"""The options of a fit: refused at once in one way everywhere, and described on one page."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from suture.cli.app import app
from suture.cli.jobs import _key_value
from suture.hub import Hub
from suture_contract.errors import SutureError
from suture_contract.fit_options import PAGE, FitOptions
from suture_contract.measures import ClinicalMetric

ROOT = Path(__file__).parents[1]
#: Options that are wrong, where, and what the message names besides the page.
WRONG = [
    ({"refine_step": 3}, "options", ("'refine_step'", "'refine_steps'")),
    ({"Seed": 3}, "options", ("'Seed'", "'seed'")),
    ({"zebra": 3}, "options", ("'zebra'", "seed, recipe, alphas")),
    ({"seed": "many"}, "options.seed", ("'many'", "integer")),
    ({"seed": "1"}, "options.seed", ("'1'", "integer")),
    ({"seed": True}, "options.seed", ("True", "integer")),
    ({"seed": -1}, "options.seed", ("-1", "0")),
    ({"refine": "no"}, "options.refine", ("'no'", "boolean")),
    ({"refine_steps": 0}, "options.refine_steps", ("0", "1")),
    ({"alphas": 0.5}, "options.alphas", ("0.5", "a list is wanted")),
    ({"alphas": [0.5, 1.5]}, "options.alphas.1", ("1.5", "1")),
    ({"recipe": "papers"}, "options.recipe", ("'papers'", "did you mean 'paper'?")),
    ({"recipe": "cooked"}, "options.recipe", ("'cooked'", "paper")),
    ({"metrics": ["aurocc"]}, "options.metrics.0", ("'aurocc'", "did you mean 'auroc'")),
    ({"metrics": ["zebra"]}, "options.metrics.0", ("'zebra'", "auroc")),
    ({"alphas": []}, "options.alphas", ("at least 1",)),
]


@pytest.mark.parametrize(("given", "where", "named"), WRONG, ids=str)
def test_wrong_options_are_refused_with_what_was_meant(given, where, named):
    with pytest.raises(SutureError) as caught:
        FitOptions.read(given)
    error = caught.value
    assert (error.code, error.where) == ("job.options", where)
    assert PAGE in str(error)
    for part in named:
        assert part in str(error)


@pytest.mark.parametrize(("given", "where"), [(given, where) for given, where, _ in WRONG], ids=str)
def test_the_sdk_refuses_them_before_it_asks_anyone(given, where):
    hub = Hub("http://192.0.2.1:9", "token")  # nobody is there: a question would end otherwise
    with pytest.raises(SutureError) as caught:
        hub.stitch(["north/a", "south/a"], "digits", **given)
    assert (caught.value.code, caught.value.where) == ("job.options", where)


@pytest.mark.parametrize(("text", "value"), [("metrics=auroc,f1", ["auroc", "f1"]), ("metrics=auroc", ["auroc"])])
def test_the_command_line_reads_names(text, value):
    assert _key_value(text) == ("metrics", value)


@pytest.mark.parametrize("text", ["metrics=auroc,beauty", "refine_step=3", "seed=many", "alphas=0.5,1.5"])
def test_the_command_line_refuses_them_before_it_asks_anyone(text, monkeypatch):
    monkeypatch.setenv("SUTURE_HUB", "http://192.0.2.1:9")
    ended = CliRunner().invoke(app, ["stitch", "north/a", "south/a", "--dataset", "digits", "--option", text])
    assert ended.exit_code == 5, ended.output
    assert "job.options" in ended.output
    assert PAGE in ended.output


def test_what_was_asked_for_travels_without_defaults():
    options = FitOptions.read({"alphas": [0.5], "refine_steps": 10})
    assert options.stated() == {"alphas": [0.5], "refine_steps": 10}
    assert FitOptions.read(json.loads(json.dumps(options.stated()))) == options
    assert FitOptions.read({}) == FitOptions()


#: What is a tuple once it was read.
LISTS = {"alphas": Sequence[float], "metrics": Sequence[ClinicalMetric]}


def test_the_sdk_has_each_option_as_a_typed_keyword():
    parameters = inspect.signature(Hub.stitch).parameters
    hints = typing.get_type_hints(Hub.stitch)
    for name, field in FitOptions.model_fields.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name
        kind = LISTS.get(name, field.annotation)
        assert hints[name] == kind | None, name


def row(name, schema):
    kind = " or ".join(json.dumps(name) for name in schema["enum"]) if "enum" in schema else schema["type"]
    one = schema["items"] if kind == "array" else schema
    if kind == "array":
        numbers = f"list of {schema.get('minItems')} to {schema['maxItems']} numbers"
        kind = "list of names" if one["type"] == "string" else numbers
    bounds = [str(one.get(bound, "")) for bound in ("minimum", "maximum")]
    cells = [f"`{name}`", kind, f"`{json.dumps(schema['default'])}`", *bounds, schema["description"]]
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def test_the_page_lists_every_option_as_it_is():
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = [row(name, schema) for name, schema in FitOptions.model_json_schema()["properties"].items()]
    for line in rows:
        assert line in page
    assert len([line for line in page.splitlines() if line.startswith("| `")]) == len(rows)
