"""What a user reads: lists, trees, branches, files, cards."""

from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.utils import paginate  # type: ignore[attr-defined]
from tests.contract.stepping import NEW, NORTH, SOUTH, TOKENS, WORK, digest, refused, step


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
def many_paths():
    found = NORTH.get_paths_info("north/many", ["deep/1.txt", *(f"deep/none-{index}.txt" for index in range(1500))])
    return [one.path for one in found]
