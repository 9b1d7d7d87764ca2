from __future__ import annotations

import hashlib
import json

import pytest


def test_publish_and_read_back(world):
    card = b"# Digits\n"
    model = world.north.publish("north/digits", card=card, model=None)
    assert model.status_code == 201, model.text
    revision = model.json()
    files = {file["name"]: file for file in revision["files"]}
    assert set(files) == {"model.safetensors", "suture.json", "README.md"}
    lines = "".join(f"{name}\0{file['sha256']}\n" for name, file in sorted(files.items()))
    assert revision["id"] == hashlib.sha256(lines.encode()).hexdigest()[:40]
    assert (revision["repo"], revision["created_by"], revision["job"]) == ("north/digits", "north", None)
    path = "/v1/models/north/digits/revisions"
    for rev in ("latest", revision["id"]):
        assert world.south.get(f"{path}/{rev}").json() == revision
        for name, file in files.items():
            content = world.south.get(f"{path}/{rev}/files/{name}").content
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
            assert len(content) == file["size"]
    found = world.south.get("/v1/models/north/digits").json()
    assert found["revision"] == revision["id"]
    assert found["metadata"] == revision["metadata"]
    assert world.south.get(path).json()["items"] == [revision]
