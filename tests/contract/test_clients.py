"""The official client and its command line, unmodified, do all they are wanted for."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import httpx
import pytest
from tests.service.conftest import metadata_of, model_bytes, safetensors_bytes

pytestmark = pytest.mark.timeout(600)  # the first run installs the clients
HERE = Path(__file__).parent
LARGE = 12_000_000
CARD = "---\nlicense: apache-2.0\ntags: [digits]\n---\n# Digits\n"


def prepare(folder):
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(model_bytes())
    (folder / "model" / "suture.json").write_text(json.dumps(metadata_of()))
    (folder / "model" / "README.md").write_text(CARD)
    data = random.Random(0).randbytes(LARGE)
    header = {"x": {"dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE]}}
    (folder / "large.safetensors").write_bytes(safetensors_bytes(header, data))
    return folder


#: Each client with one kind of hub: what databases and stores do is the same, and what a client asks of them, too.
RUNS = [("postgresql+s3", "2.4.0"), ("sqlite+folder", "1.33.0"), ("sqlite+folder", "0.36.2")]


@pytest.fixture
def answers(request, live, python_with, tmp_path):
    """What came of all steps of one version of the client."""
    found = live.run(python_with(request.param), HERE / "steps.py", prepare(tmp_path / "work"))
    assert found["version"] == request.param
    return found["answers"]


@pytest.mark.parametrize(("live", "answers"), RUNS, indirect=True)
def test_the_client_does_all_it_is_wanted_for(answers, live):
    new = "Remote" if "RemoteEntryNotFoundError" in answers["download"]["missing"] else ""
    assert answers["who_am_i"] == {"name": "north", "role": "write", "wrong": 401}
    assert answers["make_and_remove"] == {
        "made": [f"{live.url}/north/first"] * 2,
        "bare": "north/second",
        "again": 409,
        "foreign": 403,
        "there": [True, False, True],
        "gone": False,
        "first": ["initial commit"],
    }
    uploaded = answers["upload_a_file"]
    assert (uploaded["text"], uploaded["files"]) == ("hello", ["a folder/hello #1 \u00e4.txt"])
    assert uploaded["oid"] == uploaded["same"]
    assert answers["upload_a_large_file"] == {"sha256": True, "size": True, "lfs": True}
    assert answers["upload_a_folder"] == {
        "files": ["README.md", "model.safetensors", "suture.json"],
        "sha": True,
        "titles": ["The model", "initial commit"],
    }
    kept = [index for index in range(30) if index % 10 != 5]
    assert answers["many_files"] == sorted([".gitignore", *(f"deep/{index}.txt" for index in kept)])
    assert answers["commit"] == {
        "url": True,
        "stale": 412,
        "missing": [f"{new}EntryNotFoundError", 404],
        "hint": True,
        "nobody": ["HfHubHTTPError", 403],
        "pull": [501, True],
        "title": ["Title", "Body", ["north"], True],
        "files": ["by-lfs.safetensors", "weights/large.safetensors"],
        "newest": "Delete new.txt with huggingface_hub",
    }
    look = answers["look"]
    assert look.pop("tags") == ["classification", "digits", "image-classification", "license:apache-2.0", "suture"]
    assert look == {
        "id": "north/digits",
        "author": "north",
        "private": False,
        "gated": False,
        "pipeline": "image-classification",
        "library": "suture",
        "license": "apache-2.0",
        "model": [len(model_bytes()), True],
        "times": True,
    }
    check_refusals(answers)
    check_lists(answers, new)
    check_downloads(answers, live, new)
    check_shortened(answers)
    check_access(answers)
    check_what_is_not_here(answers)
    line = answers["command_line"]
    assert (line["ok"], line["name"], line["text"]) == ([0, 0, 0], True, "from the command line"), line["output"]
    with httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {live.tokens['south']}"}) as south:
        (listed,) = south.get("/v1/models").json()["items"]
        assert (listed["id"], listed["metadata"]["task"]) == ("north/digits", "classification")
        path = f"/v1/models/north/digits/revisions/{listed['revision']}/files/model.safetensors"
        assert south.get(path).content == model_bytes()


def check_refusals(answers):
    checks = answers["checks"]
    for name, words in {
        "alone": "model.safetensors is missing beside it",
        "broken": "suture.json: schema: it is missing",
        "portable": "suture.json is missing beside it",
    }.items():
        kind, status, text = checks[name]
        assert (kind, status) == ("BadRequestError", 400)
        assert words in text
    assert "line 2" in checks["yaml"][2]
    assert checks["files"] == []
    private = answers["private"]
    refused = private.pop("wrong token")[-1]
    assert "Invalid credentials in Authorization header" in refused
    assert "the token is missing, wrong or revoked" in refused
    assert private == {
        "foreign": ["RepositoryNotFoundError", 404],
        "anonymous": ["RepositoryNotFoundError", 401],
        "file": "RepositoryNotFoundError",
        "unknown": ["RepositoryNotFoundError", 404],
        "hidden": "RepositoryNotFoundError",
        "gated": "manual",
        "gated file": ["GatedRepoError", 403],
        "own file": "suture.json",
        "auth": [None, "GatedRepoError", None],
    }


def check_shortened(answers):
    assert answers["shorten"] == {
        "before": 6,
        "after": ["All of it"],
        "squashed": False,
        "nobody": ["RepositoryNotFoundError", 404],
        "listed": [[name, ord(name[0])] for name in ("a.safetensors", "b.safetensors")],
        "left": ["b.safetensors", "note.txt"],
        "lfs": ["b.safetensors"],
        "again": 400,
        "old": "RevisionNotFoundError",
        "repeated": None,
    }


def check_access(answers):
    asked = answers["asked"]
    why = {"reason": "a study"}
    pending, accepted = [["south", "pending", why]], [["south", "accepted", why]]
    assert asked.pop("states") == [
        [[], [], []],
        [pending, [], []],
        [[], accepted, []],
        [[], [], [["south", "rejected", why]]],
        [pending, [], []],
        [[], accepted, []],
    ]
    assert asked == {
        "gate": ["GatedRepoError", True],
        "answer": {"status": "pending"},
        "opened": [None, "x"],
        "closed": "GatedRepoError",
        "nobody": 403,
        "unknown": 404,
        "stranger": 400,
    }


def check_what_is_not_here(answers):
    found = answers["not_here"]
    assert found["said"] == {
        "discussions": [501, "pull requests and discussions"],
        "pull request": [501, "pull requests and discussions"],
        "likes": [501, "likes"],
        "liked": [501, "likes"],
        "datasets": [501, "datasets"],
        "dataset": [501, "datasets"],
        "new dataset": [501, "datasets"],
        "space": [501, "spaces"],
        "collections": [501, "collections"],
        "collection": [501, "collections"],
        "webhooks": [501, "webhooks"],
        "user": [501, "organisations and users"],
    }
    assert found["git"] == [True, True]
    assert answers["many_paths"] == ["deep/1.txt"]


def check_lists(answers, new):
    pages = [f"page-{index}" for index in range(6)]
    assert answers["search"] == {
        "search": ["digits"],
        "author": pages,
        "nobody": [],
        "filter": pages[1::2],
        "both": pages[1::2],
        "none": [],
        "pipeline": ["digits"],
        "sort": pages[::-1],
        "limit": pages[:-3:-1],
        "full": 6,
        "paged": 6,
        "south": ["digits"],
    }
    assert answers["tree"] == {
        "kinds": ["RepoFile", "RepoFolder"],
        "last": "Upload folder using huggingface_hub",
        "oid": "56a6051ca2b02b04ef92d5150c9ef600403cb1de",  # git hash-object of "1"
        "flat": [".gitignore", "deep"],
        "inside": 27,
        "missing": [f"{new}EntryNotFoundError", 404],
    }
    assert answers["refs"] == {
        "branches": ["feature/x", "main"],
        "tags": [["v1.0", "refs/tags/v1.0", True]],
        "taken": 409,
        "text": "b",
        "main": True,
        "short": True,
        "exists": [True, False],
        "log": 4,
        "after": [1, 0],
        "main branch": 403,
    }


def check_downloads(answers, live, new):
    assert answers["download"] == {
        "same": True,
        "cache": True,
        "meta": [True, True, True],
        "missing": f"{new}EntryNotFoundError",
        "revision": "RevisionNotFoundError",
        "exists": [True, False],
    }
    assert answers["resume"] is True
    assert live.ranges == [None, f"bytes={10 * 2**20}-"]
    assert answers["snapshot"] == {
        "files": ["README.md", "model.safetensors", "suture.json"],
        "again": True,
        "some": 10,
        "model": True,
    }
    assert answers["safetensors"] == {"sharded": False, "count": {"F32": 34}, "told": [{"F32": 34}, 34]}
    assert answers["card"]["license"] == "apache-2.0"
    assert answers["card"]["bad"] in (None, "ValueError")
    assert "pushed" in answers["card"]["tags"]
    assert answers["verify"] in (None, {"checked": 28, "wrong": 0, "missing": 0})


@pytest.mark.parametrize("live", ["sqlite+folder"], indirect=True)
def test_torch_modules_are_pushed_and_loaded(live, tmp_path):
    """`PyTorchModelHubMixin`, with the client that this project itself uses."""
    (tmp_path / "work").mkdir()
    found = live.run(Path(sys.executable), HERE / "mixin.py", tmp_path / "work")
    assert found == {"same": True, "files": ["README.md", "config.json", "model.safetensors"], "wide": 3}
