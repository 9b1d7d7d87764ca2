"""What a user of the official client does with a hub, in one process. Runs in the virtual environment of one client
version, against the hub that `HF_ENDPOINT` names, and prints what came of each step as JSON; a step that fails gives
the exception's class and text.

Arguments: a folder to work in, which holds `model/` (a portable model), `large.safetensors` and `tokens.json`.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.utils import build_hf_headers, get_session, paginate  # type: ignore[attr-defined]

WORK = Path(sys.argv[1])
TOKENS = json.loads((WORK / "tokens.json").read_text())
NORTH, SOUTH = HfApi(token=TOKENS["north"]), HfApi(token=TOKENS["south"])
answers, seconds = {}, {}


NEW = tuple(map(int, hf.__version__.split(".")[:2])) >= (2, 2)


def step(function):
    """Do it at once and note what it returns."""
    started = time.perf_counter()
    try:
        answers[function.__name__] = function()
    except Exception as error:
        answers[function.__name__] = {"error": type(error).__name__, "text": str(error)}
    seconds[function.__name__] = round(time.perf_counter() - started, 2)
    return function


def refused(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]
    return None


def files(repo, **options):
    return sorted(NORTH.list_repo_files(repo, **options))


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def cli(*arguments, cwd=None):
    command = [str(Path(sys.executable).parent / "hf"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd or WORK)
    return {"rc": done.returncode, "text": done.stdout + done.stderr}


@step
def who_am_i():
    found = NORTH.whoami()
    wrong = refused(HfApi(token="suture_party_wrong").whoami)
    return {"name": found["name"], "role": found["auth"]["accessToken"]["role"], "wrong": wrong[1]}


@step
def make_and_remove():
    made = [str(NORTH.create_repo("north/first", exist_ok=exist)) for exist in (False, True)]
    bare = NORTH.create_repo("second").repo_id
    again = refused(NORTH.create_repo, "north/first")[1]
    foreign = refused(SOUTH.create_repo, "north/theirs")[1]
    NORTH.move_repo("north/second", "north/third")
    there = [NORTH.repo_exists(f"north/{name}") for name in ("first", "second", "third")]
    NORTH.delete_repo("north/third")
    NORTH.delete_repo("north/never", missing_ok=True)
    gone = NORTH.repo_exists("north/third")
    NORTH.create_repo("north/third")  # the name is free again
    NORTH.delete_repo("north/third")
    first = [commit.title for commit in NORTH.list_repo_commits("north/first")]
    return {
        "made": made,
        "bare": bare,
        "again": again,
        "foreign": foreign,
        "there": there,
        "gone": gone,
        "first": first,
    }


@step
def upload_a_file():
    text = b"hello"
    info = NORTH.upload_file(path_or_fileobj=text, path_in_repo="a folder/hello #1 \u00e4.txt", repo_id="north/first")
    same = NORTH.upload_file(path_or_fileobj=text, path_in_repo="a folder/hello #1 \u00e4.txt", repo_id="north/first")
    back = hf_hub_download("north/first", "a folder/hello #1 \u00e4.txt", token=TOKENS["north"])
    return {
        "oid": info.oid,
        "same": same.oid,
        "text": Path(back).read_text(encoding="utf-8"),
        "files": files("north/first"),
    }


@step
def upload_a_large_file():
    path = WORK / "large.safetensors"
    NORTH.upload_file(path_or_fileobj=path, path_in_repo="weights/large.safetensors", repo_id="north/first")
    (found,) = NORTH.get_paths_info("north/first", "weights/large.safetensors")
    # Open files go by LFS in every version.
    with path.open("rb") as file:
        content = BytesIO(file.read() + b"\0" * 8)
    NORTH.upload_file(path_or_fileobj=content, path_in_repo="by-lfs.safetensors", repo_id="north/first")
    lfs = NORTH.get_paths_info("north/first", ["by-lfs.safetensors"])[0].lfs
    return {
        "sha256": found.lfs.sha256 == digest(path),
        "size": found.size == path.stat().st_size,
        "lfs": lfs.sha256 == hashlib.sha256(content.getvalue()).hexdigest(),
    }


@step
def upload_a_folder():
    NORTH.create_repo("north/digits", private=False)
    info = NORTH.upload_folder(folder_path=WORK / "model", repo_id="north/digits", commit_message="The model")
    info = getattr(info, "oid", info)
    again = NORTH.upload_folder(folder_path=WORK / "model", repo_id="north/digits")
    return {
        "files": files("north/digits"),
        "sha": NORTH.model_info("north/digits").sha == info == again.oid,
        "titles": [commit.title for commit in NORTH.list_repo_commits("north/digits")],
    }


@step
def many_files():
    folder = WORK / "many"
    (folder / "deep" / "er").mkdir(parents=True)
    for index in range(30):
        (folder / "deep" / f"{index}.txt").write_text(str(index))
    (folder / "deep" / "er" / "skip.log").write_text("not wanted")
    (folder / ".gitignore").write_text("*.log\n")
    NORTH.create_repo("north/many")
    NORTH.upload_folder(folder_path=folder, repo_id="north/many")
    NORTH.upload_folder(
        folder_path=folder / "deep",
        path_in_repo="deep",
        repo_id="north/many",
        delete_patterns="*5.txt",
        allow_patterns=["1.txt"],
    )
    return sorted(files("north/many"))


@step
def commit():
    parent = NORTH.model_info("north/first").sha
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("a folder/"),
    ]
    info = NORTH.create_commit(
        "north/first", operations, commit_message="Title", commit_description="Body", parent_commit=parent
    )
    stale = refused(
        NORTH.create_commit, "north/first", [CommitOperationAdd("x", b"x")], commit_message="x", parent_commit=parent
    )
    NORTH.delete_file("new.txt", "north/first")
    missing = refused(NORTH.delete_file, "new.txt", "north/first")
    nobody = refused(SOUTH.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="north/digits")
    pull = refused(NORTH.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="north/first", create_pr=True)
    (newest, before, *_) = NORTH.list_repo_commits("north/first")
    return {
        "url": info.commit_url.endswith(f"/north/first/commit/{info.oid}"),
        "stale": stale[1],
        "missing": missing[:2],
        "hint": "doesn't exist" in missing[2],
        "nobody": nobody[:2],
        "pull": [pull[1], "no pull requests" in pull[2]],
        "title": [before.title, before.message, before.authors, before.commit_id == info.oid],
        "files": files("north/first"),
        "newest": newest.title,
    }


@step
def checks():
    model, metadata = ((WORK / "model" / name).read_bytes() for name in ("model.safetensors", "suture.json"))
    wrong = {
        "alone": {"suture.json": metadata},
        "broken": {"suture.json": b"{}", "model.safetensors": model},
        "portable": {"model.safetensors": model},
        "yaml": {"README.md": b"---\ntags: [a\n---\n"},
    }
    NORTH.create_repo("north/wrong")
    shown = {}
    for name, content in wrong.items():
        operations = [CommitOperationAdd(path, data) for path, data in content.items()]
        shown[name] = refused(NORTH.create_commit, "north/wrong", operations, commit_message="x")
    return {**shown, "files": files("north/wrong")}


@step
def look():
    info = NORTH.model_info("north/digits", files_metadata=True)
    siblings = {entry.rfilename: entry for entry in info.siblings}
    model = siblings["model.safetensors"]
    return {
        "id": info.id,
        "author": info.author,
        "private": info.private,
        "gated": info.gated,
        "tags": info.tags,
        "pipeline": info.pipeline_tag,
        "library": info.library_name,
        "license": info.card_data.license if info.card_data else None,
        "model": [model.size, model.lfs.sha256 == digest(WORK / "model" / "model.safetensors")],
        "times": info.created_at is not None and info.last_modified is not None,
    }


@step
def search():
    for index in range(6):
        NORTH.create_repo(f"north/page-{index}")
        card = f"---\ntags: [paged{', odd' if index % 2 else ''}]\nlicense: mit\n---\n# Page".encode()
        NORTH.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=f"north/page-{index}")

    def ids(api=NORTH, **options):
        return [model.id.removeprefix("north/") for model in api.list_models(**options)]

    query = {"limit": 4, "filter": "paged"}
    paged = paginate(f"{hf.constants.ENDPOINT}/api/models", params=query, headers=NORTH._build_hf_headers())
    return {
        "search": ids(search="digi"),
        "author": sorted(ids(author="north", search="page")),
        "nobody": ids(author="south"),
        "filter": sorted(ids(filter="odd")),
        "both": sorted(ids(filter=["odd", "license:mit"])),
        "none": ids(filter=["odd", "license:apache-2.0"]),
        "pipeline": ids(pipeline_tag="image-classification"),
        "sort": ids(filter="paged", sort="created_at"),
        "limit": ids(filter="paged", sort="created_at", limit=2),
        "full": sum(len(model.siblings) for model in NORTH.list_models(filter="paged", full=True)),
        "paged": len(list(paged)),
        "south": sorted(ids(SOUTH)),
    }


@step
def tree():
    entries = {entry.path: entry for entry in NORTH.list_repo_tree("north/many", recursive=True, expand=True)}
    flat = [entry.path for entry in NORTH.list_repo_tree("north/many")]
    inside = len(list(NORTH.list_repo_tree("north/many", "deep")))
    (info,) = NORTH.get_paths_info("north/many", ["deep/1.txt", "nothing"], expand=True)
    missing = refused(lambda: list(NORTH.list_repo_tree("north/many", "nothing")))
    return {
        "kinds": sorted({type(entry).__name__ for entry in entries.values()}),
        "last": entries["deep/1.txt"].last_commit.title,
        "oid": info.blob_id,
        "flat": flat,
        "inside": inside,
        "missing": missing[:2],
    }


@step
def refs():
    sha = NORTH.model_info("north/many").sha
    NORTH.create_branch("north/many", branch="feature/x")
    NORTH.create_branch("north/many", branch="feature/x", exist_ok=True)
    taken = refused(NORTH.create_branch, "north/many", branch="feature/x")[1]
    NORTH.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="north/many", revision="feature/x")
    NORTH.create_tag("north/many", tag="v1.0", revision="feature/x", tag_message="first")
    found = NORTH.list_repo_refs("north/many", include_pull_requests=True)
    back = hf_hub_download("north/many", "b.txt", revision="feature/x", token=TOKENS["north"])
    tagged = NORTH.model_info("north/many", revision="v1.0").sha
    short = NORTH.model_info("north/many", revision=tagged[:8]).sha
    shown = {
        "branches": [branch.name for branch in found.branches],
        "tags": [[tag.name, tag.ref, tag.target_commit == tagged] for tag in found.tags],
        "taken": taken,
        "text": Path(back).read_text(encoding="utf-8"),
        "main": NORTH.model_info("north/many").sha == sha != tagged,
        "short": short == tagged,
        "exists": [NORTH.revision_exists("north/many", name) for name in ("v1.0", "v2.0")],
        "log": len(NORTH.list_repo_commits("north/many", revision="feature/x")),
    }
    NORTH.delete_tag("north/many", tag="v1.0")
    NORTH.delete_branch("north/many", branch="feature/x")
    shown["after"] = [
        len(refs) for refs in (NORTH.list_repo_refs("north/many").branches, NORTH.list_repo_refs("north/many").tags)
    ]
    shown["main branch"] = refused(NORTH.delete_branch, "north/many", branch="main")[1]
    return shown


@step
def download():
    options = {"repo_id": "north/first", "filename": "weights/large.safetensors", "token": TOKENS["north"]}
    first = hf_hub_download(**options)
    stat = Path(first).stat().st_mtime_ns
    second = hf_hub_download(**options)
    meta = hf.get_hf_file_metadata(hf.hf_hub_url("north/first", "weights/large.safetensors"), token=TOKENS["north"])
    missing = refused(hf_hub_download, "north/first", "nothing", token=TOKENS["north"])
    revision = refused(hf_hub_download, "north/first", "by-lfs.safetensors", revision="nothing", token=TOKENS["north"])
    cached = hf_hub_download(**options, local_files_only=True)
    local = hf_hub_download(**options, local_dir=WORK / "local")
    return {
        "same": digest(first) == digest(WORK / "large.safetensors") == digest(local),
        "cache": first == second == cached and stat == Path(second).stat().st_mtime_ns,
        "meta": [
            meta.etag == digest(first),
            meta.size == Path(first).stat().st_size,
            meta.commit_hash == NORTH.model_info("north/first").sha,
        ],
        "missing": missing[0],
        "revision": revision[0],
        "exists": [NORTH.file_exists("north/first", name) for name in ("by-lfs.safetensors", "nothing")],
    }


@step
def resume():
    """The hub cuts the first download of this file."""
    path = WORK / "large.safetensors"
    NORTH.upload_file(path_or_fileobj=path, path_in_repo="cut.safetensors", repo_id="north/first")
    options = {"repo_id": "north/first", "filename": "cut.safetensors", "token": TOKENS["north"]}
    options["cache_dir"] = WORK / "cut"  # the other has this content already
    if refused(hf_hub_download, **options):  # the oldest goes on in the next call only
        hf_hub_download(**options)
    return digest(hf_hub_download(**options)) == digest(path)


@step
def snapshot():
    folder = Path(hf.snapshot_download("north/digits", token=TOKENS["south"]))
    again = hf.snapshot_download("north/digits", token=TOKENS["south"])
    some = hf.snapshot_download(
        "north/many", allow_patterns=["deep/1*"], token=TOKENS["north"], local_dir=WORK / "some"
    )
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "again": str(folder) == again,
        "some": len(list((Path(some) / "deep").iterdir())),
        "model": digest(folder / "model.safetensors") == digest(WORK / "model" / "model.safetensors"),
    }


@step
def safetensors():
    found = NORTH.get_safetensors_metadata("north/digits")
    told = NORTH.model_info("north/digits").safetensors
    return {"sharded": found.sharded, "count": found.parameter_count, "told": [told.parameters, told.total]}


@step
def card():
    loaded = ModelCard.load("north/digits", token=TOKENS["north"])
    bad = None
    loaded.data.tags = ["pushed"]
    if NEW:
        loaded.validate()
        bad = refused(ModelCard("---\npipeline_tag: [a]\n---\nx").validate)[0]
        loaded.push_to_hub("north/digits", token=TOKENS["north"])
    else:  # these validate at huggingface.co, whatever the endpoint
        content = str(loaded).encode()
        NORTH.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id="north/digits")
    return {"license": loaded.data.license, "bad": bad, "tags": NORTH.model_info("north/digits").tags}


@step
def verify():
    if not hasattr(NORTH, "verify_repo_checksums"):
        return None
    hf.snapshot_download("north/many", token=TOKENS["north"])
    good = NORTH.verify_repo_checksums("north/many")
    return {"checked": good.checked_count, "wrong": len(good.mismatches), "missing": len(good.missing_paths)}


@step
def private():
    update = NORTH.update_repo_settings
    anonymous = HfApi(token=False)
    shown = {
        "foreign": refused(SOUTH.model_info, "north/first")[:2],
        "anonymous": refused(anonymous.model_info, "north/digits")[:2],
        "file": refused(hf_hub_download, "north/first", "by-lfs.safetensors", token=TOKENS["south"])[0],
        "wrong token": refused(HfApi(token="suture_party_wrong").model_info, "north/digits")[1:],
        "unknown": refused(NORTH.model_info, "north/unknown")[:2],
    }
    update("north/digits", private=True)
    shown["hidden"] = refused(SOUTH.model_info, "north/digits")[0]
    update("north/digits", private=False)
    update("north/digits", gated="manual")
    shown["gated"] = SOUTH.model_info("north/digits").gated
    empty = WORK / "empty"
    gated = refused(hf_hub_download, "north/digits", "suture.json", token=TOKENS["south"], cache_dir=empty)
    shown["gated file"] = gated[:2]
    shown["own file"] = Path(hf_hub_download("north/digits", "suture.json", token=TOKENS["north"])).name
    shown["auth"] = [refused(api.auth_check, "north/digits") for api in (NORTH,)] + [
        refused(SOUTH.auth_check, "north/digits")[0]
    ]
    update("north/digits", gated=False)
    shown["auth"].append(refused(SOUTH.auth_check, "north/digits"))
    return shown


@step
def shorten():
    NORTH.create_repo("north/long")
    for index in range(3):
        NORTH.upload_file(path_or_fileobj=str(index).encode(), path_in_repo="note.txt", repo_id="north/long")
    for name in ("a.safetensors", "b.safetensors"):
        content = BytesIO((WORK / "large.safetensors").read_bytes()[: -ord(name[0])])
        NORTH.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="north/long")
    before = NORTH.list_repo_commits("north/long")
    NORTH.super_squash_history("north/long", commit_message="All of it")
    after = NORTH.list_repo_commits("north/long")
    nobody = refused(SOUTH.super_squash_history, "north/many")
    listed = list(NORTH.list_lfs_files("north/long"))
    (first,) = (file for file in listed if file.filename == "a.safetensors")
    again = refused(NORTH.permanently_delete_lfs_files, "north/long", [first], rewrite_history=False)
    NORTH.permanently_delete_lfs_files("north/long", [first])
    old = refused(hf_hub_download, "north/long", "a.safetensors", revision=after[0].commit_id, token=TOKENS["north"])
    whole = (WORK / "large.safetensors").stat().st_size
    return {
        "before": len(before),
        "after": [commit.title for commit in after],
        "squashed": NORTH.revision_exists("north/long", before[1].commit_id),
        "nobody": nobody[:2],
        "listed": sorted((file.filename, whole - file.size) for file in listed),
        "left": files("north/long"),
        "lfs": [file.filename for file in NORTH.list_lfs_files("north/long")],
        "again": again[1],
        "old": old[0],
        "repeated": refused(NORTH.permanently_delete_lfs_files, "north/long", [first]),
    }


@step
def asked():
    NORTH.create_repo("north/asked", private=False)
    NORTH.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="north/asked")
    NORTH.update_repo_settings("north/asked", gated="manual")

    def states():
        lists = (
            NORTH.list_pending_access_requests,
            NORTH.list_accepted_access_requests,
            NORTH.list_rejected_access_requests,
        )
        return [[(one.username, one.status, one.fields) for one in call("north/asked")] for call in lists]

    def gets():
        return refused(SOUTH.auth_check, "north/asked")

    address = f"{os.environ['HF_ENDPOINT']}/north/asked/ask-access"
    headers = build_hf_headers(token=TOKENS["south"])
    seen = [states()]
    gate = gets()
    answer = get_session().post(address, headers=headers, data={"reason": "a study"}).json()
    seen.append(states())
    NORTH.accept_access_request("north/asked", "south")
    seen.append(states())
    opened = [gets(), Path(SOUTH.hf_hub_download("north/asked", "x.txt")).read_text(encoding="utf-8")]
    NORTH.reject_access_request("north/asked", "south", rejection_reason="it has ended")
    seen.append(states())
    closed = gets()
    NORTH.cancel_access_request("north/asked", "south")
    seen.append(states())
    NORTH.grant_access("north/asked", "south")
    seen.append(states())
    return {
        "states": seen,
        "gate": [gate[0], "suture access request north/asked" in gate[2]],
        "answer": answer,
        "opened": opened,
        "closed": closed[0],
        "nobody": refused(lambda: list(SOUTH.list_pending_access_requests("north/asked")))[1],
        "unknown": refused(NORTH.accept_access_request, "north/asked", "nobdy")[1],
        "stranger": refused(NORTH.grant_access, "north/asked", "nobdy")[1],
    }


@step
def not_here():
    calls = {
        "discussions": lambda: list(NORTH.get_repo_discussions("north/first")),
        "pull request": lambda: NORTH.create_pull_request("north/first", title="x"),
        "likes": lambda: NORTH.unlike("north/first"),
        "liked": lambda: NORTH.list_liked_repos("north"),
        "datasets": lambda: list(NORTH.list_datasets()),
        "dataset": lambda: NORTH.dataset_info("north/first"),
        "new dataset": lambda: NORTH.create_repo("north/data", repo_type="dataset"),
        "space": lambda: NORTH.space_info("north/first"),
        "collections": lambda: list(NORTH.list_collections()),
        "collection": lambda: NORTH.create_collection("mine"),
        "webhooks": lambda: NORTH.list_webhooks(),
        "user": lambda: NORTH.get_user_overview("north"),
    }
    found = {name: refused(call) for name, call in calls.items()}
    start = "this hub has no "
    said = {name: [one[1], one[2].partition(start)[2].partition(" (")[0]] for name, one in found.items()}
    clone = subprocess.run(
        ["git", "clone", f"{os.environ['HF_ENDPOINT']}/north/first", str(WORK / "clone")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    return {"said": said, "git": [clone.returncode != 0, "hf download north/first" in clone.stderr]}


@step
def many_paths():
    found = NORTH.get_paths_info("north/many", ["deep/1.txt", *(f"deep/none-{index}.txt" for index in range(1500))])
    return [one.path for one in found]


@step
def command_line():
    os.environ["HF_TOKEN"] = TOKENS["north"]
    (WORK / "note.txt").write_text("from the command line")
    shown = {
        "whoami": cli("auth", "whoami"),
        "upload": cli("upload", "north/cli", "note.txt", "notes/note.txt", "--private"),
    }
    shown["download"] = cli("download", "north/cli", "notes/note.txt", "--local-dir", "cli")
    shown["text"] = (WORK / "cli" / "notes" / "note.txt").read_text()
    return {
        "ok": [value["rc"] for value in shown.values() if isinstance(value, dict)],
        "name": "north" in shown["whoami"]["text"],
        "text": shown["text"],
        "output": shown["upload"]["text"] + shown["download"]["text"],
    }


print("\n" + json.dumps({"version": hf.__version__, "answers": answers, "seconds": seconds}))
