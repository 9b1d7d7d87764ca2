"""The command `suture`."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys


def main() -> None:
    """Run the command line."""
    if "SUTURE_END_WITH" in os.environ:
        from suture.processes import end_with_parent

        end_with_parent()

    # To import a hub makes a million objects and frees hardly any. As Python sets it, the collector would look at them
    # four hundred times meanwhile, a tenth of what it takes to start.
    gc.set_threshold(10_000, 20, 20)

    # What PyTorch's compiled part warns of goes past Python, in words for its developers. It is read at the import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is shown as "?": better than no answer.
            stream.reconfigure(errors="replace")
    from suture.cli.app import app

    try:
        app(prog_name="suture")
    finally:
        _flush()


def _flush() -> None:
    """Say so if what was printed could not be written: at its end, Python would say so in words of its own."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read it has gone, and knows
            raise SystemExit(1) from None
        from suture_contract.console.terminal import show_error
        from suture_contract.exit_codes import ExitCode
        from suture_contract.files import trouble

        show_error(trouble(error, where="standard output"))
        raise SystemExit(ExitCode.REFUSED) from None
