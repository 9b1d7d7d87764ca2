"""How a repository of many small files goes up, is listed, comes down and is restored.

`python -m benchmarks.hub_files`:

huggingface_hub's `upload_folder`, `list_repo_tree` and `snapshot_download` ask a hub on a real socket. In turns with
that, the same client fetches the same files from nginx, which gives them, and what the client asks besides, as plain
files; and a plain copy reads, hashes, writes and syncs each file, beside which a restored backup is seen.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.hub_transfer import hub_settings, new_hub, running, seconds
from rich import box
from rich.console import Console
from rich.table import Table

from suture_local.ports import free_port
from suture_service.maintenance.backup import back_up, restore
from suture_service.settings import Settings

console = Console()
_REPO = "north/many"


def write_files(folder: Path, count: int) -> None:
    """Write files of some KiB each into 30 folders."""
    draw = random.Random(1)
    for index in range(count):
        path = folder / f"{index % 30:02}" / f"{index:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.randbytes(draw.randrange(200, 8000)))


def copy(source: Path, target: Path) -> None:
    """Copy a folder file by file: read, hashed, written, synced."""
    for path in source.rglob("*"):
        if path.is_file():
            content, place = path.read_bytes(), target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            hashlib.sha256(content)
            with place.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    shutil.rmtree(target)


@contextlib.contextmanager
def nginx(work: Path, source: Path, sha: str, tree: list[dict[str, Any]]) -> Iterator[str | None]:
    """Give the address under which nginx plays a hub with one repository; None where it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        console.print("nginx is not installed: left out")
        yield None
        return
    api = work / "web" / "api" / "models" / _REPO
    for folder, name, content in (
        (api / "revision", "main", {"id": _REPO, "sha": sha, "siblings": []}),
        (api / "tree", sha, tree),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    files = work / "web" / _REPO / "resolve"
    files.mkdir(parents=True, exist_ok=True)
    (files / sha).symlink_to(source)
    port = free_port()
    temporary = "".join(
        f"{name}_temp_path {work}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (work / "nginx.conf").write_text(
        f"{user}daemon off;\npid {work}/nginx.pid;\nerror_log {work}/nginx.error;\nevents {{}}\n"
        f"http {{\naccess_log off;\nsendfile on;\n{temporary}server {{ listen 127.0.0.1:{port}; root {work}/web;\n"
        f"default_type application/json; add_header X-Repo-Commit {sha}; }}\n}}\n",
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{port}"
    with running([program, "-c", str(work / "nginx.conf"), "-p", str(work)], url, work / "nginx.log"):
        yield url


def measure(work: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each, in turns."""
    from huggingface_hub import HfApi, snapshot_download

    source = work / "source"
    write_files(source, count)
    found: dict[str, list[float]] = {}

    def time_of(what: str, work: Callable[[], object]) -> None:
        found.setdefault(what, []).append(seconds(work))

    def fetch(endpoint: str, folder: Path) -> None:
        snapshot_download(_REPO, endpoint=endpoint, token=token, cache_dir=folder)
        shutil.rmtree(folder)

    with new_hub(work) as (_, url, token):
        settings = hub_settings(work)
        api = HfApi(url, token=token)
        for index in range(rounds):
            time_of("copy + sha256 + fsync", lambda: copy(source, work / "copy"))
            name = _REPO if index == 0 else f"{_REPO}{index}"
            api.create_repo(name)
            upload = {"repo_id": name, "folder_path": source, "ignore_patterns": None}
            # Content that the hub has is sent all the same: it comes inside the commit.
            time_of("hub, upload_folder", lambda upload=upload: api.upload_folder(**upload))
        sha = api.model_info(_REPO).sha
        assert sha is not None
        tree = api.list_repo_tree(_REPO, recursive=True)
        shown = [
            {"type": "file", "path": entry.path, "size": entry.size, "oid": entry.blob_id}
            for entry in tree
            if hasattr(entry, "size")
        ]
        with nginx(work, source, sha, shown) as server:
            for _ in range(rounds):
                if server is not None:
                    time_of("nginx, snapshot_download", lambda: fetch(server, work / "cache"))
                time_of("hub, snapshot_download", lambda: fetch(url, work / "cache"))
                time_of("hub, tree", lambda: list(api.list_repo_tree(_REPO, recursive=True)))
                time_of("hub, tree with expand", lambda: list(api.list_repo_tree(_REPO, recursive=True, expand=True)))
                time_of("hub, commits", lambda: list(api.list_repo_commits(_REPO)))
    for index in range(rounds):
        backup = work / f"backup{index}"
        fresh = Settings(database_url=f"sqlite:///{work / f'new{index}.db'}", store=str(work / f"new{index}"))
        time_of("backup", lambda backup=backup: back_up(settings, backup))
        time_of("restore", lambda backup=backup, fresh=fresh: restore(fresh, backup))
        time_of("copy + sha256 + fsync", lambda: copy(source, work / "copy"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where everything is written; a new temporary folder without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="suture-files-") as folder:
        work = Path(folder)
        # Before huggingface_hub is imported, which reads them then.
        os.environ.update(HF_HOME=str(work / "home"), HF_HUB_DISABLE_PROGRESS_BARS="1")
        found = measure(work, options.files, options.rounds)
    medians = {what: statistics.median(times) for what, times in found.items()}
    table = Table("what", "seconds (median)", "files/s", "of a copy", "of nginx", box=box.SIMPLE)
    for what, taken in medians.items():
        beside = [medians["copy + sha256 + fsync"], medians.get("nginx, snapshot_download")]
        cells = [f"x {taken / other:.2f}" if other else "" for other in beside]
        table.add_row(what, f"{taken:.2f}", f"{options.files / taken:.0f}", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
