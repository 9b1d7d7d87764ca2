"""The site's own Redis: a socket for this user alone, no port, and a path that is never too long."""

from __future__ import annotations

import os
import stat
import subprocess
import time

import pytest
import redis

from suture_contract.errors import SutureError
from suture_worker import broker
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
