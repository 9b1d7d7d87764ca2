"""Publishing, listing, sharing and downloading models."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.service.jobs import refusal

from suture_service.parties import service as parties

PATH = "/v1/models/north/digits"


def test_publish_and_read_back(world):
    answer = world.north.publish("north/digits", card=b"# Digits\n")
    assert answer.status_code == 201, answer.text
    revision = answer.json()
    files = {file["name"]: file for file in revision["files"]}
    assert set(files) == {"model.safetensors", "suture.json", "README.md"}
    lines = "".join(f"{name}\0{file['sha256']}\n" for name, file in sorted(files.items()))
    assert revision["id"] == hashlib.sha256(lines.encode()).hexdigest()[:40]
    assert (revision["repo"], revision["created_by"], revision["job"]) == ("north/digits", "north", None)
    for rev in ("latest", revision["id"]):
        assert world.south.get(f"{PATH}/revisions/{rev}").json() == revision
        for name, file in files.items():
            content = world.south.get(f"{PATH}/revisions/{rev}/files/{name}").content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            assert len(content) == file["size"]
    found = world.south.get(PATH).json()
    assert found["revision"] == revision["id"]
    assert found["metadata"] == revision["metadata"]
    assert revision["metadata"].items() >= {"labels": ["0", "1"], "license": "Apache-2.0"}.items()
    assert world.south.get(f"{PATH}/revisions").json() == {"items": [revision], "next": None}


def test_same_content_is_the_same_revision(world):
    first = world.north.publish("north/digits").json()
    second = world.north.publish("north/digits", model=world.model(seed=1)).json()
    assert first["id"] != second["id"]
    blobs = world.blobs()
    for known in (first, second):
        seed = 0 if known is first else 1
        again = world.north.publish("north/digits", model=world.model(seed=seed))
        assert again.status_code == 200
        assert again.json() == known
    assert world.north.get(PATH).json()["revision"] == second["id"]
    assert world.blobs() == blobs


def test_a_private_model_looks_unknown_to_others(world):
    revision = world.north.publish("north/digits", visibility=None).json()["id"]
    missing = refusal(world.south.get("/v1/models/north/nothing"), 404)
    for path in (
        PATH,
        f"{PATH}/revisions",
        f"{PATH}/revisions/latest",
        f"{PATH}/revisions/{revision}",
        f"{PATH}/revisions/{revision}/files/model.safetensors",
    ):
        assert refusal(world.south.get(path), 404) == missing
        assert world.north.get(path).status_code == 200
        assert world.sites["north"].get(path).status_code == 200
    assert refusal(world.south("PATCH", PATH, json={"visibility": "all"}), 404) == missing
    assert world.south.get("/v1/models").json()["items"] == []


def test_sharing_with_one_party(world):
    world.north.publish("north/digits", visibility="private")
    changed = world.north("PATCH", PATH, json={"shared_with": ["south", "north"]}).json()
    assert changed["shared_with"] == ["south"]
    assert world.south.get(PATH).json()["shared_with"] == []  # whom else it is shared with is the owner's affair
    assert world.sites["south"].get(PATH).status_code == 200
    assert world.east.get(PATH).status_code == 404
    error = refusal(world.north("PATCH", PATH, json={"shared_with": ["east", "nowhere"]}), 422)
    assert error["code"] == "party.unknown"
    assert world.east.get(PATH).status_code == 404
    assert world.north("PATCH", PATH, json={"shared_with": []}).json()["shared_with"] == []
    assert world.south.get(PATH).status_code == 404
    assert world.north("PATCH", PATH, json={"visibility": "all"}).json()["visibility"] == "all"
    assert world.east.get(PATH).status_code == 200


def test_what_changes_of_a_list_leaves_the_rest_of_it(world):
    world.north.publish("north/digits", visibility="private")

    def change(**body):
        return world.north("PATCH", PATH, json=body)

    assert change(share_with=["south"]).json()["shared_with"] == ["south"]
    assert change(share_with=["east", "north", "south"]).json()["shared_with"] == ["east", "south"]
    assert change(stop_sharing_with=["south", "operators"], share_with=[]).json()["shared_with"] == ["east"]
    for body, field in (
        ({"share_with": ["south", "nowhere"]}, "share_with"),
        ({"share_with": ["south"], "stop_sharing_with": ["esat"]}, "stop_sharing_with"),
    ):
        error = refusal(change(**body), 422)
        assert (error["code"], error["where"]) == ("party.unknown", field)
    for body in (
        {"shared_with": [], "share_with": ["south"]},
        {"share_with": ["south"], "stop_sharing_with": ["south"]},
    ):
        assert refusal(change(**body), 422)["code"] == "request.invalid"
    assert world.north.get(PATH).json()["shared_with"] == ["east"]
    with world.hub.database.writing() as session:
        for number in range(200):
            parties.add_party(session, f"party-{number:03}", world.now())
    many = [f"party-{number:03}" for number in range(200)]
    assert refusal(change(share_with=many), 422)["code"] == "model.too_many_readers"
    assert len(change(share_with=many[1:]).json()["shared_with"]) == 200


def test_those_who_change_a_list_at_once_all_do(world):
    world.north.publish("north/digits", visibility="private")
    names = [f"party-{number}" for number in range(8)]
    with world.hub.database.writing() as session:
        for name in names:
            parties.add_party(session, name, world.now())

    def change(body):
        return world.north("PATCH", PATH, json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(change, [{"share_with": [name, "south"]} for name in names])} == {200}
        assert world.north.get(PATH).json()["shared_with"] == [*names, "south"]
        assert {*pool.map(change, [{"stop_sharing_with": [name, "south"]} for name in names])} == {200}
    assert world.north.get(PATH).json()["shared_with"] == []


def test_only_the_owner_changes_a_model(world):
    world.north.publish("north/digits")
    assert refusal(world.south("PATCH", PATH, json={"visibility": "private"}), 403)["code"] == "auth.forbidden"
    reader = world.actor("north", "reader")
    assert refusal(reader("PATCH", PATH, json={"visibility": "private"}), 403)["code"] == "auth.forbidden"
    assert refusal(world.north("PATCH", PATH, json={"visible": "all"}), 422)["code"] == "request.invalid"


def test_listing_searches_filters_and_pages(world):
    regression = world.metadata(task="regression", labels=None, description="Length of stay, 100% real")
    for name in ("digits", "letters", "stay"):
        world.north.publish(f"north/{name}", metadata=regression if name == "stay" else None)
    world.south.publish("south/digits")
    world.south.publish("south/hidden", visibility="private")

    def ids(**params):
        return [item["id"] for item in world.north.get("/v1/models", params=params).json()["items"]]

    assert ids() == ["north/digits", "north/letters", "north/stay", "south/digits"]
    assert ids(search="DIG") == ["north/digits", "south/digits"]
    assert ids(search="h/dig") == ["north/digits", "south/digits"]
    assert ids(search="100%") == ["north/stay"]
    assert ids(search="_ig") == []
    assert ids(party="south") == ["south/digits"]
    assert ids(task="regression") == ["north/stay"]
    first = world.north.get("/v1/models", params={"limit": 3}).json()
    assert [item["id"] for item in first["items"]] == ["north/digits", "north/letters", "north/stay"]
    assert ids(limit=3, cursor=first["next"]) == ["south/digits"]
    for cursor in ("x", "WzFd", first["next"][:-4]):
        assert refusal(world.north.get("/v1/models", params={"cursor": cursor}), 422)["code"] == "request.cursor"
    assert refusal(world.north.get("/v1/models", params={"limit": 0}), 422)["where"] == "limit"


def test_revisions_are_listed_newest_first(world):
    ids = [world.north.publish("north/digits", model=world.model(seed=seed)).json()["id"] for seed in range(3)]
    first = world.south.get(f"{PATH}/revisions", params={"limit": 2}).json()
    assert [item["id"] for item in first["items"]] == [ids[2], ids[1]]
    rest = world.south.get(f"{PATH}/revisions", params={"cursor": first["next"]}).json()
    assert [item["id"] for item in rest["items"]] == [ids[0]]
    assert rest["next"] is None


def test_ranges_and_conditions(world):
    content = world.model()
    revision = world.north.publish("north/digits").json()
    path = f"{PATH}/revisions/{revision['id']}/files/model.safetensors"
    size = len(content)
    whole = world.south.get(path)
    etag = whole.headers["etag"]
    assert (whole.status_code, whole.content) == (200, content)
    assert etag == f'"{hashlib.sha256(content).hexdigest()}"'
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"].startswith("attachment")
    for header, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=10-", 10, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 100}", 5, size),
        (f"bytes=0-{size - 1}", 0, size),
        (f"bytes=-{size + 5}", 0, size),
    ):
        part = world.south.get(path, headers={"Range": header})
        assert part.status_code == 206, header
        assert part.content == content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["content-length"] == str(end - start)
    for header in (f"bytes={size}-", "bytes=-0", f"bytes={size + 3}-{size + 9}"):
        past = world.south.get(path, headers={"Range": header})
        assert refusal(past, 416)["code"] == "range.not_satisfiable"
        assert past.headers["content-range"] == f"bytes */{size}"
    for header in ("bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,5-6", "bytes=a-b"):
        assert world.south.get(path, headers={"Range": header}).status_code == 200, header
    assert world.south.get(path, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
    assert world.south.get(path, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200
    for tags in (etag, f'"a", {etag}', f"W/{etag}", "*"):
        known = world.south.get(path, headers={"If-None-Match": tags})
        assert (known.status_code, known.content) == (304, b"")
        assert known.headers["etag"] == etag
    assert world.south.get(path, headers={"If-None-Match": '"a"'}).status_code == 200
    head = world.south("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["etag"]) == (str(size), etag)
    whole = world.south("HEAD", path, headers={"Range": "bytes=0-9"})
    assert (whole.status_code, whole.headers["content-length"]) == (200, str(size))
    for tags in (etag, f'"a", {etag}', "*"):
        assert world.south.get(path, headers={"If-Match": tags}).status_code == 200
    for tags in ('"a"', f"W/{etag}", ""):
        other = world.south.get(path, headers={"If-Match": tags, "If-None-Match": etag})
        assert refusal(other, 412)["code"] == "file.changed"
    assert refusal(world.south.get(f"{PATH}/revisions/latest/files/README.md"), 404)["code"] == "not_found"


def test_a_file_the_store_has_lost_is_said_so(world):
    world.north.publish("north/digits")
    store = world.settings.store
    (path,) = [blob for blob in world.blobs() if hashlib.sha256(world.model()).hexdigest() in blob]
    from pathlib import Path

    (Path(store) / path).unlink()
    error = refusal(world.north.get(f"{PATH}/revisions/latest/files/model.safetensors"), 503)
    assert error["code"] == "store.missing"


@pytest.mark.parametrize(
    ("path", "params", "where", "meant"),
    [
        ("/v1/models", {"licence": "MIT"}, "licence", "'license'"),
        ("/v1/models", {"limt": 3}, "limt", "'limit'"),
        ("/v1/models", {"task": "clasification"}, "task", "'classification'"),
        ("/v1/models", {"sort": "newst"}, "sort", "'newest'"),
        ("/v1/jobs", {"stat": "failed"}, "stat", "'state'"),
        ("/v1/jobs", {"state": "complet"}, "state", "'complete'"),
    ],
)
def test_parameters_and_words_that_are_not_known_are_asked_about(world, path, params, where, meant):
    error = refusal(world.north.get(path, params=params), 422)
    assert (error["code"], error["where"]) == ("request.invalid", where)
    assert meant in error["hint"]
    assert "/docs" in error["hint"]


def test_a_path_without_parameters_takes_none(world):
    error = refusal(world.north.get("/v1/whoami", params={"party": "north"}), 422)
    assert (error["where"], error["message"]) == ("party", "there is no parameter 'party' here")


def test_what_other_clients_send_besides_is_passed_over(world):
    """Clients of Hugging Face's API send parameters that no hub of theirs has to know."""
    assert world.north.get("/api/models", params={"anything": 1}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "where", "meant"),
    [
        ("PATCH", "/v1/models/north/digits", {"visibilty": "all"}, "visibilty", "'visibility'"),
        ("PATCH", "/v1/models/north/digits", {"visibility": "privat"}, "visibility", "'private'"),
        ("POST", "/v1/jobs", {"models": [], "dataset": "d", "evaluate": []}, "evaluate", "'evaluate_at'"),
        ("POST", "/v1/jobs", {"models": [{"repo": "a/b", "revison": "x"}]}, "models.0.revison", "'revision'"),
        ("POST", "/v1/jobs", {"models": ["north/digits", "a/b"], "dataset": "d"}, "models.0", "repo, revision"),
        ("POST", "/v1/jobs", {"models": "north/digits", "dataset": "d"}, "models", "a list is wanted"),
        ("POST", "/v1/parties/north/tokens", {"roles": ["publsher"]}, "roles.0", "'publisher'"),
    ],
)
def test_fields_of_a_body_that_are_not_known_are_asked_about(world, method, path, body, where, meant):
    world.north.publish("north/digits")
    error = refusal(world.actor("north", "publisher", "requester", "admin")(method, path, json=body), 422)
    assert (error["code"], error["where"]) == ("request.invalid", where)
    assert meant in f"{error['message']} {error['hint']}"
