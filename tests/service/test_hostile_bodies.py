"""What is small to send and large to parse: counted before, checked a few at a time, while the hub answers."""

from __future__ import annotations

import base64
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from suture_contract.errors import SutureError
from suture_contract.model import format as portable_format
from suture_contract.model import graph_json
from suture_contract.model.format import any_header, read_header
from suture_contract.structure import holds_more
from suture_service.hub import CHECKS
from suture_service.kinds.checks import read_document
from suture_service.models import publishing

MIB = 2**20


def file_of(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def lists(size: int) -> bytes:
    return b'{"a":[' + b"[]," * ((size - 9) // 3) + b"[]]}"


#: Each is 16 MiB: made where it is needed.
HEADERS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: lists(16 * MIB - 8),
    "objects": lambda: b'{"a":[' + b"{}," * 5_000_000 + b"{}]}",
    "texts": lambda: b'{"a":[' + b'"ab",' * 3_000_000 + b'""]}',
    "numbers": lambda: b'{"a":[' + b"1e9," * 4_000_000 + b"1]}",
    "fields": lambda: b'{"a":{' + b",".join(b'"%d":0' % index for index in range(1_300_000)) + b"}}",
    "an open text": lambda: b'{"a":"' + b'\\"' * 8_000_000,
}


@pytest.fixture
def parser(monkeypatch):
    """What headers and graphs are parsed with. Of these it would make what takes minutes, and is refused as well."""
    spy = Mock(side_effect=ValueError)
    for module in (graph_json, portable_format):
        monkeypatch.setattr(module, "json", SimpleNamespace(loads=spy, dumps=json.dumps))
    return spy


@pytest.mark.parametrize("name", sorted(HEADERS.keys() - {"an open text"}))
def test_a_header_of_many_values_is_refused_before_it_is_parsed(name, parser):
    content = file_of(HEADERS[name]()[: 16 * MIB])
    with pytest.raises(SutureError, match="values") as refused:
        read_header(lambda offset, length: content[offset : offset + length], len(content))
    assert refused.value.code == "model.graph"
    assert any_header(lambda offset, length: content[offset : offset + length], len(content)) is None
    parser.assert_not_called()


def test_a_header_of_one_long_value_takes_no_more_memory_than_that():
    content = file_of(HEADERS["an open text"]()[: 16 * MIB])
    tracemalloc.start()
    try:
        with pytest.raises(SutureError) as refused:
            read_header(lambda offset, length: content[offset : offset + length], len(content))
        unread = any_header(lambda offset, length: content[offset : offset + length], len(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.code == "model.graph"
    assert unread is None
    assert peak < 6 * len(content)


def test_a_graph_of_many_values_is_refused_before_it_is_parsed(parser):
    with pytest.raises(SutureError, match="values"):
        graph_json.graph_from_json("[" + "0," * graph_json.MAX_VALUES + "0]", where="model.safetensors")
    parser.assert_not_called()


def test_a_document_of_many_values_is_refused_before_it_is_parsed():
    text, kind = b"[" + b"0," * portable_format.MAX_VALUES + b"0]", Mock()
    file = SimpleNamespace(size=len(text), read=lambda offset, length: text[offset : offset + length])
    with pytest.raises(SutureError, match="values"):
        read_document(kind, file, "report.json", "report.invalid")
    kind.model_validate_json.assert_not_called()


@pytest.mark.parametrize(
    ("text", "count"),
    [(b"{}", 1), (b'{"a": "[[[,,,"}', 3), (rb'["\\", "\"[,"]', 4), (b'["open [', 2), (b"[1,2,[3]]", 4)],
)
def test_what_stands_in_a_text_does_not_count(text, count):
    assert holds_more(text, count - 1)
    assert not holds_more(text, count)


def test_the_most_that_a_model_of_our_own_can_hold_is_read(handmade, monkeypatch):
    content = handmade.model()
    monkeypatch.setattr(portable_format, "MAX_TENSORS", 2)
    monkeypatch.setattr(portable_format, "MAX_VALUES", 2 * 20)
    assert read_header(lambda offset, length: content[offset : offset + length], len(content)).tensors


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_a_site_composed_waits_for_its_turn_to_be_checked(world, monkeypatch):
    """It is a model like any other: with the checks that are under way there are never more than a few."""
    world.ask(publish_as="both")
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    task = world.sites["north"].lease()
    world.put_composed(task)
    full, go, checked = threading.Semaphore(0), threading.Event(), list[int]()

    def read(*args, where, **options):
        checked.append(threading.get_ident())
        full.release()
        assert go.wait(30)
        return read_header(*args, where=where, **options)

    monkeypatch.setattr(publishing, "read_header", read)
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(getattr(world, party).publish, f"{party}/m") for party in ("south", "east")]
        assert all(full.acquire(timeout=30) for _ in range(CHECKS))
        composed = pool.submit(world.sites["north"].tell, task, "result", document={"chosen": "c03"})
        ended = time.monotonic() + 30
        while len(checked) == CHECKS and not world.hub.checks._all.statistics().tasks_waiting:
            assert time.monotonic() < ended, "what was composed is neither checked nor waiting"
            time.sleep(0.01)
        assert len(checked) == CHECKS
        go.set()
        statuses = [future.result().status_code for future in (*sent, composed)]
    assert statuses == [201, 201, 200]
    assert len(checked) == CHECKS + 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_hub_answers_while_it_checks_and_checks_a_few_at_a_time(world, monkeypatch):
    """A party sends much at once: it is checked one after another, another party's meanwhile, and all are answered."""
    busy, most = [0], [0]
    first, full, go = threading.Event(), threading.Event(), threading.Event()

    def read(*args, **options):
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        first.set()
        if busy[0] >= CHECKS:
            full.set()
        go.wait(30)
        try:
            return read_header(*args, **options)
        finally:
            busy[0] -= 1

    monkeypatch.setattr(publishing, "read_header", read)
    hostile, commit = file_of(lists(MIB)), "/api/models/north/repo/commit/main"
    assert world.north.post("/api/repos/create", {"name": "repo"}).status_code == 200
    lines = [{"key": "header", "value": {"summary": "x"}}]
    for path, content in (("model.safetensors", hostile), ("suture.json", json.dumps(world.metadata()).encode())):
        value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines.append({"key": "file", "value": value})
    with ThreadPoolExecutor(12) as pool:
        sent = [pool.submit(world.north, "POST", commit, content="\n".join(map(json.dumps, lines)).encode())]
        sent += [pool.submit(world.north.publish, f"north/m{index}", model=hostile) for index in range(8)]
        assert first.wait(30)
        assert most[0] == 1
        sent.append(pool.submit(world.south.publish, "south/honest"))
        assert full.wait(30)
        answers = [world.client.get("/healthz"), world.north.get("/v1/models")]
        go.set()
        statuses = sorted(future.result().status_code for future in sent)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert statuses == [201, 400, *[422] * 8]
    assert most[0] == CHECKS


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bodies_of_many_values_are_refused_and_tokens_come_first(world):
    many = b'{"models": [' + b"[]," * 2_000_000 + b"[]]}"
    kind = {"Content-Type": "application/json"}
    refused = world.north("POST", "/v1/jobs", content=many, headers=kind)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request.too_large")
    for headers in ({}, {"Authorization": "Bearer suture_pat_wrong"}):
        answer = world.client.post("/v1/jobs", content=many, headers={**kind, **headers})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "auth.invalid")
    world.north.post("/api/repos/create", {"name": "repo", "organization": "north"})
    header = json.dumps({"key": "header", "value": {"summary": "x"}}).encode()
    value = {"path": "x", "content": base64.b64encode(b"{[," * MIB).decode(), "encoding": "base64"}
    whole = b'{"key": "file", "value": [' + b"[]," * 100_000 + b"[]]}"
    for line, status in ((whole, 400), (json.dumps({"key": "file", "value": value}).encode(), 200)):
        content = header + b"\n" + line
        kind = {"Content-Type": "application/x-ndjson"}
        answer = world.north("POST", "/api/models/north/repo/commit/main", content=content, headers=kind)
        assert answer.status_code == status
        assert status == 200 or "a line is more than" in answer.json()["error"]
