"""What others wrote, in the logs of hub and site: text of one line, which ends none and acts on no terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from tests.pages.test_hostile import TEXTS

from suture_contract.console.plain import InertStream, inert

#: What acts on a terminal, ends a line, or changes how the text around it is read.
ACTING = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    '\n{"event": "request", "status": 200}',
    "\r\noverwritten",
    "a\u2028b\u2029c\x85d\x0be\x0cf",
    "\u202egnp.exe\u2066\u200f",
    "\x00\x08\x7f\ufeff\u200b",
    "\ud800",
    "%s %d %(x)s {0} {x!r}",
)
HOSTILE = (*ACTING, *TEXTS)

_EACH_KIND = """
import json, logging, sys, threading, warnings
import structlog
from suture_contract.console.logs import configure_logging, log_uncaught

configure_logging("info", "suture_service", "uvicorn", "celery")
log_uncaught()
ours, theirs = structlog.get_logger("suture_service.x"), logging.getLogger("celery.worker")
for text in json.load(sys.stdin):
    for level in ("info", "warning", "error"):
        getattr(ours, level)("event", value=text, error={"where": [text]})
        getattr(theirs, level)("took %s", text)
    ours.info(text)
    theirs.error(text.replace("%", "%%"))
    logging.getLogger(text.replace(".", "")).warning("by its name")
    try:
        raise ValueError(text)
    except ValueError:
        ours.exception("failed")
        theirs.exception("failed: %s", text)
    structlog.contextvars.bind_contextvars(request_id=text)
    ours.info("bound")
    structlog.contextvars.clear_contextvars()
    warnings.warn(text)
    ended = threading.Thread(target=lambda: [][text])
    ended.start()
    ended.join()
raise LookupError(text)
"""


@pytest.fixture(scope="module")
def logged() -> list[bytes]:
    """All lines that a program's loggers, its libraries' and what nobody caught write of hostile texts."""
    done = subprocess.run(
        [sys.executable, "-c", _EACH_KIND],
        input=json.dumps(HOSTILE).encode(),
        capture_output=True,
        timeout=200,
        env={**os.environ, "PYTHONWARNINGS": "always"},
    )
    assert done.returncode == 1
    assert done.stdout == b""
    return done.stderr.splitlines()


def test_every_line_of_a_log_is_json_in_printable_ascii(logged: list[bytes]) -> None:
    entries = [json.loads(line) for line in logged]
    assert all(0x20 <= byte <= 0x7E for line in logged for byte in line)
    assert len(entries) == 14 * len(HOSTILE) + 1
    assert entries[-1]["event"] == "uncaught"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_log_shows_what_somebody_tried(logged: list[bytes], text: str) -> None:
    entries = [json.loads(line) for line in logged]
    assert sum(entry.get("value") == text for entry in entries) == 3
    assert sum(entry["event"] == text for entry in entries) >= 1


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_confined_process_prints_keeps_its_lines_and_nothing_else_that_acts(text: str) -> None:
    reading, writing = os.pipe()
    with InertStream(writing) as stream:
        print(f"before {text} after", file=stream)
    os.close(writing)
    with io.FileIO(reading) as pipe:
        shown = pipe.read().decode()
    assert shown == inert(f"before {text} after") + "\n"
    assert all(line.replace("\t", "").isprintable() for line in shown.split("\n"))
    assert inert(shown) == shown, "what is inert stays as it is"


def test_ordinary_text_is_left_alone() -> None:
    assert inert("Größe 3×3, 肝臓 \U0001f9ec\n\tnext line") == "Größe 3×3, 肝臓 \U0001f9ec\n\tnext line"
