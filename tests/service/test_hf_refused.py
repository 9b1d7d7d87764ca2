"""Names, paths, cards and calls that the Hub protocol refuses here, each in words."""

from __future__ import annotations

import base64
import json

from tests.service.hf_calls import commit, files, lfs, make, put, raw_commit

from suture_service.hf import missing
from suture_service.hf.changes import MAX_ENTRIES, REGULAR_BYTES

UNREADABLE = [
    (b"", 400),
    (b"{}", 400),
    (b"[1]\n", 400),
    (b"\xff\n", 400),
    (b"[" * 100_000, 400),
    (b'{"key":"file","value":{}}', 400),
    (b'{"key":"header","value":{"summary":3}}', 400),
    (b'{"key":"header","value":{"summary":"x","more":[' + b"[]," * 100 + b"[]]}}", 400),
    (b'{"key":"header","value":{"summary":"x"}}\n{"key":"other","value":{}}', 400),
    (b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"***"}}', 400),
    (b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"\\ud800"}}', 400),
    (b'{"key":"header","value":{"summary":"x"}}\n{"key":"lfsFile","value":{"path":"a","oid":"1"}}', 400),
    (b'{"key":"header","value":{"summary":"x"}}\n' + b"x" * (2 * REGULAR_BYTES), 413),
    (b'{"key":"header","value":{"summary":"x"}}\n' + b"\n" * (2 * MAX_ENTRIES), 413),
]


def test_a_commit_that_cannot_be_read_changes_nothing(world):
    repo = make(world.north)
    empty = world.north.get(f"/api/models/{repo}").json()["sha"]
    for content, status in UNREADABLE:
        answer = raw_commit(world.north, repo, content)
        assert answer.status_code == status, answer.text
        assert answer.headers["x-error-message"]
    assert world.north.get(f"/api/models/{repo}").json()["sha"] == empty


ALIKE = [
    ("A.txt", "a.txt"),
    ("caf\u00e9", "cafe\u0301"),
    ("Dir/x", "dir/X"),
    ("STRASSE", "stra\u00dfe"),
    ("\uac00", "\u1100\u1161"),
]
HARMFUL = [
    ".git./x",
    ".GIT /x",
    "a/.git::$INDEX_ALLOCATION/x",
    "GIT~1/config",
    "",
    "/a",
    "a/",
    "../a",
    "a/../b",
    "a//b",
    "./a",
    ".git/config",
    "a\0b",
    "a\nb",
    "a\\b",
    "x" * 256,
    "\ud800",
    "a:b",
    "folder/C:",
]


def test_paths_that_could_do_harm_are_refused(world):
    repo = make(world.north)
    for path in HARMFUL:
        for line in (put(path), lfs(path)):
            assert commit(world.north, repo, line).status_code == 400, path
    assert files(world.north, repo) == []


def test_paths_that_are_one_file_elsewhere_are_refused(world):
    repo = make(world.north)
    for first, second in ALIKE:
        assert commit(world.north, repo, put(first)).status_code == 200
        refused = commit(world.north, repo, put(second, b"y"))
        assert refused.status_code == 400, second
        assert "Windows and macOS" in refused.json()["error"]
        assert commit(world.north, repo, put(first, b"z")).status_code == 200
        assert commit(world.north, repo, ("deletedFile", {"path": first}), put(second)).status_code == 200
        assert commit(world.north, repo, ("deletedFile", {"path": second}), put(first), put(second)).status_code == 400
        assert commit(world.north, repo, ("deletedFile", {"path": second})).status_code == 200


def test_a_cursor_of_half_a_character_is_none(world):
    repo = make(world.north)
    for key in ("\ud800", "\0"):
        cursor = base64.urlsafe_b64encode(json.dumps([key]).encode()).decode()
        for path in (f"/api/models/{repo}/tree/main", "/api/models", "/v1/models"):
            assert world.north.get(f"{path}?cursor={cursor}").status_code in (400, 422), path


NO_NAMES = ["", "a b", "a..b", "-x", "/x", "x/", "a" * 256, "refs/heads/x", "abcdef0", "x.lock", "\u202e"]


