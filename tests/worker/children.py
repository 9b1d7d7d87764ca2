"""Finding the processes that do tasks: each works in the scratch folder of its task, or of its share of one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from suture_worker.compute.forkserver import NAME
from suture_worker.folder import TaskFolder


def children_of(folder: TaskFolder) -> dict[str, psutil.Process]:
    """Return those at a task: "" for the task itself, or its share's step and number, `0.1`."""
    places = {folder.path / "scratch": "", **{path / "scratch": path.name for path in folder.shares.glob("*.*")}}
    found = {}
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == NAME:
            with contextlib.suppress(psutil.Error):
                if (place := Path(process.cwd())) in places:
                    found[places[place]] = process
    return found
