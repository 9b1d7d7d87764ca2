"""Members are pulled once, and only used when their content is what their digest says."""

from __future__ import annotations

import hashlib
import os

import pytest

from suture_worker.agent.cache import Cache

CONTENTS = [b"a" * 10, b"b" * 10, b"c" * 10]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in CONTENTS]


@pytest.fixture
def fetched():
    return []


@pytest.fixture
def get(tmp_path, fetched):
    cache = Cache(tmp_path, keep_bytes=20)

    def get(index):
        def fetch(path):
            fetched.append(index)
            path.write_bytes(CONTENTS[index])

        return cache.get(DIGESTS[index], fetch)

    get.cache = cache  # type: ignore[attr-defined]
    return get


def test_a_member_is_fetched_once(get, fetched):
    assert get(0).read_bytes() == CONTENTS[0]
    assert get(0).read_bytes() == CONTENTS[0]
    assert fetched == [0]


def test_a_damaged_file_is_fetched_again(get, fetched):
    get(0).write_bytes(b"x")
    assert get(0).read_bytes() == CONTENTS[0]
    assert fetched == [0, 0]


def test_what_was_used_least_recently_goes_first(get, tmp_path):
    for index in range(3):
        os.utime(get(index), (index, index))
    os.utime(tmp_path / DIGESTS[0], (9, 9))
    (tmp_path / ".x.part").write_bytes(b"half")
    get.cache.prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([DIGESTS[0], DIGESTS[2]])
