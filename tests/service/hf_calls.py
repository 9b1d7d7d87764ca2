"""Calls of the Hub protocol, as the official client sends them."""

from __future__ import annotations

import base64
import hashlib
import json

SECRET = b"secret weights" * 1000
SIZE, OID = len(SECRET), hashlib.sha256(SECRET).hexdigest()


def make(actor, repo="north/repo", **body):
    namespace, name = repo.split("/")
    answer = actor.post("/api/repos/create", {"name": name, "organization": namespace, **body})
    assert answer.status_code == 200, answer.text
    return repo


def commit(actor, repo, *lines, branch="main", **header):
    entries = [{"key": "header", "value": {"summary": "Change", "description": "", **header}}]
    entries += [{"key": key, "value": value} for key, value in lines]
    content = "\n".join(json.dumps(entry) for entry in entries).encode()
    return raw_commit(actor, repo, content, branch)


def raw_commit(actor, repo, content, branch="main"):
    headers = {"Content-Type": "application/x-ndjson"}
    return actor("POST", f"/api/models/{repo}/commit/{branch}", content=content, headers=headers)


def put(path, content=b"x"):
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def lfs(path, oid=OID, **more):
    return "lfsFile", {"path": path, "algo": "sha256", "oid": oid, **more}


def batch(actor, repo, oid=OID, size=SIZE):
    body = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": oid, "size": size}],
        "hash_algo": "sha256",
    }
    answer = actor.post(f"/{repo}.git/info/lfs/objects/batch", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["transfer"] == "basic"
    return answer.json()["objects"][0]


def send(world, actor, repo, content=SECRET):
    address = batch(actor, repo, hashlib.sha256(content).hexdigest(), len(content))["actions"]["upload"]["href"]
    return world.client.put(address, content=content)


def files(actor, repo, revision="main"):
    answer = actor.get(f"/api/models/{repo}/tree/{revision}?recursive=True")
    assert answer.status_code == 200, answer.text
    return [entry["path"] for entry in answer.json() if entry["type"] == "file"]
