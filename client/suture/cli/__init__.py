"""The command `suture`."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line."""
    if "SUTURE_END_WITH" in os.environ:
        from suture.processes import end_with_parent

        end_with_parent()

    from suture.cli.app import app

    app(prog_name="suture")
