"""What a user writes: repositories, files of any size, folders, commits, and what is refused."""

import hashlib
from io import BytesIO
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from tests.contract.stepping import NORTH, SOUTH, TOKENS, WORK, digest, files, refused, step


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
