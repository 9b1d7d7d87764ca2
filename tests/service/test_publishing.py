"""What is refused at publishing; and that a refusal leaves nothing behind."""

from __future__ import annotations

import json

import pytest

PATH = "/v1/models/north/digits/revisions"


@pytest.fixture
def refused(world):
    """Check that an answer refuses, with this status and code, and that nothing became visible or stayed behind."""

    def check(answer, status, code, where=None):
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["code"] == code
        assert where is None or error["where"] == where
        assert error["message"]
        assert world.north.get("/v1/models").json()["items"] == []
        assert world.blobs() == []
        return error

    return check


def put(actor, parts, path=PATH):
    return actor("PUT", path, files=parts)


def whole(world):
    return [("model", ("m", world.model())), ("metadata", ("s", json.dumps(world.metadata()).encode()))]


def test_a_truncated_model(world, refused):
    for length in (0, 4, 100, 700, -1):
        answer = world.north.publish("north/digits", model=world.model()[:length])
        code = "model.truncated" if length else "model.empty"
        assert refused(answer, 422, code, "model.safetensors")["hint"]


def test_a_pickle_is_not_a_model(world, refused):
    import pickle

    refused(world.north.publish("north/digits", model=pickle.dumps({"w": 1.0})), 422, "model.not_portable")


def test_one_changed_byte_in_the_graph(world, refused):
    model = world.model().replace(b"aten.linear.default", b"aten.linear.defaulx")
    error = refused(world.north.publish("north/digits", model=model), 422, "model.operator")
    assert "aten.linear.defaulx" in error["message"]


def test_suture_json_without_a_field(world, refused):
    for field in ("license", "task", "inputs", "outputs", "labels", "schema"):
        metadata = world.metadata()
        del metadata[field]
        answer = world.north.publish("north/digits", metadata=metadata)
        assert field in refused(answer, 422, "metadata.invalid", "suture.json")["message"]


def test_suture_json_with_an_unknown_field(world, refused):
    error = refused(world.north.publish("north/digits", metadata=world.metadata(licence="x")), 422, "metadata.invalid")
    assert "licence" in error["message"]


def test_suture_json_naming_other_sizes_than_the_graph(world, refused):
    for sizes in ({"side": 8}, {"channels": 3}, {"classes": 5}):
        answer = world.north.publish("north/digits", metadata=world.metadata(**sizes))
        refused(answer, 422, "metadata.mismatch", "suture.json")


def test_suture_json_that_is_no_json(world, refused):
    refused(world.north.publish("north/digits", metadata=b"{"), 422, "metadata.invalid", "suture.json")


def test_missing_unknown_and_doubled_parts(world, refused):
    model, metadata = whole(world)
    refused(put(world.north, [model]), 422, "upload.missing_part", "metadata")
    refused(put(world.north, [metadata]), 422, "upload.missing_part", "model")
    refused(put(world.north, [model, metadata, ("weights", ("w", b"x"))]), 422, "upload.unknown_part", "weights")
    refused(put(world.north, [model, metadata, model]), 422, "upload.duplicate_part", "model")


def test_a_body_that_is_no_multipart(world, refused):
    refused(world.north("PUT", PATH, content=b"hello"), 400, "upload.not_multipart")
    refused(world.north("PUT", PATH, json={}), 400, "upload.not_multipart")
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    refused(world.north("PUT", PATH, content=b"", headers=kind), 400, "upload.truncated")
    refused(world.north("PUT", PATH, content=b"nothing of the kind", headers=kind), 400, "upload.malformed")
    start = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nabc'
    refused(world.north("PUT", PATH, content=start, headers=kind), 400, "upload.truncated")
    refused(
        world.north("PUT", PATH, content=start.replace(b"abc", b"\r\n") * 20, headers=kind), 400, "upload.malformed"
    )
    long = {"Content-Type": f"multipart/form-data; boundary={'B' * 5000}"}
    refused(world.north("PUT", PATH, content=start, headers=long), 400, "upload.malformed")


def test_a_card_that_is_no_text(world, refused):
    refused(world.north.publish("north/digits", card=b"\xff\xfe"), 422, "card.encoding", "README.md")
    refused(world.north.publish("north/digits", card=b"# x\n\0"), 422, "card.characters", "README.md, line 2")
    refused(world.north.publish("north/digits", card=b"---\na: b\n"), 422, "card.yaml", "README.md, line 1")
    refused(world.north.publish("north/digits", card=b"---\na: [\n---\n"), 422, "card.yaml", "README.md, line 2")


def test_limits_of_size(start):
    world = start(max_model_bytes=3000, max_card_bytes=1000)
    for options, where in (
        ({"model": world.model() + bytes(3000)}, "model"),
        ({"card": bytes(1001)}, "card"),
        ({"metadata": world.metadata(description="x" * 300_000)}, "metadata"),
    ):
        answer = world.north.publish("north/digits", **options)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "upload.too_large"
        assert answer.json()["error"]["where"] == where
        assert world.blobs() == []
    assert world.north.publish("north/digits", card=b"x" * 1000).status_code == 201


def test_names_that_no_model_may_have(world, refused):
    for name in ("a b", ".hidden", "x--y", "x.git", "n" * 97, "ü"):
        refused(world.north.publish(f"north/{name}"), 422, "name.invalid")


def test_who_may_publish(world, refused):
    refused(world.south.publish("north/digits"), 403, "auth.forbidden")
    refused(world.south.publish("nowhere/digits"), 403, "auth.forbidden")
    refused(world.actor("north", "requester").publish("north/digits"), 403, "auth.forbidden")
    refused(world.sites["north"].publish("north/digits"), 403, "auth.forbidden")


def test_a_refused_revision_leaves_the_model_as_it_was(world):
    before = world.north.publish("north/digits").json()
    blobs = world.blobs()
    assert world.north.publish("north/digits", model=world.model(seed=1)[:-1]).status_code == 422
    assert world.north.get(PATH).json()["items"] == [before]
    assert world.blobs() == blobs


def test_visibility_counts_only_when_the_model_is_made(world):
    world.north.publish("north/digits", visibility="private")
    world.north.publish("north/digits", model=world.model(seed=1), visibility="all")
    assert world.north.get("/v1/models/north/digits").json()["visibility"] == "private"
    answer = world.north.publish("north/other", visibility="world")
    assert answer.status_code == 422
    assert answer.json()["error"]["where"] == "visibility"
