"""The whole matrix: `make faults`, or `python -m tests.fault [--only TEXT] [--write docs/faults.md]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from tests.fault.faults import Cell, Where, disks, divided, judge, kills, specials, undisturbed
from tests.fault.page import Measured, page
from tests.fault.place import Place, make_models, place_in
from tests.fault.postgres import killable
from tests.leftovers import Watch, new_run


def play(cells: list[Cell], where: Where, root: Path, models: dict[str, Path]) -> Iterator[Measured]:
    """Play cells at one place; after one that did not hold, at a new one."""
    reference = None
    with ExitStack() as whole:
        server = whole.enter_context(killable()) if where == "postgresql" else None
        place: Place | None = None
        stack = whole.enter_context(ExitStack())
        for number, cell in enumerate(cells):
            if place is None:
                folder = root / f"{where.replace(' ', '-')}{number}"
                folder.mkdir()
                place = stack.enter_context(
                    place_in(
                        folder, models, server, small_disk=where == "small disk", two_workers=where == "two workers"
                    )
                )
                reference = undisturbed(place)
                assert reference.state == "complete", reference
            assert reference is not None
            started = time.monotonic()
            try:
                what, held = judge(cell, cell.play(place, cell.name), reference), True
            except Exception as error:
                traceback.print_exc()
                what, held = f"{type(error).__name__}: {error}".splitlines()[0][:200], False
                for log in (*(place.state / "logs").glob("*.log"), place.root / "hub.log"):
                    print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n")
                stack.close()
                place = None
            yield Measured(cell.fault, cell.stage, held, what, time.monotonic() - started)
        stack.close()


def select(only: str) -> list[Cell]:
    """Return the cells whose name holds a text."""
    cells = (*kills(), *specials(), *divided(), *(disks() if os.geteuid() == 0 else []))
    return [cell for cell in cells if only in cell.name]


def play_part(only: str, part: int, parts: int, out: Path) -> None:
    """Play every `parts`th cell, and write what came of it after each."""
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="suture-fault-") as name:
        root = Path(name)
        models = make_models(root)
        for where in get_args(Where):
            cells = [cell for cell in select(only) if cell.where == where][part::parts]
            for found in play(cells, where, root, models):
                measured.append(found)
                mark = "ok " if found.held else "BAD"
                print(f"{mark} {found.seconds:6.1f} s  {found.fault}, {found.stage}: {found.what}", flush=True)
                out.write_text(json.dumps([asdict(one) for one in measured]), encoding="utf-8")


def main() -> int:
    """Play, print, write; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only cells whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="how many places at once")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the ends of all blocks
    if arguments.part is not None:
        play_part(arguments.only, arguments.part, arguments.jobs, arguments.out)
        return 0
    watch = Watch(new_run())
    chosen = select(arguments.only)
    with tempfile.TemporaryDirectory(prefix="suture-faults-") as name:
        files = [Path(name) / f"{part}.json" for part in range(arguments.jobs)]
        command = [sys.executable, "-m", "tests.fault", "--only", arguments.only, "--jobs", str(arguments.jobs)]
        players = [
            subprocess.Popen([*command, "--part", str(part), "--out", str(file)]) for part, file in enumerate(files)
        ]
        try:
            for player in players:
                player.wait()
        finally:
            for player in players:
                player.terminate()
                player.wait()
        measured = [Measured(**one) for file in files if file.exists() for one in json.loads(file.read_text())]
    watch.end()
    order = {(cell.fault, cell.stage): number for number, cell in enumerate(chosen)}
    measured.sort(key=lambda found: order[found.fault, found.stage])
    held = sum(found.held for found in measured)
    print(f"{held} of {len(chosen)} cells hold")
    if arguments.write is not None:
        arguments.write.write_text(page(measured, len(chosen)))
    return 0 if held == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
