"""A hub on a real socket: cut uploads, early refusals, long polls, shutdown, several hubs on one database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import select
from tests.until import until
from tests.web import NOBODY, web
from typer.testing import CliRunner

from suture.cli.app import app
from suture.hub import Hub
from suture_contract.card.yaml_block import split_card
from suture_local.ports import free_port
from suture_service import operate
from suture_service.hub import MUCH, REQUESTS, SHARED
from suture_service.main import server
from suture_service.models import search
from suture_service.settings import Settings
from suture_service.tables import Party

#: What comes of connections, the store or a command.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Live:
    """One running hub: its address, and ways to act."""

    def __init__(self, settings, tls=None):
        self.settings = settings
        self.server = server(settings, port=0, tls=tls)
        self.hub = self.server.config.app.state.hub
        self._thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self._thread.start()
        until(lambda: self.server.started or not self._thread.is_alive())
        assert self.server.started
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_error):
        self.stop()

    def stop(self):
        self.server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive()

    def client(self, token):
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=NOBODY)


@pytest.fixture
def settings(database_url, tmp_path):
    settings = Settings(database_url=database_url, store=str(tmp_path / "store"), sweep_seconds=0.05)
    for party in ("north", "south"):
        operate.add_party(settings, party)
    return settings


@pytest.fixture
def lapsing(settings):
    """The settings of a hub whose leases lapse soon."""
    return settings.model_copy(update={"lease_seconds": 1})


@pytest.fixture
def live(settings):
    with Live(settings) as running:
        yield running


@pytest.fixture
def token(settings):
    return operate.create_token(settings, "north", ["publisher", "requester"])[1]


@pytest.fixture
def site(settings):
    operate.add_site(settings, "south", "south-site")
    return operate.add_site(settings, "north", "north-site")


def blobs(settings):
    from pathlib import Path

    return [path for path in Path(settings.store).rglob("*") if path.is_file()]


def publish(client, handmade, repo="north/digits", seed=0, visibility="all", **metadata):
    content = json.dumps(handmade.metadata(**metadata)).encode()
    files = {"model": ("m", handmade.model(seed=seed)), "metadata": ("s", content)}
    answer = client.put(f"/v1/models/{repo}/revisions", params={"visibility": visibility}, files=files)
    assert answer.status_code == 201, answer.text
    return answer.json()


def ask(live, token, handmade):
    with live.client(token) as client:
        for seed, name in enumerate(("one", "two")):
            if client.get(f"/v1/models/north/{name}").status_code == 404:
                publish(client, handmade, f"north/{name}", seed)
        body = {"models": [{"repo": "north/one"}, {"repo": "north/two"}], "dataset": "digits"}
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


@on_sqlite
def test_an_upload_that_is_cut_leaves_nothing(live, settings, token, handmade):
    start = (
        b"PUT /v1/models/north/digits/revisions HTTP/1.1\r\nHost: hub\r\n"
        b"Authorization: Bearer " + token.encode() + b"\r\n"
        b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 100000000\r\n\r\n"
        b'--B\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(start + bytes(12_000_000))
        until(lambda: blobs(settings))
    until(lambda: not blobs(settings))
    with live.client(token) as client:
        assert client.get("/v1/models").json()["items"] == []
        revision = publish(client, handmade)
        path = f"/v1/models/north/digits/revisions/{revision['id']}/files/model.safetensors"
        content = handmade.model()
        part = client.get(path, headers={"Range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, content[100:])
        whole = client.get(path)
        assert whole.content == content
        assert client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
        assert client.head(path).headers["content-length"] == str(len(content))


@on_sqlite
def test_a_refusal_reaches_a_caller_that_is_still_sending(live, token):
    body = {"model": ("m", bytes(20_000_000)), "metadata": ("s", b"{}")}
    with live.client("suture_party_wrong") as client:
        for _ in range(3):
            answer = client.put("/v1/models/north/digits/revisions", files=body)
            assert answer.json()["error"]["code"] == "auth.invalid"
    with live.client(token) as client:
        for _ in range(3):
            answer = client.put("/v1/models/south/digits/revisions", files=body)
            assert answer.json()["error"]["code"] == "auth.forbidden"
            answer = client.put("/v1/models/north/digits/revisions", files={"other": ("o", bytes(20_000_000))})
            assert answer.json()["error"]["code"] == "upload.unknown_part"


@on_sqlite
def test_one_command_shares_a_model_and_takes_it_back(live, settings, token, site, handmade, monkeypatch):
    reader = operate.create_token(settings, "south", ["reader"])[1]
    with live.client(token) as client:
        publish(client, handmade, "north/mine", visibility="private")
    monkeypatch.setenv("SUTURE_HUB", live.url)
    monkeypatch.setenv("SUTURE_TOKEN", token)

    def suture(*arguments):
        found = CliRunner().invoke(app, ["share", *arguments])
        return found.exit_code, "".join(found.stdout.splitlines()[-1:])  # after what the hub logs here

    def may_read():
        with live.client(reader) as client:
            return client.get("/v1/models/north/mine").status_code == 200

    assert not may_read()
    assert suture("north/mine", "south") == (0, "north/mine is readable by north, south")
    assert may_read()
    assert suture("north/mine", "south", "--stop") == (0, "north/mine is readable by north")
    assert not may_read()
    assert suture("north/mine", "--everyone") == (0, "north/mine is readable by every party at this hub")
    assert may_read()
    assert suture("north/mine")[0] != 0  # with whom?
    # While somebody else shares it, too.
    operate.add_party(settings, "east")
    with Hub(live.url, token) as hub, Hub(live.url, token) as other:
        send = hub.connection.request

        def request(method, *arguments, **options):
            if method == "PATCH":
                other.share("north/mine", ["east"])
            return send(method, *arguments, **options)

        monkeypatch.setattr(hub.connection, "request", request)
        assert hub.share("north/mine", ["south"]).shared_with == ("east", "south")
    assert suture("north/mine", "suoth", "--stop")[0] != 0  # nobody of this name, and so nobody is kept out


@on_sqlite
def test_curl_publishes_as_documented(live, token, handmade, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(handmade.model())
    (tmp_path / "suture.json").write_text(json.dumps(handmade.metadata()))
    url = f"{live.url}/v1/models/north/digits/revisions"
    command = ["curl", "-sS", "-X", "PUT", "-H", f"Authorization: Bearer {token}"]
    command += ["-F", "model=@model.safetensors", "-F", "metadata=@suture.json", url]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("there is no curl here")
    assert json.loads(done.stdout)["repo"] == "north/digits", done.stdout + done.stderr


@pytest.fixture
def untimed(monkeypatch):
    """A long poll waits for news alone: neither its time ends it, nor does the hub look after a pause."""

    async def wait_for(news, _seconds):
        return await news

    monkeypatch.setattr("suture_service.hub.asyncio", SimpleNamespace(**{**vars(asyncio), "wait_for": wait_for}))


def test_long_polls_hold_neither_threads_nor_connections(untimed, live, token, site, handmade):
    """Many more sites wait than there are threads and connections; the hub still answers, and one gets the task."""
    with live.client(site) as client, ThreadPoolExecutor(80) as pool:
        polls = [pool.submit(client.post, "/v1/tasks/lease", json={"wait": 25}) for _ in range(80)]
        until(lambda: live.hub.metrics.waiting._value.get() == 80)
        job = ask(live, token, handmade)
        until(lambda: any(poll.done() for poll in polls))
        live.stop()  # the others need not wait to the end
        answers = [poll.result() for poll in polls]
    assert sorted(answer.status_code for answer in answers) == [200] + [204] * 79
    assert [answer.json()["job"]["id"] for answer in answers if answer.status_code == 200] == [job["id"]]


def test_events_arrive_while_waiting(live, token, site, handmade):
    job = ask(live, token, handmade)
    with live.client(token) as requester, live.client(site) as worker, ThreadPoolExecutor(1) as pool:
        seen = requester.get(f"/v1/jobs/{job['id']}/events").json()
        path = f"/v1/jobs/{job['id']}/events?after={seen['next']}&wait=20"
        poll = pool.submit(requester.get, path)
        until(lambda: live.hub.metrics.waiting._value.get() == 1)
        assert not poll.done()
        assert worker.post("/v1/tasks/lease", json={"wait": 0}).status_code == 200
        items = poll.result(60).json()["items"]
        assert items[0]["data"]["state"] == "leased"
        idle = time.monotonic()
        after = items[-1]["seq"] + 10
        assert requester.get(f"/v1/jobs/{job['id']}/events?after={after}&wait=0.5").json()["items"] == []
        assert time.monotonic() - idle > 0.4


def test_news_wakes_who_waits_for_it(untimed, live, token, site, handmade):
    with live.client(site) as client, live.client(token) as requester, ThreadPoolExecutor(2) as pool:
        lease = pool.submit(client.post, "/v1/tasks/lease", json={"wait": 25})
        until(lambda: live.hub.metrics.waiting._value.get() == 1)
        job = ask(live, token, handmade)
        task = lease.result(60).json()
        assert task["job"]["id"] == job["id"]
        path = f"/v1/jobs/{job['id']}/events"
        seen = requester.get(path).json()["next"]
        events = pool.submit(requester.get, path, params={"after": seen, "wait": 25})
        until(lambda: live.hub.metrics.waiting._value.get() == 1)
        client.post(f"/v1/tasks/{task['id']}/fail", json={"fence": task["fence"], "code": "work.failed"})
        assert "failed" in {event["data"].get("state") for event in events.result(60).json()["items"]}
    assert live.hub._listeners == {}


def test_the_hub_itself_notices_a_lapsed_lease(lapsing, token, site, handmade):
    with Live(lapsing) as live, live.client(site) as client:
        ask(live, token, handmade)
        first = client.post("/v1/tasks/lease", json={"wait": 0}).json()
        second = until(lambda: client.post("/v1/tasks/lease", json={"wait": 20}).content)
        assert (json.loads(second)["id"], json.loads(second)["fence"]) == (first["id"], first["fence"] + 1)
        stale = client.post(f"/v1/tasks/{first['id']}/heartbeat", json={"fence": first["fence"]})
        assert stale.json()["error"]["code"] == "task.fenced"


@on_sqlite
def test_shutdown_ends_long_polls_at_once(untimed, settings, site):
    with Live(settings) as live, live.client(site) as client, ThreadPoolExecutor(1) as pool:
        poll = pool.submit(client.post, "/v1/tasks/lease", json={"wait": 25})
        until(lambda: live.hub.metrics.waiting._value.get() == 1)
        live.stop()
        assert poll.result(60).status_code == 204


@on_sqlite
def test_serve_stops_on_sigterm(settings, tmp_path):
    code = (
        "import sys; from suture_service.main import serve; from suture_service.settings import Settings; "
        "serve(Settings(database_url=sys.argv[1], store=sys.argv[2]), port=int(sys.argv[3]))"
    )
    port = free_port()
    command = [sys.executable, "-W", "error", "-c", code, settings.database_url, settings.store, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:

        def ready():
            try:
                return web.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
            except httpx.TransportError:
                assert process.poll() is None
                return False

        until(ready)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    lines = [json.loads(line) for line in errors.splitlines()]  # every line is JSON, the server's own included
    assert any(line["event"] == "Finished server process [" + str(process.pid) + "]" for line in lines)
    assert process.returncode in (0, -signal.SIGTERM)


def test_two_hubs_on_one_database_give_each_task_out_once(settings, token, site, handmade):
    with Live(settings) as one, Live(settings) as two:
        jobs = {ask(one, token, handmade)["id"] for _ in range(10)}
        leases = []

        def work(live):
            with live.client(site) as client:
                while (answer := client.post("/v1/tasks/lease", json={"wait": 0})).status_code == 200:
                    leases.append(answer.json())

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [one, two] * 4))
        held = [(lease["id"], lease["fence"]) for lease in leases]
        assert len(set(held)) == len(held)
        assert {lease["job"]["id"] for lease in leases} == jobs


def test_racing_writers_agree_on_one_outcome(lapsing, token, site, handmade):
    """Cancel, failure and the sweeper of two hubs meet; each job ends once, and its history has no gap."""
    with Live(lapsing) as one, Live(lapsing) as two:
        job = ask(one, token, handmade)
        with one.client(site) as worker, two.client(site) as other, two.client(token) as requester:
            task = worker.post("/v1/tasks/lease", json={"wait": 5}).json()
            body = {"fence": task["fence"], "step": "x", "done": 1, "total": 2}
            calls = [lambda: requester.post(f"/v1/jobs/{job['id']}/cancel")]
            calls += [lambda: other.post(f"/v1/tasks/{task['id']}/progress", json=body)] * 5
            calls += [lambda: worker.post(f"/v1/tasks/{task['id']}/heartbeat", json={"fence": task["fence"]})] * 5
            fail = {"fence": task["fence"], "code": "work.cancelled"}
            calls += [lambda: worker.post(f"/v1/tasks/{task['id']}/fail", json=fail)]
            with ThreadPoolExecutor(len(calls)) as pool:
                statuses = {answer.status_code for answer in pool.map(lambda call: call(), calls)}
            assert statuses <= {200, 409}
            done = requester.get(f"/v1/jobs/{job['id']}").json()
            assert done["state"] in ("cancelled", "failed")
            events = requester.get(f"/v1/jobs/{job['id']}/events").json()["items"]
            ends = [
                event
                for event in events
                if event["kind"] == "job" and event["data"]["state"] in ("cancelled", "failed")
            ]
            assert len(ends) == 1
            seqs = [event["seq"] for event in events if event["kind"] != "progress"]
            assert seqs == sorted(set(seqs))


def test_the_same_model_published_by_many_at_once(live, token, handmade):
    content = json.dumps(handmade.metadata()).encode()

    def put(seed):
        files = {"model": ("m", handmade.model(seed=seed % 2)), "metadata": ("s", content)}
        with live.client(token) as client:
            return client.put("/v1/models/north/digits/revisions", files=files)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(put, range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 6 + [201] * 2
    assert len({answer.json()["id"] for answer in answers}) == 2
    with live.client(token) as client:
        assert len(client.get("/v1/models/north/digits/revisions").json()["items"]) == 2


def test_many_writers_and_readers_at_once(live, settings):
    """More than there are threads and connections: nobody may wait for someone who waits for him."""
    admin = operate.create_token(settings, "north", ["admin"])[1]
    url = f"{live.url}/v1/parties/north/tokens"
    options = {"headers": {"Authorization": f"Bearer {admin}"}, "timeout": 60, "verify": NOBODY}
    with ThreadPoolExecutor(100) as pool:
        writes = [pool.submit(httpx.post, url, json={"roles": []}, **options) for _ in range(80)]
        reads = [pool.submit(httpx.get, f"{url}?limit=200", **options) for _ in range(80)]
        assert {write.result().status_code for write in writes} == {201}
        assert {read.result().status_code for read in reads} == {200}


def test_however_much_one_asks_for_others_are_answered(live, settings, token, monkeypatch):
    """One party, and somebody without a token, ask for more at once than there are threads, and each waits long."""
    go, busy = threading.Event(), Counter()
    other = operate.create_token(settings, "south", ["publisher"])[1]
    find = search.list_models

    def slow_list(session, party_id, *args, **options):
        if party_id == south:
            busy["list"] += 1
            go.wait(60)
        return find(session, party_id, *args, **options)

    def slow_card(text, *args):
        busy["card"] += 1
        go.wait(60)
        return split_card(text, *args)

    with operate.reading(settings) as session:
        south = session.scalar(select(Party.id).where(Party.name == "south"))
    monkeypatch.setattr(search, "list_models", slow_list)
    monkeypatch.setattr("suture_service.hf.account.split_card", slow_card)
    with ThreadPoolExecutor(100) as pool, live.client(token) as honest:
        try:
            headers = {"Authorization": f"Bearer {other}"}
            sent = [pool.submit(httpx.get, f"{live.url}/v1/models", headers=headers, timeout=90) for _ in range(45)]
            asked, body = f"{live.url}/api/validate-yaml", {"content": "# Card"}
            sent += [pool.submit(httpx.post, asked, json=body, timeout=90) for _ in range(45)]
            until(lambda: busy == {"list": REQUESTS, "card": REQUESTS})
            assert honest.get("/v1/models").status_code == 200
            assert honest.get("/readyz").status_code == 200
            assert busy == {"list": REQUESTS, "card": REQUESTS}
        finally:
            go.set()
        assert {future.result().status_code for future in sent} == {200}
    assert not live.server.hub.turns._limiters


@on_sqlite
def test_callers_that_used_much_of_a_processor_share_few_threads(live, settings, token, monkeypatch):
    """However many they are; who used little is answered beside them."""
    used, go, at_work, most = threading.local(), threading.Event(), [0], [0]
    operate.add_party(settings, "east")
    tokens = [operate.create_token(settings, party, ["publisher"])[1] for party in ("south", "east")]
    find = search.list_models

    def find_models(session, party_id, wanted, **options):
        if wanted.search == "much":
            used.seconds = getattr(used, "seconds", 0.0) + 2 * MUCH
        elif wanted.search == "long":
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
            go.wait(60)
            at_work[0] -= 1
        return find(session, party_id, wanted, **options)

    monkeypatch.setattr(search, "list_models", find_models)
    monkeypatch.setattr("time.thread_time", lambda: getattr(used, "seconds", 0.0))

    def ask(token, search):
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{live.url}/v1/models", params={"search": search}, headers=headers, timeout=90).status_code

    with ThreadPoolExecutor(20) as pool:
        try:
            assert {ask(token, "much") for token in tokens} == {200}
            sent = [pool.submit(ask, token, "long") for token in tokens * REQUESTS]
            until(lambda: at_work[0] == SHARED)
            assert ask(token, "") == 200
        finally:
            go.set()
        assert {future.result() for future in sent} == {200}
    assert most[0] == SHARED
