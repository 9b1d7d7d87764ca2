"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from suture_contract.errors import SutureError
from suture_contract.files import sync_folder, telling


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Give a name for a folder to write, which becomes `folder` if nothing is raised.

    Raises `SutureError`: `out.exists`, or what the system refuses.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SutureError("out.exists", "there is something already", where=str(folder), hint="name a new folder")
    with telling(folder, code="file.unwritable"):
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield work / folder.absolute().name
        with telling(folder, code="file.unwritable"):
            (work / folder.absolute().name).rename(folder)
            sync_folder(folder.absolute().parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
