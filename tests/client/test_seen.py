"""What is remembered of the newest revisions: never less, whoever writes, and nothing where it cannot be kept."""

from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from suture.seen import Seen
from suture_contract.errors import SutureError
from suture_contract.model.signature import PublicKey, Signed

KEYS = tuple(PublicKey(name, f"{name}\n") for name in ("north", "new"))
START = datetime(2026, 1, 1, tzinfo=UTC)


def signed(second: int | None, key: PublicKey = KEYS[0]) -> Signed:
    return Signed(key, "north/a", None if second is None else START + timedelta(seconds=second))


def write(path: Path, seconds: range) -> None:
    for second in seconds:
        Seen(path).note(f"north/m{second % 3}", f"{second:040x}", signed(second, KEYS[second % 2]))


def test_writers_at_once_forget_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "seen.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, range(first, 60, 4))) for first in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 4
    for model in range(3):
        newest = Seen(path).newest(f"north/m{model}", KEYS)
        assert newest is not None
        assert int(newest.revision, 16) == 57 + model
    assert path.stat().st_mode & 0o077 == 0


def test_only_what_is_trusted_now_counts(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen.json")
    assert seen.older("north/a", signed(None), KEYS) is None
    seen.note("north/a", "0" * 40, signed(None))  # says nothing of when: nothing to remember
    assert not (tmp_path / "seen.json").exists()
    seen.note("north/a", "1" * 40, signed(10))
    seen.note("north/a", "2" * 40, signed(20, KEYS[1]))
    seen.note("north/a", "3" * 40, signed(15, KEYS[1]))
    assert seen.older("north/a", signed(20), KEYS) is None
    assert "2" * 40 in (seen.older("north/a", signed(19), KEYS) or "")
    assert "does not say when" in (seen.older("north/a", signed(None), KEYS) or "")
    assert seen.older("north/a", signed(19), KEYS[:1]) is None
    assert seen.older("north/b", signed(1), KEYS) is None


def test_what_cannot_be_remembered_is_not_used(tmp_path: Path) -> None:
    damaged = tmp_path / "seen.json"
    damaged.write_text('{"models": {"north/a": 7}}')
    with pytest.raises(SutureError, match="cannot be read") as caught:
        Seen(damaged).note("north/a", "1" * 40, signed(1))
    assert (caught.value.code, caught.value.where) == ("seen.damaged", str(damaged))
    with pytest.raises(SutureError) as caught:
        Seen(damaged / "seen.json").note("north/a", "1" * 40, signed(1))
    assert caught.value.code == "seen.unwritable"
    assert "must be remembered" in (caught.value.hint or "")
