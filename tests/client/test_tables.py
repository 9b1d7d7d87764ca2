"""Tables: readable at 80 columns, one line a row in a pipe; names, ids and dates are never broken or cut off."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from tests.local.test_demo import report
from typer.testing import CliRunner

from suture.cli.app import app
from suture_contract.console.tables import layout
from suture_local.study.table import show
from suture_service import operate
from suture_service.settings import Settings

LONG = "n" * 64
DATE = "2026-11-29 13:47"
WORD = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(WORD, st.lists(WORD, max_size=12).map(" ".join), WORD), min_size=1, max_size=4)


def columns_of(line: str, heading: str, names: list[str]) -> list[str]:
    starts = [heading.index(name) for name in names]
    return [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]


def test_what_fits_is_one_line_a_row() -> None:
    found = layout(("model", "since"), [("north/digits", DATE), ("south/d", DATE)], width=80)
    assert (found.heading, found.lines) == (
        ["model         since"],
        [f"north/digits  {DATE}", f"south/d       {DATE}"],
    )


def test_prose_is_wrapped_at_spaces_and_nothing_else_is() -> None:
    why = "to stitch it with our own models of the upper and lower gastrointestinal tract"
    found = layout(("model", "since", "why"), [(LONG[:30], DATE, why)], width=80, prose=("why",))
    (heading,) = found.heading
    assert len(found.lines) == 3
    assert all(cell_len(line) <= 80 for line in found.lines)
    cells = [columns_of(line, heading, ["model", "since", "why"]) for line in found.lines]
    assert " ".join(cell[2] for cell in cells) == why
    assert [cell[:2] for cell in cells] == [[LONG[:30], DATE], ["", ""], ["", ""]]


def test_columns_that_can_be_spared_go_first_and_are_named() -> None:
    row = (LONG[:40], "3f0a52c4e8", DATE, "CC-BY-4.0")
    found = layout(("model", "revision", "updated", "license"), [row], width=80, spare=("revision", "license"))
    assert found.left_out == ("revision",)
    assert found.lines == [f"{LONG[:40]}  {DATE}  CC-BY-4.0"]


def test_what_does_not_fit_at_all_becomes_a_block_a_row() -> None:
    rows = [(f"{LONG}/{LONG}", DATE, ""), ("b/c", DATE, "it was asked for")]
    found = layout(("model", "since", "why"), rows, width=80, prose=("why",))
    assert found.heading == []
    assert found.rows == [0, 0, 1, 1, 1, 1]
    assert found.lines == [
        f"model  {LONG}/{LONG}",
        f"since  {DATE}",
        "",
        "model  b/c",
        f"since  {DATE}",
        "why    it was asked for",
    ]


@given(ROWS, st.integers(1, 100))
def test_no_word_is_ever_broken_and_no_line_too_wide(rows: list[tuple[str, str, str]], width: int) -> None:
    found = layout(("a", "prose", "c"), rows, width=width, prose=("prose",))
    said = " ".join(found.lines).split()
    for row in rows:
        assert {word for cell in row for word in cell.split()} <= set(said)
    if found.heading:
        assert all(cell_len(line) <= width for line in [*found.heading, *found.lines])


@given(ROWS)
def test_in_a_pipe_every_row_is_one_line(rows: list[tuple[str, str, str]]) -> None:
    found = layout(("a", "prose", "c"), rows, width=None, prose=("prose",), spare=("a",))
    assert found.left_out == ()
    assert len(found.lines) == len(rows)
    for line, row in zip(found.lines, rows, strict=True):
        assert all(cell in line for cell in row)


def test_in_a_pipe_no_row_is_filled_up_to_the_longest() -> None:
    found, what = "of 700 columns " * 46, "install it"
    rows = [("hub", "ok", "it answers", ""), ("policy", "ok", found, ""), ("redis", "warn", "old", what)]
    table = layout(("check", "result", "found", "what to do"), rows, width=None, prose=("found", "what to do"))
    assert table.heading == ["check   result  found  what to do"]
    assert table.lines == [
        "hub     ok      it answers",
        f"policy  ok      {found}".rstrip(),
        f"redis   warn    old  {what}",
    ]
    names = layout(("name", "since"), [(LONG, DATE), ("b", DATE)], width=None)
    assert names.lines == [f"{LONG}  {DATE}", f"b  {DATE}"]


def test_a_study_has_a_line_for_each_row_in_a_pipe() -> None:
    row = ["a stitched ensemble of two models", "0.812 [0.789, 0.861]", "0.812 [0.789, 0.861]", "0.812 [0.789, 0.861]"]
    pipe = io.StringIO()
    show(Console(file=pipe, width=80), "digits", [("accuracy", ["model", "north", "south", "mean"], [row])])
    (line,) = [line for line in pipe.getvalue().splitlines() if "stitched" in line]
    assert all(cell in line for cell in row)


def test_a_cell_cannot_make_a_line_or_move_the_cursor() -> None:
    found = layout(("why",), [("one\ntwo\x1b[2Jthree",)], width=None)
    assert found.lines == ["one two [2Jthree"]


def test_headings_are_wrapped_before_columns_are_given_up() -> None:
    found = layout(("model", "north: balanced accuracy"), [("own", "0.829 [0.789, 0.861]")], width=30)
    assert found.heading == ["model  north: balanced", "       accuracy"]


# The commands


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A hub's database with the longest names a party, a site and a token may have."""
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", f"sqlite:///{tmp_path / 'hub.db'}")
    monkeypatch.setenv("SUTURE_HUB_STORE", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "80")
    settings = Settings()
    operate.migrate(settings)
    operate.add_party(settings, LONG)
    for number in range(3):
        operate.add_site(settings, LONG, f"{LONG[:-1]}{number}")
    operate.create_token(settings, LONG, ["publisher", "requester", "steward", "auditor"], name="k" * 64, days=30)
    return settings


