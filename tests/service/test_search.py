"""Finding models: by what their `suture.json` says, in an order that pages keep."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command
from sqlalchemy import text

from suture_service import operate
from suture_service.database import open_engine

MODELS: dict[str, dict[str, Any]] = {
    "north/chest": {"modality": "CT", "n": 900, "labels": ["Nodule", "none"], "license": "CC-BY-4.0"},
    "north/knee": {"modality": "MR", "n": 40, "labels": ["tear", "none"], "license": "Apache-2.0"},
    "north/liver": {"modality": "ct", "n": None, "labels": ["lesion", "none"], "license": "cc-by-4.0", "channels": 3},
    "south/chest": {"modality": None, "n": 5000, "labels": ["nodule", "effusion"], "license": "Hospital  licence"},
    "south/skin": {"modality": "DMS", "n": 900, "labels": ["mole", "none"], "license": "MIT", "channels": 3},
}


def publish(world: Any, repo: str, *, seed: int = 0, visibility: str = "all", **says: Any) -> None:
    channels = says.get("channels", 1)
    data = {"description": "scans", **({"n": says["n"]} if says["n"] is not None else {})}
    metadata = world.metadata(2, channels=channels, labels=says["labels"], license=says["license"], training_data=data)
    if says["modality"]:
        metadata["inputs"]["image"]["modality"] = says["modality"]
    owner = getattr(world, repo.partition("/")[0])
    model = world.model(2, channels=channels, seed=seed)
    answer = owner.publish(repo, model=model, metadata=metadata, visibility=visibility)
    assert answer.status_code == 201, answer.text


@pytest.fixture
def filled(world):
    for repo, says in MODELS.items():
        publish(world, repo, **says)
    publish(world, "south/secret", visibility="private", **{**MODELS["north/chest"], "labels": ["hidden", "none"]})
    return world


def found(world: Any, **asked: Any) -> list[str]:
    answer = world.north.get("/v1/models", params=asked)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_models_are_found_by_what_they_say(filled):
    for asked, expected in (
        ({"modality": "ct"}, ["north/chest", "north/liver"]),
        ({"modality": "CT", "license": "Cc-By-4.0", "num_channels": 1}, ["north/chest"]),
        ({"license": "hospital licence"}, ["south/chest"]),
        ({"label": "nodule"}, ["north/chest", "south/chest"]),
        ({"label": ["nodule", "effusion"]}, ["south/chest"]),
        ({"label": "hidden"}, []),
        ({"label": "nod"}, []),
        ({"num_channels": 3}, ["north/liver", "south/skin"]),
        ({"spatial_dims": 2, "format": "image"}, sorted(MODELS)),
        ({"spatial_dims": 3}, []),
        ({"format": "table"}, []),
        ({"min_n": 900}, ["north/chest", "south/chest", "south/skin"]),
        ({"min_n": 901, "party": "north"}, []),
        ({"min_n": 0, "search": "chest"}, ["north/chest", "south/chest"]),
        ({"task": "classification", "party": "south"}, ["south/chest", "south/skin"]),
        ({"task": "regression"}, []),
    ):
        assert found(filled, **asked) == expected, asked


@pytest.mark.parametrize("sort", ["name", "newest", "updated"])
def test_pages_keep_the_order(filled, sort):
    filled.north("PATCH", "/v1/models/north/knee", json={"visibility": "all"})
    newest = list(MODELS)[::-1]
    expected = {
        "name": sorted(MODELS),
        "newest": newest,
        "updated": ["north/knee", *(repo for repo in newest if repo != "north/knee")],
    }[sort]
    assert found(filled, sort=sort) == expected
    pages, cursor = [], None
    while True:
        answer = filled.north.get(
            "/v1/models", params={"sort": sort, "limit": 2, **({"cursor": cursor} if cursor else {})}
        )
        pages += [item["id"] for item in answer.json()["items"]]
        cursor = answer.json()["next"]
        if cursor is None:
            break
        if len(pages) == 2:
            first = cursor
            publish(filled, "north/aaa", **MODELS["north/knee"])  # comes before the place that was reached
    assert pages == expected
    other = {"name": "newest", "newest": "updated", "updated": "name"}[sort]
    answer = filled.north.get("/v1/models", params={"sort": other, "cursor": first})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request.cursor")


def test_what_is_found_is_what_the_newest_revision_says(filled):
    publish(
        filled, "north/knee", seed=1, **{**MODELS["north/knee"], "modality": "US", "n": 5001, "labels": ["tear", "x"]}
    )
    assert found(filled, modality="MR") == []
    assert found(filled, modality="us", min_n=5001, label=["tear", "X"]) == ["north/knee"]
    assert found(filled, label="none", party="north") == ["north/chest", "north/liver"]


@pytest.mark.parametrize(
    "asked",
    [
        {"sort": "size"}, {"min_n": -1}, {"num_channels": 0}, {"spatial_dims": 4}, {"format": "x"}, {"task": "x"},
        {"modality": "x" * 201}, {"label": ["x"] * 21}, {"label": "x" * 201}, {"cursor": "x"}, {"min_n": 2**60},
        {"sort": "newest", "cursor": "WyJuZXdlc3QiLCAieCIsIDFd"},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_refused(world, asked):
    assert world.north.get("/v1/models", params=asked).status_code == 422


def test_models_of_before_are_found_after_a_migration(filled):
    settings = filled.settings
    config = operate.alembic_config(settings)
    command.downgrade(config, "0005")
    command.upgrade(config, "head")
    assert found(filled, modality="ct", label="nodule", min_n=900) == ["north/chest"]
    assert found(filled, num_channels=3) == ["north/liver", "south/skin"]
    assert found(filled, license="hospital licence", min_n=5000) == ["south/chest"]


def test_the_database_finds_words_by_an_index(migrated_sqlite):
    engine = open_engine(f"sqlite:///{migrated_sqlite}")
    with engine.connect() as connection:
        plan = connection.execute(
            text("EXPLAIN QUERY PLAN SELECT model_id FROM model_facets WHERE kind = 'label' AND value = 'x'")
        ).all()
    engine.dispose()
    assert "ix_model_facets_kind (kind=? AND value=?)" in str(plan)


def test_a_text_is_found_wherever_it_stands(world):
    content = world.metadata(description="Läsionen\n  der LUNGE, 100% _rare_ \\ ab\u00df")
    world.north.publish("north/chest-x", metadata=content).raise_for_status()
    world.north.publish("north/other", model=world.model(seed=1)).raise_for_status()
    for word, there in {
        "lunge": True, "UNG": True, "lä": True, "LÄSION": True, "ionen der lu": True, "h/CHEST": True, "t-x": True,
        "0% _r": True, "\\ ABSS": True, "-x l": False, "0%_": False, "_are": False, "lunges": False, "chest n": False,
        "%%%": False, "___": False, "{}": False, "'''": False, "a'b\"c,{": False,
    }.items():  # fmt: skip
        assert found(world, search=word) == (["north/chest-x"] if there else []), word
        listed = world.north.get("/api/models", params={"search": word.split()[0]}).json()
        assert ("north/chest-x" in [row["id"] for row in listed]) == there or " " in word, word
    assert found(world, search="  ") == ["north/chest-x", "north/other"]
    assert (
        world.north.post("/api/repos/move", {"fromRepo": "north/chest-x", "toRepo": "north/moved"}).status_code == 200
    )
    assert found(world, search="orth/mov") == ["north/moved"]
    assert found(world, search="chest") == []
