"""docs/faults.md, as measured."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from suture_worker.broker import find_server

_HEAD = """# Faults

What comes of a job when something breaks. Each row is a job of a fit, an evaluation and a composition at a real hub
with a real site (agent, Celery worker, queue). The hub's database is SQLite, or PostgreSQL where that is killed. The
fault is done from outside, at the stage named:

- Processes are stopped when the stage is seen in the site's files. Messages are held on their way.
- The site itself starts a part again that was killed. Hub and PostgreSQL are started again as an init system does.
- A divided task is one that two workers share. The second worker is started again from outside.

A row holds if all of this is so:

1. The job ends with one published result. Its `model.safetensors` has the same bytes, and its report the same
   numbers, as those of a job to which nothing happens. Or, where the job is to end otherwise, nothing is published.
2. No task is done twice to its end.
3. No temporary file and no process is left, and the site's log of what left adds up.

This measures it:

    make faults
"""


@dataclass(frozen=True)
class Measured:
    """What came of one cell."""

    fault: str
    stage: str
    held: bool
    what: str
    seconds: float


def page(measured: Sequence[Measured], chosen: int) -> str:
    """Return the page in Markdown."""
    versions = [f"Suture {version('suture')}", f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("celery", "kombu", "torch", "sqlalchemy")]
    versions.append(str(find_server()))
    held = sum(found.held for found in measured)
    left = chosen - len(measured)
    lines = [
        _HEAD,
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with {', '.join(versions)}, {platform.system()}:"
        f" **{held} of {len(measured)} rows hold.**" + (f" {left} more were not played in this run." if left else ""),
        "",
        "| fault | stage | holds | what came of it | seconds |",
        "|---|---|---|---|---:|",
    ]
    for found in measured:
        holds = "yes" if found.held else "**no**"
        lines.append(f"| {found.fault} | {found.stage} | {holds} | {found.what} | {found.seconds:.0f} |")
    return "\n".join(lines) + "\n"