LISTS = (["hub", "party", "list"], ["hub", "site", "list"], ["hub", "token", "list", LONG], ["hub", "audit", "list"])


def in_a_pipe(arguments: list[str]) -> str:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def at_a_terminal(arguments: list[str]) -> str:
    """Return what the command prints at a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patched:
        reading = pool.submit(read_all, ours)
        with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
            for stream in ("stdout", "stderr"):
                patched.setattr(sys, stream, terminal)
            with pytest.raises(SystemExit) as ended:
                app(arguments, prog_name="suture")
    os.close(ours)
    assert ended.value.code in (0, None)
    return reading.result().decode().replace("\r\n", "\n")


def read_all(terminal: int) -> bytes:
    """Return what comes from a terminal until its other end is closed."""
    read = b""
    with contextlib.suppress(OSError):
        while more := os.read(terminal, 65536):
            read += more
    return read


@pytest.mark.parametrize("arguments", LISTS, ids=lambda words: " ".join(words)[:16])
def test_long_names_ids_and_dates_stay_whole(hub: Settings, arguments: list[str]) -> None:
    (row,) = operate.list_parties(hub)
    tokens = operate.list_tokens(hub, LONG)
    sites = [site.name for site in row.sites]
    words = {
        "party": [row.name, *sites, f"{row.created_at:%Y-%m-%d %H:%M}"],
        "site": [row.name, *sites],
        "token": [word for token in tokens for word in (token.id, token.name or LONG)],
        "audit": [row.name],
    }[arguments[1]]
    piped, shown = in_a_pipe(arguments), at_a_terminal(arguments)
    for word in words:
        assert word in piped
        assert word in shown
    assert "…" not in piped + shown
    lines = piped.splitlines()
    counts = {"party": 1, "site": 3, "token": 4}
    if arguments[1] in counts:
        assert len(lines) == 1 + counts[arguments[1]], piped


@pytest.mark.parametrize("long", [False, True])
def test_a_report_is_readable_at_a_terminal_and_whole_in_a_pipe(
    tmp_path: Path, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = {"north": "n" * 64, "south": "s" * 64} if long else {"north": "north", "south": "south"}
    text = report(0.99, 0.82, 0.96, 0.97, 0.95).model_dump_json(by_alias=True)
    for short, name in names.items():
        text = text.replace(short, name)
    (tmp_path / "report.json").write_text(text)
    command = ["report", str(tmp_path / "report.json")]
    piped, shown = in_a_pipe(command), at_a_terminal(command)
    for name in names.values():
        for part in (f"{name}/digits", "0.960 [0.940, 0.980]", "1,270"):
            assert part in piped
            assert part in shown
    assert "…" not in piped + shown
    rows = [
        line for line in piped.splitlines() if line.startswith(("chosen", "own model", "plain ensemble", "verdict"))
    ]
    assert len(rows) == 4
    lines = [line for line in shown.splitlines() if line.startswith(("model", "chosen", "own model", "verdict"))]
    assert all(cell_len(line) <= 80 for line in lines) or long
