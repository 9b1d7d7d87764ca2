"""Who may read what, what is taken away for good, what this hub has not, and the client's command line."""

import os
import subprocess
from io import BytesIO
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]
from tests.contract.stepping import NORTH, SOUTH, TOKENS, WORK, cli, files, refused, step


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
