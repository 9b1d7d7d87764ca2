"""The log of what left: unbroken, durable, and any change to it is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading

import pytest

from suture_contract.errors import SutureError
from suture_worker.egress.log import EgressLog, verify


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


def edited(index, **changes):
    def edit(lines):
        entry = {**json.loads(lines[index]), **changes}
        return [*lines[:index], json.dumps(entry, separators=(",", ":")).encode(), *lines[index + 1 :]]

    return edit


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edited(0, size=1), "record 1 was edited"),
        (edited(1, size=1), "record 2 was edited"),
        (edited(2, size=1), "record 3 was edited"),
        (edited(0, prev="f" * 64), "record 1 was edited"),
        (edited(1, prev="f" * 64), "record 2 was edited"),
        (edited(2, prev="f" * 64), "record 3 was edited"),
        (lambda lines: [lines[0], lines[2]], "record 2 is missing"),
        (lambda lines: lines[1:], "record 1 is missing"),
        (lambda lines: lines[2:], "record 1 is missing, and all up to 2"),
        (lambda lines: [lines[1], lines[0], lines[2]], "record 2 stands in the place of record 1"),
        (lambda lines: [*lines, lines[2]], "record 4"),
        (lambda lines: [*lines[:2], b"x"], "record 3 was edited: it cannot be read"),
        (lambda lines: lines[:2], "records 3 to 3 are missing at the end"),
        (lambda lines: [], "records 1 to 3 are missing at the end"),
    ],
)
def test_any_change_is_found_and_named(filled, change, problem):
    filled.write_bytes(b"".join(text + b"\n" for text in change(filled.read_bytes().splitlines())))
    with pytest.raises(SutureError, match=problem) as caught:
        verify(filled)
    assert caught.value.code == "egress.broken"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edited(2, size=1), "record 3 was edited"),
        (lambda lines: [*lines[:2], b"x"], "record 3 was edited"),
        (lambda lines: lines[:2], "records 3 to 3 are missing at the end"),
        (lambda lines: [], "records 1 to 3 are missing at the end"),
    ],
)
def test_a_site_whose_log_does_not_end_as_it_was_left_does_not_write_on(filled, change, problem):
    filled.write_bytes(b"".join(text + b"\n" for text in change(filled.read_bytes().splitlines())))
    with pytest.raises(SutureError, match=problem):
        EgressLog(filled.parent)


def test_records_that_were_added_are_found(filled):
    last = filled.read_bytes().splitlines()[-1]
    for number in (4, 5):
        entry = {**json.loads(last), "seq": number, "prev": hashlib.sha256(last).hexdigest()}
        last = json.dumps(entry, separators=(",", ":")).encode()
        with filled.open("ab") as file:
            file.write(last + b"\n")
    with pytest.raises(SutureError, match="records 5 to 5 were added"):
        verify(filled)


def test_a_deleted_head_does_not_hide_what_is_missing(filled):
    filled.with_name("egress.head").unlink()
    filled.write_bytes(b"".join(filled.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(SutureError, match=r"egress\.head was changed"):
        verify(filled)


def test_a_body_or_document_that_is_not_what_left_is_found(filled, tmp_path):
    document = filled.parent / "documents" / hashlib.sha256(b'{"n":412}').hexdigest()
    document.write_bytes(b'{"n":413}')
    with pytest.raises(SutureError, match="record 2 does not hold what left"):
        verify(filled)
    document.unlink()
    with pytest.raises(SutureError, match="document of record 2 is missing"):
        verify(filled)


def test_an_agent_that_dies_between_record_and_head(filled):
    head = filled.with_name("egress.head").read_text()
    log = EgressLog(filled.parent)
    log.small("task_2", "fail", b"{}")
    log.close()
    filled.with_name("egress.head").write_text(head)
    assert len(verify(filled)) == 4
    log = EgressLog(filled.parent)
    log.small("task_3", "fail", b"{}")
    log.close()
    assert len(verify(filled)) == 5


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


def test_a_line_that_a_file_server_takes_and_cannot_keep_is_taken_back(filled, monkeypatch):
    """NFS may say only when the line is to be kept that there is no room: it does not stand there twice later."""

    def full(_descriptor):
        raise OSError(errno.EDQUOT, "the disk is full")

    log = EgressLog(filled.parent)
    with monkeypatch.context() as away:
        away.setattr("suture_worker.journal.os.fsync", full)
        with pytest.raises(OSError, match="full"):
            log.small("task_1", "wait", b"{}")
    log.small("task_1", "wait", b"{}")
    assert len(verify(filled)) == 4
    log.close()
    EgressLog(filled.parent).close()


def test_no_log_is_an_unbroken_one(tmp_path):
    assert verify(tmp_path / "egress.jsonl") == []
