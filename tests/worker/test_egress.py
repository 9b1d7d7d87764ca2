"""The log of what left: unbroken, durable, and any change to it is found."""

from __future__ import annotations

import hashlib
import json
import os
import threading

import pytest

from suture_stitching.errors import SutureError
from suture_worker.egress import EgressLog, verify


@pytest.fixture
def filled(tmp_path):
    log = EgressLog(tmp_path)
    log.small("task_1", "progress", b'{"step":"loading"}')
    log.document("task_1", "result", None, b'{"n":412}')
    log.file("task_1", "stitches.safetensors", "e" * 64, 10)
    log.close()
    return tmp_path / "egress.jsonl"


def test_each_line_says_what_left(filled):
    progress, result, stitches = verify(filled)
    assert (progress.seq, progress.kind, progress.body) == (1, "progress", '{"step":"loading"}')
    assert result.sha256 == hashlib.sha256(b'{"n":412}').hexdigest()
    assert (result.size, result.body) == (9, None)
    assert (filled.parent / "documents" / result.sha256).read_bytes() == b'{"n":412}'
    assert (stitches.name, stitches.sha256, stitches.size) == ("stitches.safetensors", "e" * 64, 10)
    assert filled.stat().st_mode & 0o777 == 0o600


def test_the_chain_goes_on_after_a_restart(filled):
    log = EgressLog(filled.parent)
    log.small("task_2", "fail", b"{}")
    log.close()
    assert [entry.seq for entry in verify(filled)] == [1, 2, 3, 4]


def test_a_line_torn_by_a_power_cut_is_dropped(filled):
    with filled.open("ab") as file:
        file.write(b'{"seq":4,"time":"2030')
    log = EgressLog(filled.parent)
    log.small("task_2", "fail", b"{}")
    log.close()
    assert [entry.task for entry in verify(filled)][-1] == "task_2"
    assert len(verify(filled)) == 4


def altered(lines):
    entry = json.loads(lines[1])
    entry["size"] = 1
    return [lines[0], json.dumps(entry, separators=(",", ":")).encode(), lines[2]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (altered, 3),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [*lines[:2], b"x"], 3),
    ],
)
def test_any_change_is_found(filled, change, line):
    filled.write_bytes(b"".join(text + b"\n" for text in change(filled.read_bytes().splitlines())))
    with pytest.raises(SutureError, match=f"line {line} "):
        verify(filled)


def test_two_threads_do_not_break_the_chain(tmp_path):
    log = EgressLog(tmp_path)

    def write(number):
        for _ in range(50):
            log.small(f"task_{number}", "progress", b"{}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(verify(tmp_path / "egress.jsonl")) == 200


def test_a_full_disk_leaves_no_half_line(filled, monkeypatch):
    log = EgressLog(filled.parent)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(OSError, match="disk is full"):
        log.small("task_2", "fail", b"{}")
    monkeypatch.undo()
    log.small("task_3", "fail", b"{}")
    log.close()
    assert [entry.task for entry in verify(filled)][3:] == ["task_3"]


def test_no_log_is_an_unbroken_one(tmp_path):
    assert verify(tmp_path / "egress.jsonl") == []
