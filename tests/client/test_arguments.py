"""What a caller of the SDK gives by mistake is refused at once, and told what to give instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import torch
from torch import nn

from suture.bundle import Description, export_model
from suture.errors import NotFound, Refused
from suture.hub import Hub
from suture_contract.errors import SutureError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import LiveHub

DESCRIPTION: Any = {"license": "CC-BY-4.0", "labels": ["cat", "dog"]}


@pytest.fixture
def nowhere() -> Hub:
    """A hub that nobody answers for: whatever is asked there ends otherwise than tested."""
    return Hub("http://192.0.2.1:9", "token")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()


EXAMPLE = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("change", "where", "named"),
    [
        ({"licence": "CC-BY-4.0"}, "licence", ("'licence'", "'license'")),
        ({"label": ["cat"]}, "label", ("'labels'",)),
        ({"licence": "CC-BY-4.0", "license": None}, "licence", ("'license'",)),
        ({"license": None}, "license", ("CC-BY-4.0",)),
        ({"labels": "cat,dog"}, "labels", ("labels=['cat,dog']",)),
        ({"authors": "A. Berg"}, "authors", ("authors=['A. Berg']",)),
        ({"references": "doi"}, "references", ("references=['doi']",)),
        ({"channels": "red"}, "channels", ("channels=['red']",)),
        ({"task": "clasification"}, "task", ("'clasification'", "'classification'")),
        ({"output": "logit"}, "output", ("'logits'",)),
        ({"labels": ["Cat", "cat"]}, "labels", ("'Cat'", "'cat'")),
    ],
    ids=str,
)
def test_keywords_of_publish(nowhere: Hub, change: dict[str, Any], where: str, named: tuple[str, ...]) -> None:
    given = {name: value for name, value in {**DESCRIPTION, **change}.items() if value is not None}
    with pytest.raises(SutureError) as caught:
        nowhere.publish(network(), EXAMPLE, "north/net", **given)
    assert caught.value.where == where
    for part in (*named, "docs/suture-json.md") if where in ("licence", "label", "license", "task") else named:
        assert part in str(caught.value)


def test_every_keyword_is_known(tmp_path: Path) -> None:
    """The names that are compared with are those of the type that editors complete."""
    assert {"license", "labels", "task", "doi"} <= set(Description.__annotations__)
    with pytest.raises(SutureError, match="'licence'"):
        export_model(network(), EXAMPLE, tmp_path / "model.safetensors", licence="MIT")  # type: ignore[call-arg]


def test_a_visibility_that_is_none(nowhere: Hub, tmp_path: Path) -> None:
    for publish in (
        lambda: nowhere.publish(network(), EXAMPLE, "north/net", visibility="privat", **DESCRIPTION),  # type: ignore[arg-type]
        lambda: nowhere.publish_file(tmp_path, "north/net", visibility="privat"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SutureError, match="did you mean 'private'"):
            publish()


def test_a_file_for_a_module_and_a_module_for_a_file(nowhere: Hub) -> None:
    with pytest.raises(SutureError, match="publish_file"):
        nowhere.publish("model.safetensors", EXAMPLE, "north/net", **DESCRIPTION)  # type: ignore[arg-type]
    with pytest.raises(SutureError, match=r"hub\.publish\("):
        nowhere.publish_file(network(), "north/net")  # type: ignore[arg-type]
    with pytest.raises(SutureError, match=r"torch\.Tensor"):
        nowhere.publish(network(), (1, 4, 4), "north/net", **DESCRIPTION)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("north/a", r"models=\['north/a'\]"),
        ([network(), "south/a"], "publish it first"),
        ([{"repo": "north/a"}, "south/a"], "not by a dict"),
        (["north", "south/a"], "party/name"),
        (["north/a@main", "south/a"], "40 hex digits"),
        (["north/a@3f0c", "south/a"], "first 7"),
    ],
)
def test_models_of_a_stitch(nowhere: Hub, models: Any, message: str) -> None:
    with pytest.raises(SutureError, match=message):
        nowhere.stitch(models, "digits")


def test_lists_that_are_texts(nowhere: Hub) -> None:
    with pytest.raises(SutureError, match=r"evaluate_at=\['south'\]"):
        nowhere.stitch(["north/a", "south/a"], "digits", evaluate_at="south")
    with pytest.raises(SutureError, match=r"contribute_from=\['south'\]"):
        nowhere.stitch(["north/a", "south/a"], "digits", contribute_from="south")
    with pytest.raises(SutureError, match=r"labels=\['lesion'\]"):
        nowhere.models(labels="lesion")


def test_a_name_with_a_revision_where_the_revision_has_its_own_place(nowhere: Hub) -> None:
    with pytest.raises(SutureError, match="revision='3f0c5ab'"):
        nowhere.load("north/a@3f0c5ab")


@pytest.mark.parametrize("revision", ["main", "3f0c", "x" * 40, "a" * 41, "3f0c…", 7])
def test_what_is_no_revision(nowhere: Hub, revision: Any) -> None:
    with pytest.raises(SutureError) as caught:
        nowhere.revision("north/a", revision)
    assert caught.value.code == "revision.name"
    assert "40 hex digits" in str(caught.value)


def test_the_first_digits_of_a_revision_are_enough(live_hub: LiveHub) -> None:
    north, repo = live_hub.client("north"), f"north/r{uuid4().hex[:8]}"
    first = north.publish(network(1), EXAMPLE, repo, show=lambda _: None, **DESCRIPTION)
    second = north.publish(network(2), EXAMPLE, repo, show=lambda _: None, **DESCRIPTION)
    assert north.revision(repo, first.id[:10]).id == first.id
    assert north.revision(repo, first.id[:7].upper()).id == first.id
    assert north.revision(repo, "latest").id == second.id
    asked = {"models": [f"{repo}@{first.id[:10]}", f"{repo}@latest"], "dataset": "digits"}
    assert north.stitch(**asked).status.models[0].revision == first.id
    with pytest.raises(NotFound):
        north.revision(repo, "0" * 10)


def test_the_nearest_model_and_party_are_named(live_hub: LiveHub) -> None:
    north, south, name = live_hub.client("north"), live_hub.client("south"), f"polyps{uuid4().hex[:8]}"
    north.publish(network(3), EXAMPLE, f"north/{name}", visibility="all", show=lambda _: None, **DESCRIPTION)
    hidden = f"north/{name}x"
    north.publish(network(4), EXAMPLE, hidden, show=lambda _: None, visibility="private", **DESCRIPTION)
    misspelt = f"north/{name.replace('polyps', 'polips')}"
    with pytest.raises(NotFound, match=f"did you mean .*'north/{name}'") as caught:
        south.load(misspelt)
    assert hidden not in str(caught.value)
    with pytest.raises(NotFound, match=f"'north/{name}'"):
        south.stitch([misspelt, f"north/{name}"], "digits")
    with pytest.raises(NotFound, match=f"'north/{name}'"):
        south.load(f"nroth/{name}")
    with pytest.raises(Refused, match="did you mean 'south'") as refused:
        north.stitch([f"north/{name}", hidden], "digits", evaluate_at=["soth"])
    assert refused.value.code == "party.unknown"
