"""Tasks on a small disk that fills: `python -m tests.worker.full_disk SITE_FILE TASK...` prints what came of each.

The disk is mounted at the site's state. TASK is the folder of a prepared task. It is done anew with ever more
free pages, until there are enough: so the disk fills at one of its writes after the other.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from suture_worker.compute.work import server, work
from suture_worker.config import SiteConfig, load_site, prepare_state
from suture_worker.folder import TaskFolder

PAGE = 4096


def main(site_file: Path, prepared: list[Path]) -> None:
    """Print for each task a list of what came of it, by the number of free pages."""
    config = load_site(site_file)
    prepare_state(config)
    all_ended = []
    for path in prepared:
        ended: list[dict[str, Any]] = []
        while not ended or ended[-1]["outcome"] != "done":
            ended.append(_tried(config, path, 2 * len(ended)))
        all_ended.append(ended)
    server.stop()
    print(json.dumps(all_ended))


def _tried(config: SiteConfig, prepared: Path, pages: int) -> dict[str, Any]:
    folder = TaskFolder(config.state / "tasks", prepared.name)
    shutil.rmtree(folder.path, ignore_errors=True)
    shutil.copytree(prepared, folder.path)
    ballast = config.state / "ballast"
    _fill(ballast, pages)
    said = work(config, folder.id)
    ballast.unlink()
    outcome = folder.outcome
    if outcome is not None:  # the hub hears of it, and gives the task out again
        shutil.rmtree(folder.path)
        shutil.copytree(prepared, folder.path)
    return {
        "said": said,
        "outcome": None if outcome is None else outcome.state,
        "code": None if outcome is None else outcome.code,
        "retryable": outcome is not None and outcome.retryable,
        "unfinished": [path.name for path in folder.path.rglob("*.part")],
        "again": work(config, folder.id) if said != "done" else "",
    }


def _fill(ballast: Path, pages: int) -> None:
    """Fill the disk but for so many pages."""
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(PAGE)):
                pass
        file.truncate(max(0, file.tell() - pages * PAGE))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
