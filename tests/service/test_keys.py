"""Public keys, signatures that the hub checks, and what is flagged when a key or a revision is taken back."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta

import pytest

from suture_contract.model.signature import create_key, sign

CARD = b"# digits\n"


@pytest.fixture
def key(tmp_path):
    """A key of `north`: its file, and its public part."""
    private, public = create_key()
    path = tmp_path / "north.pem"
    path.write_bytes(private)
    return path, public


@pytest.fixture
def registered(world, key):
    """A hub that knows the key."""
    admin = world.actor("north", "admin")
    made = admin.post("/v1/parties/north/keys", {"name": "north-2026", "public_key": key[1].pem})
    assert (made.status_code, made.json()["fingerprint"]) == (201, key[1].fingerprint)
    return world


def files_of(world, seed=0, metadata=None, card=CARD):
    metadata = json.dumps(metadata or world.metadata()).encode()
    return {"model.safetensors": world.model(seed=seed), "suture.json": metadata, "README.md": card}


def digests(files):
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def publish(actor, repo, files, signature=None):
    parts = {"model": files["model.safetensors"], "metadata": files["suture.json"], "card": files["README.md"]}
    if signature is not None:
        parts["signature"] = signature
    form = {name: (name, content) for name, content in parts.items()}
    return actor("PUT", f"/v1/models/{repo}/revisions", files=form, params={"visibility": "all"})


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def kinds(flags):
    return [(flag["kind"], flag["repo"]) for flag in flags]


def test_a_signed_model_is_published_and_says_who_signed_it(registered, key):
    files = files_of(registered)
    signature = sign(digests(files), "north/digits", key[0])
    answer = publish(registered.north, "north/digits", files, signature)
    assert answer.status_code == 201, answer.text
    assert answer.json()["signed_by"] == key[1].fingerprint
    assert {file["name"] for file in answer.json()["files"]} == {*files, "model.sig"}
    read = registered.south.get("/v1/models/north/digits/revisions/latest/files/model.sig")
    assert read.content == signature
    assert publish(registered.north, "north/digits", files, signature).status_code == 200


@pytest.mark.parametrize("changed", ["model.safetensors", "suture.json", "README.md"])
def test_a_signature_of_other_files_is_refused(registered, key, changed):
    signed = files_of(registered)
    signature = sign(digests(signed), "north/digits", key[0])
    other = files_of(registered, seed=7, metadata=registered.metadata(description="another"), card=b"# another\n")
    answer = publish(registered.north, "north/digits", {**signed, changed: other[changed]}, signature)
    assert code(answer) == (422, "signature.mismatch")
    assert changed in answer.json()["error"]["message"]
    assert registered.north.get("/v1/models/north/digits").status_code == 404


def test_only_live_keys_of_the_party_itself_sign(registered, key, tmp_path):
    files = files_of(registered)
    private, _ = create_key()
    (tmp_path / "stranger.pem").write_bytes(private)
    unknown = sign(digests(files), "north/digits", tmp_path / "stranger.pem")
    assert code(publish(registered.north, "north/digits", files, unknown)) == (422, "signature.unknown_key")
    own = sign(digests(files), "north/digits", key[0])
    assert code(publish(registered.south, "south/digits", files, own)) == (422, "signature.unknown_key")
    assert code(publish(registered.north, "north/digits", files, b"{}")) == (422, "signature.invalid")
    admin = registered.actor("north", "admin")
    admin.post(f"/v1/parties/north/keys/{key[1].fingerprint}/revoke", {"reason": "laptop lost"})
    assert code(publish(registered.north, "north/digits", files, own)) == (422, "signature.revoked_key")


def test_keys_are_listed_for_all_and_managed_by_an_admin(registered, key):
    listed = registered.south.get("/v1/parties/north/keys").json()["items"]
    assert [(item["name"], item["public_key"]) for item in listed] == [("north-2026", key[1].pem)]
    assert registered.south.get("/v1/parties/nowhere/keys").status_code == 404
    body = {"name": "mine", "public_key": create_key()[1].pem}
    assert code(registered.north.post("/v1/parties/north/keys", body)) == (403, "auth.forbidden")
    stranger = registered.actor("south", "admin")
    assert code(stranger.post("/v1/parties/north/keys", body)) == (403, "auth.forbidden")
    revoke = f"/v1/parties/north/keys/{key[1].fingerprint}/revoke"
    assert stranger.post(revoke, {"reason": "spite"}).status_code == 403
    admin = registered.actor("north", "admin")
    assert admin.post("/v1/parties/north/keys", {"name": "again", "public_key": key[1].pem}).status_code == 200
    assert admin.post("/v1/parties/north/keys/" + "0" * 64 + "/revoke", {"reason": "x"}).status_code == 404
    assert admin.post(revoke, {"reason": "laptop lost"}).json()["revoked_reason"] == "laptop lost"
    assert admin.post(revoke, {"reason": "again"}).json()["revoked_reason"] == "laptop lost"
    assert code(admin.post("/v1/parties/north/keys", {"name": "back", "public_key": key[1].pem})) == (
        409,
        "key.revoked",
    )


def test_no_private_key_and_nothing_else_is_taken_for_a_key(registered, key):
    admin = registered.actor("north", "admin")
    for text, expected in ((key[0].read_text(), "key.private"), ("hello", "key.invalid"), ("", "key.invalid")):
        answer = admin.post("/v1/parties/north/keys", {"name": "odd", "public_key": text})
        assert code(answer) == (422, expected)
        assert "MIG" not in answer.text


def test_what_is_published_can_be_signed_afterwards(registered, key):
    files = files_of(registered)
    plain = publish(registered.north, "north/digits", files).json()
    path = f"/v1/models/north/digits/revisions/{plain['id']}/signature"
    signature = sign(digests(files), "north/digits", key[0])
    assert registered.south("PUT", path, content=signature).status_code == 403
    assert code(registered.north("PUT", path, content=sign({"a": "0" * 64}, "north/digits", key[0]))) == (
        422,
        "signature.mismatch",
    )
    assert registered.north("PUT", path, content=b"x" * 300_000).status_code == 413
    signed = registered.north("PUT", path, content=signature)
    assert (signed.status_code, signed.json()["signed_by"]) == (201, key[1].fingerprint)
    assert registered.south.get("/v1/models/north/digits").json()["revision"] == signed.json()["id"]
    again = registered.north("PUT", path, content=signature)
    assert (again.status_code, again.json()["id"]) == (200, signed.json()["id"])
    publish(registered.north, "north/digits", files_of(registered, seed=3))
    other = sign(digests(files), "north/digits", key[0])
    assert code(registered.north("PUT", path, content=other)) == (422, "signature.not_newest")


def test_no_signature_is_published_that_readers_would_refuse(registered, key):
    def signed(repo, signed_at, seed=0):
        files = files_of(registered, seed=seed)
        return publish(registered.north, repo, files, sign(digests(files), "north/digits", key[0], signed_at=signed_at))

    now = registered.now()
    refused = signed("north/other", now)
    assert code(refused) == (422, "signature.name")
    assert "as north/digits, and here they are called north/other" in refused.json()["error"]["message"]
    assert registered.north.get("/v1/models/north/other").status_code == 404
    assert code(signed("north/digits", now + timedelta(hours=1))) == (422, "signature.ahead")
    first = signed("north/digits", now - timedelta(seconds=20))
    assert first.status_code == 201, first.text
    assert signed("north/digits", now, seed=1).status_code == 201
    assert code(signed("north/digits", now - timedelta(seconds=10), seed=2)) == (422, "signature.older")
    # Nor does a commit bring the first one back, with files and signature that the hub knows.
    old = {file["name"]: file["sha256"] for file in first.json()["files"]}
    back = {name: registered.north.get(f"{first.request.url.path}/{first.json()['id']}/files/{name}") for name in old}
    content = {name.replace(".", "_"): answer.content for name, answer in back.items()}
    assert "signature" in commit(registered.north, "north/digits", **content).text


def commit(actor, repo, **files):
    lines = [{"key": "header", "value": {"summary": "change"}}]
    for name, content in files.items():
        value = {"path": name.replace("_", "."), "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    body = "\n".join(json.dumps(line) for line in lines)
    return actor("POST", f"/api/models/{repo}/commit/main", content=body)


def test_a_commit_of_the_official_client_keeps_signature_and_files_together(registered, key):
    files = files_of(registered)
    publish(registered.north, "north/digits", files, sign(digests(files), "north/digits", key[0])).raise_for_status()
    stale = commit(registered.north, "north/digits", README_md=b"# edited\n")
    assert stale.status_code == 400, stale.text
    assert "README.md" in stale.text
    files["README.md"] = b"# edited\n"
    both = commit(
        registered.north,
        "north/digits",
        README_md=b"# edited\n",
        model_sig=sign(digests(files), "north/digits", key[0]),
    )
    assert both.status_code == 200, both.text
    assert registered.north.get("/v1/models/north/digits/revisions/latest").json()["signed_by"] == key[1].fingerprint


@pytest.fixture
def descended(registered, key):
    """`east/child` is made of `north/digits` and `south/digits`, `south/grandchild` of `east/child`."""
    made = {}

    def member(repo):
        answer = made[repo]
        sha256 = next(file["sha256"] for file in answer["files"] if file["name"] == "model.safetensors")
        return {"repo": repo, "revision": answer["id"], "sha256": sha256}

    def add(actor, repo, seed, members=(), signed=False):
        lineage = {"members": [member(name) for name in members], "job": "job_1", "requester": actor, "candidate": "c0"}
        metadata = registered.metadata(**({"lineage": lineage} if members else {}))
        files = files_of(registered, seed=seed, metadata=metadata)
        signature = sign(digests(files), "north/digits", key[0]) if signed else None
        answer = publish(getattr(registered, actor), repo, files, signature)
        assert answer.status_code == 201, answer.text
        made[repo] = answer.json()

    add("north", "north/digits", 1, signed=True)
    add("south", "south/digits", 2)
    add("east", "east/child", 3, ["north/digits", "south/digits"])
    add("south", "south/grandchild", 4, ["east/child", "south/digits"])
    return registered, made


def flags(world, repo):
    return world.south.get(f"/v1/models/{repo}/revisions/latest").json()["flags"]


def test_a_withdrawn_revision_flags_all_that_was_made_of_it(descended):
    world, made = descended
    path = f"/v1/models/north/digits/revisions/{made['north/digits']['id']}/withdraw"
    assert world.south.post(path, {"reason": "spite"}).status_code == 403
    assert world.north.post(path, {"reason": ""}).status_code == 422
    withdrawn = world.north.post(path, {"reason": "trained on wrong labels"})
    assert withdrawn.status_code == 200, withdrawn.text
    for repo in ("north/digits", "east/child", "south/grandchild"):
        assert kinds(flags(world, repo)) == [("withdrawn", "north/digits")]
        assert flags(world, repo)[0]["reason"] == "trained on wrong labels"
        assert kinds(world.south.get(f"/v1/models/{repo}").json()["flags"]) == [("withdrawn", "north/digits")]
        info = world.south.get(f"/api/models/{repo}").json()
        assert "flag:withdrawn" in info["tags"]
        assert info["flags"][0]["repo"] == "north/digits"
    assert flags(world, "south/digits") == []
    listed = {item["id"]: kinds(item["flags"]) for item in world.south.get("/v1/models").json()["items"]}
    assert listed.pop("south/digits") == []
    assert set(map(tuple, listed.values())) == {(("withdrawn", "north/digits"),)}
    tagged = {item["id"] for item in world.south.get("/api/models").json() if "flag:withdrawn" in item["tags"]}
    assert tagged == {"north/digits", "east/child", "south/grandchild"}
    # What was traced stays where it is.
    assert world.south.get("/v1/models/north/digits/revisions/latest/files/model.safetensors").status_code == 200


def test_a_revoked_key_flags_what_it_signed_and_all_that_was_made_of_it(descended, key):
    world, _ = descended
    admin = world.actor("north", "admin")
    admin.post(f"/v1/parties/north/keys/{key[1].fingerprint}/revoke", {"reason": "laptop lost"}).raise_for_status()
    for repo in ("north/digits", "east/child", "south/grandchild"):
        assert kinds(flags(world, repo)) == [("key_revoked", "north/digits")]
    assert flags(world, "south/digits") == []


def test_a_flag_does_not_tell_of_a_model_that_is_not_shared(descended):
    world, made = descended
    path = "/v1/models/north/digits"
    world.north.post(f"{path}/revisions/{made['north/digits']['id']}/withdraw", {"reason": "a secret"})
    world.north("PATCH", path, json={"visibility": "private"}).raise_for_status()
    assert flags(world, "east/child") == [
        {**flags(world, "east/child")[0], "repo": None, "revision": None, "reason": ""}
    ]
    assert world.south.get(path).status_code == 404


def test_a_new_model_of_a_withdrawn_one_is_flagged_from_the_start(descended):
    world, made = descended
    world.north.post(f"/v1/models/north/digits/revisions/{made['north/digits']['id']}/withdraw", {"reason": "wrong"})
    members = [
        {"repo": repo, "revision": made[repo]["id"], "sha256": made[repo]["files"][1]["sha256"]}
        for repo in ("north/digits", "south/digits")
    ]
    lineage = {"members": members, "job": "job_2", "requester": "east", "candidate": "c0"}
    files = files_of(world, seed=9, metadata=world.metadata(lineage=lineage))
    assert kinds(publish(world.east, "east/late", files).json()["flags"]) == [("withdrawn", "north/digits")]


def test_flagged_models_are_not_stitched(world):
    assert world.ask().status_code == 201
    revision = world.north.get("/v1/models/north/digits").json()["revision"]
    world.north.post(f"/v1/models/north/digits/revisions/{revision}/withdraw", {"reason": "wrong labels"})
    refused = world.ask()
    assert code(refused) == (409, "job.flagged_model")
    assert "wrong labels" in refused.json()["error"]["message"]


def test_keys_and_withdrawals_are_in_the_audit_log(registered, key):
    files = files_of(registered)
    revision = publish(registered.north, "north/digits", files).json()["id"]
    registered.north.post(f"/v1/models/north/digits/revisions/{revision}/withdraw", {"reason": "wrong labels"})
    registered.actor("north", "admin").post(
        f"/v1/parties/north/keys/{key[1].fingerprint}/revoke", {"reason": "laptop lost"}
    )
    entries = registered.actor("north", "auditor").get("/v1/audit").json()["items"]
    assert {"key.register", "key.revoke", "model.withdraw"} <= {entry["action"] for entry in entries}
    assert "laptop lost" not in json.dumps(entries)