def test_names_that_no_branch_or_tag_can_have(world):
    repo = make(world.north)
    for name in NO_NAMES:
        assert world.north.post(f"/api/models/{repo}/tag/main", {"tag": name}).status_code == 400, name
    assert world.north.post(f"/api/models/{repo}/tag/main", {"tag": "v1/x"}).status_code == 200


def test_cards_are_read_with_care(world):
    repo = make(world.north)
    bombs = ["a: &a [x]\nb: *a", "tags: 3", "- x", "a: [", "? [x]\n: y", "x: " + "[" * 5000]
    slips = [
        "---\na: b\n# Card",
        "--- \na: b\n---\n",
        "---\na: b\n...\n",
        "# Card\n\0",
        "# \u202egpj.exe",
        "---\na: b\na: c\n---\n",
    ]
    for text in [*(f"---\n{block}\n---\n# Card" for block in bombs), *slips]:
        card = text.encode()
        answer = commit(world.north, repo, put("README.md", card))
        assert answer.status_code == 400, text
        checked = world.client.post("/api/validate-yaml", json={"content": card.decode(), "repoType": "model"})
        assert (checked.status_code, len(checked.json()["errors"])) == (400, 1)
    good = b"---\ndate: 2026-01-02\nvalue: .nan\ntags: [a, b]\nparts: !!set {y, x}\n---\n# Card"
    assert commit(world.north, repo, put("README.md", good)).status_code == 200
    read = world.north.get(f"/api/models/{repo}").json()["cardData"]
    assert (read["date"], read["parts"]) == ("2026-01-02", ["x", "y"])


def test_messages_that_others_read_hold_nothing_that_is_not_shown(world):
    repo = make(world.north)
    for header in ({"summary": "\u202egpj.exe"}, {"description": "a\x1b[2J"}):
        assert commit(world.north, repo, put("a.txt", b"x"), **header).status_code == 400, header
    assert commit(world.north, repo, put("a.txt", b"x"), description="a\n\tb").status_code == 200


def test_other_kinds_of_repositories_are_refused(world):
    assert world.north.post("/api/repos/create", {"name": "x", "type": "dataset"}).status_code == 501
    assert world.north.post("/api/repos/create", {"name": "x" * 97}).status_code == 400
    assert world.north.post("/api/repos/create", {"name": "a/b"}).status_code == 400
    assert (
        commit(world.north, make(world.north), put("a"), branch="nothing").headers["x-error-code"] == "RevisionNotFound"
    )


def test_patterns_of_a_caller_never_hold_up_the_hub(world):
    make(world.north)

    def ask(rules):
        files = [{"path": f"{index}/" + "a" * 200, "size": 1, "sample": ""} for index in range(1000)]
        return world.north.post("/api/models/north/repo/preupload/main", {"files": files, "gitIgnore": rules})

    assert not any(file["shouldIgnore"] for file in ask("*a" * 50 + "*b").json()["files"])
    refused = ask("\n".join(["*" + "a" * 100 + "b*"] * 100))
    assert refused.status_code == 400
    assert "too many patterns" in refused.headers["X-Error-Message"]


def test_what_this_hub_has_not_is_said_in_one_voice(world):
    answers = {}
    for path in missing.PATHS:
        called = path.replace(":path}", "}").format(namespace="n", name="m", user="u", rest="a/b")
        answer = world.client.get(called)
        assert (answer.status_code, answer.headers["content-type"]) == (501, "application/json")
        assert answer.headers["X-Error-Message"] == answer.json()["error"].replace("…", "...")
        answers[path] = answer.json()["error"]
    assert all(words.startswith("this hub has no ") and words.endswith(")") for words in answers.values())
    made = world.north.post("/api/repos/create", {"name": "data", "type": "dataset"})
    assert (made.status_code, made.json()["error"]) == (501, answers["/api/datasets"])
    asked = world.north.post("/api/models/north/none/commit/main?create_pr=1")
    assert (asked.status_code, asked.json()["error"]) == (501, answers["/api/models/{namespace}/{name}/discussions"])
    assert world.operator.post("/v1/parties", {"name": "datasets"}).json()["error"]["code"] == "party.reserved"


def test_git_is_told_how_to_download(world):
    for path in ("/north/repo/info/refs?service=git-upload-pack", "/north/repo.git/info/refs"):
        answer = world.client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (501, "text/plain; charset=utf-8")
        assert "hf download north/repo\n" in answer.text
