"""Files, folders and repositories as the client is shown them, with the ids that git would give them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from suture_service.hf.schemas import CommitRef, Lfs, RefOut, RefsOut, RepoOut, Sibling, SiblingLfs, TreeEntry
from suture_service.keys.schemas import FlagOut
from suture_service.models.cards import library, pipeline
from suture_service.models.trees import NamedFile
from suture_service.tables import Model, Ref, Revision


def git_blob_id(content: bytes) -> str:
    """Return git's id of a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _pointer(file: NamedFile) -> bytes:
    """Return what git keeps in place of a file in LFS."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    return text.encode()


def etag(file: NamedFile) -> str:
    """Return what names a file's content: git's id of a regular file, the sha256 of one in LFS."""
    return file.git_oid or file.sha256


def file_entry(file: NamedFile) -> TreeEntry:
    """Describe a file."""
    if file.git_oid is not None:
        return TreeEntry(type="file", path=file.name, oid=file.git_oid, size=file.size)
    pointer = _pointer(file)
    lfs = Lfs(oid=file.sha256, size=file.size, pointer_size=len(pointer))
    return TreeEntry(type="file", path=file.name, oid=git_blob_id(pointer), size=file.size, lfs=lfs)


def contents(files: Sequence[NamedFile], folder: str, *, recursive: bool) -> dict[str, NamedFile | str]:
    """Return what lies in a folder (`""` is the root), by path; with `recursive`, below it as well.

    Of a file that is the file, of a folder its id. `files` are those below the folder. A folder's id follows from what
    is in it; unlike git's, from all that is below.
    """
    start = f"{folder}/" if folder else ""
    shown: dict[str, NamedFile | str] = {}
    below: dict[str, hashlib._Hash] = {}
    for file in files:
        parts = file.name[len(start) :].split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(len(parts), 2)):
            path = start + "/".join(parts[:depth])
            if path not in below:
                below[path] = hashlib.sha1(usedforsecurity=False)
            below[path].update(f"{file.name}\0{file.sha256}\n".encode())
        if recursive or len(parts) == 1:
            shown[file.name] = file
    shown |= {path: digest.hexdigest() for path, digest in below.items()}
    return dict(sorted(shown.items()))


def entry(path: str, content: NamedFile | str, last_commit: CommitRef | None = None) -> TreeEntry:
    """Describe what `contents` found at a path."""
    if isinstance(content, str):
        return TreeEntry(type="directory", path=path, oid=content, size=0, last_commit=last_commit)
    described = file_entry(content)
    described.last_commit = last_commit
    return described


def sibling(file: NamedFile, *, blobs: bool) -> Sibling:
    """Describe a file of a model; with `blobs`, its size and ids too."""
    if not blobs:
        return Sibling(rfilename=file.name)
    described = file_entry(file)
    lfs = described.lfs and SiblingLfs(
        sha256=described.lfs.oid, size=described.lfs.size, pointer_size=described.lfs.pointer_size
    )
    return Sibling(rfilename=file.name, size=file.size, blob_id=described.oid, lfs=lfs)


def show_repo(
    model: Model,
    revision: Revision,
    oid: str,
    files: Iterable[NamedFile] | None,
    *,
    blobs: bool = False,
    flags: Sequence[FlagOut] = (),
) -> RepoOut:
    """Describe a repository at a commit with this id; without its files where `files` is None.

    What it is flagged for comes as tags as well, which the client shows.
    """
    siblings = None if files is None else [sibling(file, blobs=blobs) for file in files]
    gated = cast(Literal["auto", "manual", False], model.gated or False)
    return RepoOut(
        id=model.repo,
        model_id=model.repo,
        author=model.party.name,
        sha=oid,
        private=model.visibility == "private",
        gated=gated,
        tags=[tag.tag for tag in model.tags] + sorted({f"flag:{flag.kind}" for flag in flags}),
        pipeline_tag=pipeline(revision.card, revision.content),
        library_name=library(revision.card, revision.content),
        last_modified=model.updated_at,
        created_at=model.created_at,
        card_data=revision.card,
        safetensors=revision.safetensors,
        siblings=siblings,
        used_storage=sum(file.size or 0 for file in siblings) if siblings is not None and blobs else None,
        flags=list(flags) or None,
    )


def show_refs(refs: Sequence[Ref], *, with_pull_requests: bool) -> RefsOut:
    """Describe all branches and tags."""
    shown: dict[str, list[RefOut]] = {"branch": [], "tag": []}
    folders = {"branch": "refs/heads/", "tag": "refs/tags/"}
    for ref in refs:
        target = ref.commit.oid
        shown[ref.kind].append(RefOut(name=ref.name, ref=folders[ref.kind] + ref.name, target_commit=target))
    pull_requests: list[RefOut] | None = [] if with_pull_requests else None
    return RefsOut(branches=shown["branch"], tags=shown["tag"], pull_requests=pull_requests)
