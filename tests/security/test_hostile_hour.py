"""All that is known to be hostile, at once, against one hub that goes on answering honest callers.

How soon an honest answer comes depends on the processor, and on who else has work for it: attackers and other tests do.
So both are measured meanwhile, by a piece of work that is always the same. What is judged is the median of each kind of
request, as an answer alone may have met anything; and no answer takes so long that a client would give up.
"""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import re
import socket
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count, cycle
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil
import pytest
from tests.security.write_corpus import HOSTILE
from tests.service.conftest import metadata_of, model_bytes
from tests.service.test_connections import HALF
from tests.service.test_hostile_bodies import HEADERS, file_of
from tests.service.test_operations import Process
from tests.until import until
from tests.web import web

from suture_contract.model.format import graph_to_json
from suture_contract.model.graph import Graph, Input, Node, Ref
from suture_contract.model.graph_json import MAX_NODES
from suture_service import operate
from suture_service.hub import CHECKS
from suture_service.settings import Settings

MIB = 2**20
#: How often each honest request is made meanwhile.
ROUNDS = 4
#: Seconds until an honest answer, where `piece_of_work` takes `USUAL` seconds of a processor of its own. Most take a
#: tenth of that. What this finds are holes: those that were mended took 6 to 20, and more.
LIMIT, USUAL = 2.0, 0.025
#: Seconds after which an honest client takes the hub for lost. Whoever is slow is held on to for much less.
LOST = 90.0
#: How a client sees that its connection made room for others between two requests.
CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
#: What a hostile request may be answered with: taken for what it is or refused, but never a failure of the hub.
REFUSED = {400, 401, 404, 408, 409, 412, 413, 422, 429}
#: And what it has to be answered with, where there is one answer alone; a guess is locked out in the end.
ANSWERS = {"brackets": {422}, "graphs": {422}, "oversized": {413}, "guesses": {401, 429}, "endless": {431}}
#: How long the hub waits for a header, and for more of a body, here; and how many descriptors it has.
SECONDS = {"suture_service.connections.HEADER_SECONDS": 3.0, "suture_service.observe.BODY_SECONDS": 5.0}
DESCRIPTORS = 256
#: So many connections whoever is slow begins at once: more than there may be.
HELD = 110
#: So many uploads of one attacker are checked at once, if they are.
AT_ONCE = 6
#: What an address has of the connections that so few descriptors leave.
EACH = 8
METADATA = json.dumps(metadata_of()).encode()

CARDS = (
    b"---\n" + b"a: &a [x]\n" + b"".join(b"k%d: [%s]\n" % (n, b"*a," * 500) for n in range(100)) + b"---\n",
    b"---\n" * 200_000,
    b"---\n" + b"- " * 100_000 + b"\n---\n",
    b"---\n" + b"{" * 100_000 + b"\n---\n",
    b"---\nlicense: !!python/object/apply:os.system [id]\n---\n",
    b"---\ntags: ['" + b"\xed\xa0\x80" * 1000 + b"']\n---\n",
)
PATHS = ("../../etc/passwd", ".git/config", "a/.GIT/hooks", "a\x00b", "a\\b", "/a", "a//b", "\u202egpj.exe", "x" * 1025)
PATHS = (*PATHS, "/".join("d" * 500), "con\r\nX-Injected: 1", "é" * 200)
SUMMARIES = ("\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</script>", "x" * 501, "\r\nSet-Cookie: a=b", "' OR 1=1 --")
DOCUMENTS: tuple[bytes, ...] = (
    b'{"schema": "suture.model/1", "description": "' + b"\\u202e" * 20_000 + b'"}',
    b"[" * 50_000,
    b'{"labels": [' + b'"x",' * 30_000 + b'"x"]}',
    METADATA.replace(b'"task"', b'"__proto__": {}, "task"'),
    b'{"training_data": {"n": 1e400}}',
    b"\xff\xfe" + METADATA,
)


class Attacker:
    """Somebody with a token of one party, or none, at an address of their own."""

    def __init__(self, port: int, token: str, address: str) -> None:
        self.port = port
        self.address = address
        #: How many connections the hub has ended because nothing came.
        self.ended = 0
        self.token = token
        self.client = self.at(address, token=token)

    def at(self, address: str, *, token: str | None = "") -> httpx.Client:
        """Return a client at an address; with the same token, or another, or none."""
        token = self.token if token == "" else token
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {token}"} if token is not None else {},
            transport=httpx.HTTPTransport(local_address=address),
            timeout=300,
        )

    def publish(self, name: str, model: bytes, metadata: bytes = METADATA, card: bytes = b"# Card") -> int:
        files = {"model": ("m", model), "metadata": ("s", metadata), "card": ("c", card)}
        return self.client.put(f"/v1/models/south/{name}/revisions", files=files).status_code

    def commit(self, path: str, content: bytes, summary: str = "x") -> int:
        return self.commit_files({path: content}, summary)

    def commit_files(self, files: dict[str, bytes], summary: str = "x") -> int:
        lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": summary}}]
        for path, content in files.items():
            encoded = base64.b64encode(content).decode()
            lines.append({"key": "file", "value": {"path": path, "content": encoded, "encoding": "base64"}})
        body = "\n".join(json.dumps(line) for line in lines)
        return self.client.post("/api/models/south/repo/commit/main", content=body).status_code


def patterns(attacker: Attacker) -> Iterator[int]:
    """Patterns of a .gitignore on which a backtracking engine would try everything."""
    files = [{"path": "a" * 240 + str(index), "size": 1, "sample": ""} for index in range(1000)]
    for rule in cycle(("?" * 100 + "*" + "a" * 120 + "b*", "*a" * 100 + "b", "**/" * 60 + "b", "[a-z]*" * 60 + "!")):
        body = {"files": files, "gitIgnore": "\n".join([rule] * 500)}
        yield attacker.client.post("/api/models/south/repo/preupload/main", json=body).status_code


def brackets(attacker: Attacker) -> Iterator[int]:
    """Headers that are small to send and large to parse."""
    for content in cycle([file_of(made()[: 16 * MIB]) for made in HEADERS.values()]):
        yield attacker.publish("brackets", content)


def largest_graph() -> bytes:
    """A file with as many nodes as are read: below 2 MB, and most of a second of a processor's time to check."""
    nodes = (Node("input", (0,)), *(Node("aten.add.Tensor", (Ref(at), Ref(at))) for at in range(MAX_NODES - 1)))
    values = (Input((None, 4), "float32"),)
    graph = Graph(inputs=values, nodes=nodes, output=Ref(MAX_NODES - 1), outputs=values)
    told = {"format": "suture.portable", "version": "1", "graph": graph_to_json(graph), "torch": "2.13"}
    header = json.dumps({"__metadata__": told}).encode()
    return file_of(header + b" " * (-len(header) % 8))


def graphs(attacker: Attacker) -> Iterator[int]:
    """Many of the files at once that take the longest to check."""
    content = largest_graph()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while True:
            yield from pool.map(lambda number: attacker.publish(f"graph{number}", content), range(AT_ONCE))


def bombs(attacker: Attacker) -> Iterator[int]:
    """Files of the corpus: views, pooling and results that would take much more than their bytes, and all others."""
    for path in cycle(sorted(HOSTILE.iterdir())):
        yield attacker.publish("bomb", path.read_bytes())


def oversized(attacker: Attacker) -> Iterator[int]:
    """Bodies of many values, of great depth, and of more than a request may have."""
    many = b'{"models": [' + b"[]," * 2_000_000 + b"[]]}"
    for body in cycle((many, b"[" * MIB, b'{"models": "' + b"x" * (20 * MIB) + b'"}')):
        headers = {"Content-Type": "application/json"}
        yield attacker.client.post("/v1/jobs", content=body, headers=headers).status_code


def words(attacker: Attacker) -> Iterator[int]:
    """Cards, metadata, names of files and messages of commits that mean harm."""
    model = model_bytes()
    for number in count():
        card, path = CARDS[number % len(CARDS)], PATHS[number % len(PATHS)]
        yield attacker.commit("README.md", card)
        yield attacker.commit(path, b"x")
        yield attacker.commit("plain.txt", b"%d" % number, SUMMARIES[number % len(SUMMARIES)])
        yield attacker.publish("words", model, DOCUMENTS[number % len(DOCUMENTS)])
        yield attacker.publish("words", model, card=card)


def views(attacker: Attacker) -> Iterator[int]:
    """Pages of what takes long to show, from as many connections as a few addresses have."""
    names = [f"{number}.md" for number in range(5 * EACH)]
    attacker.commit_files({name: b"[" * (60_000 + number) for number, name in enumerate(names)})
    with ExitStack() as stack:
        seen_from = [stack.enter_context(attacker.at(f"127.0.3.{number + 1}")) for number in range(5)]

        def view(number: int) -> int:
            page = f"/south/repo/blob/main/{names[number]}"
            return seen_from[number // EACH].get(page, headers={"Accept": "text/html"}).status_code

        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        while True:
            yield from pool.map(view, range(len(names)))


def strangers(attacker: Attacker) -> Iterator[int]:
    """Cards to check, for which nobody needs a token."""
    card = "---\na: [" + "x," * 30_000 + "]\n---\n"
    with attacker.at(attacker.address, token=None) as stranger, ThreadPoolExecutor(EACH) as pool:
        while True:
            yield from pool.map(
                lambda _: stranger.post("/api/validate-yaml", json={"content": card}).status_code, range(EACH)
            )


def endless(attacker: Attacker) -> Iterator[int]:
    """Lines after a body that never end, without a token: 431 stands for a connection that the hub has ended."""
    first = b"POST /v1/telemetry HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"
    for beside, more in cycle(
        ((b"0\r\n", b"x: " + b"y" * 1000 + b"\r\n"), (b"0\r\nx: ", b"y" * 1000), (b"2;", b"y" * 1000))
    ):
        with socket.socket() as made:
            made.bind((attacker.address, 0))
            made.settimeout(60)
            try:
                made.connect(("127.0.0.1", attacker.port))
                made.sendall(first + beside + more * 16_000)
                yield 200
            except OSError:
                yield 431


def guesses(attacker: Attacker) -> Iterator[int]:
    """Tokens that are none, with bodies that nobody should read."""
    for number in count():
        headers = {"Authorization": f"Bearer suture_party_{number}", "Content-Type": "application/json"}
        yield attacker.client.get("/v1/models", headers=headers).status_code
        yield attacker.client.post("/v1/jobs", content=b"[" * 200_000, headers=headers).status_code


def hold(attacker: Attacker, first: bytes, addresses: Sequence[str]) -> Iterator[int]:
    """Begin requests and send no more, on as many connections as there can be, until the hub has ended each."""
    while True:
        with ExitStack() as stack:
            held = list[socket.socket]()
            for _, address in zip(range(HELD), cycle(addresses), strict=False):
                try:
                    made = socket.create_connection(
                        ("127.0.0.1", attacker.port), timeout=60, source_address=(address, 0)
                    )
                    stack.enter_context(made).sendall(first)
                    held.append(made)
                except OSError:
                    continue  # it has its share already
            for made in held:
                try:
                    answer = made.recv(4096)
                except ConnectionError:
                    continue  # it made room for others
                if answer:
                    attacker.ended += answer.startswith(b"HTTP/1.1 408")
                    yield int(answer.split()[1])


def half_headers(attacker: Attacker) -> Iterator[int]:
    """Headers that never end, each from an address of its own: it needs no token to send them."""
    return hold(attacker, HALF, [f"127.0.2.{number + 1}" for number in range(HELD)])


def half_bodies(attacker: Attacker) -> Iterator[int]:
    """Bodies of which a few bytes come."""
    token = attacker.client.headers["Authorization"].encode()
    slow = b"PUT /v1/models/south/slow/revisions HTTP/1.1\r\nHost: hub\r\nContent-Length: 100000000\r\n"
    slow += b"Content-Type: multipart/form-data; boundary=x\r\nAuthorization: " + token + b"\r\n\r\n--x\r\n"
    return hold(attacker, slow, [attacker.address])


ATTACKS = (patterns, brackets, graphs, bombs, oversized, words, views, strangers, endless)
ATTACKS = (*ATTACKS, guesses, half_headers, half_bodies)


def attack_at_once(port: int, token: str, line: Connection) -> None:
    """Attack in all ways until `line` says so: in a process of its own, as who is honest shares none with attackers.

    Whenever asked, it answers how often each kind was answered with which status, and how many connections were ended.
    """
    answers, ended = {kind.__name__: Counter[int]() for kind in ATTACKS}, Counter[str]()

    def attack(number: int, kind: Callable[[Attacker], Iterator[int]]) -> None:
        attacker = Attacker(port, token, f"127.0.1.{number + 1}")
        while True:
            with suppress(*CLOSED):
                for status in kind(attacker):
                    answers[kind.__name__][status] += 1
                    ended[kind.__name__] = attacker.ended

    for number, kind in enumerate(ATTACKS):
        threading.Thread(target=attack, args=(number, kind), daemon=True).start()
    while line.recv():
        line.send(({kind: statuses.copy() for kind, statuses in answers.items()}, ended.copy()))
    # What is under way is not waited for.
    os._exit(0)


def asked_again(request: Callable[[], httpx.Response]) -> httpx.Response:
    """Return the answer. Between two requests a connection may have made room for others: who is honest asks again."""
    until = time.monotonic() + LOST
    while True:
        try:
            return request()
        except CLOSED:
            assert time.monotonic() < until, "every connection of an honest caller makes room for others"


class Honest:
    """A party that works as always; every answer's seconds are noted, by what was asked."""

    def __init__(self, hub: Process, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.url = f"http://127.0.0.1:{hub.port}"
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=LOST)
        self._number = 0

    def round(self, seconds: dict[str, list[float]]) -> None:
        """Ask for one of each."""
        self._number += 1
        files = {"model": ("m", model_bytes(seed=self._number)), "metadata": ("s", METADATA)}
        line = {"key": "file", "value": {"path": "a.txt", "content": f"{self._number}", "encoding": "utf-8"}}
        body = "\n".join(map(json.dumps, ({"key": "header", "value": {"summary": "x"}}, line)))
        calls: dict[str, Callable[[], httpx.Response]] = {
            "publish": lambda: self.client.put("/v1/models/north/digits/revisions", files=files),
            "who": lambda: self.client.get("/v1/whoami"),
            "list": lambda: self.client.get("/v1/models"),
            "file": lambda: self.client.get("/v1/models/north/digits/revisions/latest/files/model.safetensors"),
            "tree": lambda: self.client.get("/api/models/north/repo/tree/main?recursive=true&expand=true"),
            "commit": lambda: self.client.post("/api/models/north/repo/commit/main", content=body),
            "ready": lambda: self.client.get("/readyz"),
            # On a connection of its own: others may hold all that there can be.
            "alive": lambda: web.get(f"{self.url}/healthz", timeout=LOST),
        }
        for name, request in calls.items():
            started = time.perf_counter()
            answer = asked_again(request)
            seconds[name].append(time.perf_counter() - started)
            assert answer.status_code in (200, 201), (name, answer.status_code, answer.text)


def piece_of_work() -> float:
    """Return how many seconds this machine takes, now, for what is always the same."""
    started = time.perf_counter()
    for _ in range(4):
        json.loads(json.dumps([{"number": number, "text": "x" * 20} for number in range(5000)]))
    return time.perf_counter() - started


def too_slow(meanwhile: dict[str, list[float]], pace: float) -> dict[str, str]:
    """Return which requests usually took too long, and how long, where a piece of work took `pace` seconds."""
    allowed = LIMIT * max(1.0, pace / USUAL)
    return {
        name: f"{statistics.median(seconds):.2f} s, of {allowed:.2f} s"
        for name, seconds in meanwhile.items()
        if statistics.median(seconds) > allowed
    }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Process, dict[str, str]]]:
    settings = Settings(database_url=f"sqlite:///{tmp_path / 'hub.db'}", store=str(tmp_path / "store"))
    operate.migrate(settings)
    tokens = {}
    for party in ("north", "south"):
        operate.add_party(settings, party)
        tokens[party] = operate.create_token(settings, party, ["publisher", "requester"])[1]
    with Process(settings, constants=SECONDS, descriptors=DESCRIPTORS) as running:
        for party, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"}
            made = httpx.post(f"{running.url}/api/repos/create", json={"name": "repo"}, headers=headers, timeout=60)
            assert made.status_code == 200, (party, made.text)
        yield running, tokens


def test_honest_callers_are_answered_while_all_attack_at_once(
    hub: tuple[Process, dict[str, str]], request: pytest.FixtureRequest
) -> None:
    running, tokens = hub
    honest, watched = Honest(running, tokens["north"]), psutil.Process(running.process.pid)
    request.addfinalizer(honest.client.close)
    meanwhile, paces = defaultdict[str, list[float]](list), list[float]()
    honest.round(defaultdict(list))  # the first of each kind takes longer
    over, largest = threading.Event(), 0

    def watch() -> int:
        """Return how many checks ran at once."""
        most = 0
        with httpx.Client(base_url=running.url, timeout=300) as client:
            while not over.wait(0.1):
                with suppress(*CLOSED):
                    (line,) = re.findall(r"^suture_hub_checks (.*)$", client.get("/metrics").text, re.MULTILINE)
                    most = max(most, int(float(line)))
        return most

    ours, theirs = multiprocessing.Pipe()
    attackers = multiprocessing.get_context("spawn").Process(
        target=attack_at_once, args=(running.port, tokens["south"], theirs)
    )

    def so_far() -> tuple[dict[str, Counter[int]], Counter[str]]:
        ours.send(True)
        return ours.recv()  # type: ignore[no-any-return]

    def not_yet() -> list[str]:
        """Return which attacks were not answered yet, or not held for so long, or guessed so often, that they end."""
        answers, ended = so_far()
        begun = {name for name, statuses in answers.items() if statuses}
        done = begun - {"guesses", "half_headers", "half_bodies"} | {name for name in ended if ended[name]}
        done |= {"guesses"} if answers["guesses"][429] else set()
        return sorted(answers.keys() - done)

    with ThreadPoolExecutor(1) as pool:
        at_once = pool.submit(watch)
        attackers.start()
        try:
            until(lambda: so_far()[0]["guesses"])
            for _ in range(ROUNDS):
                honest.round(meanwhile)
                paces.append(piece_of_work())
                largest = max(largest, watched.memory_info().rss)
            with suppress(AssertionError):
                until(lambda: not not_yet(), LOST)
            assert not not_yet(), "attacks that never were answered, or never ended"
            answers, _ended = so_far()
        finally:
            over.set()
            ours.send(False)
            attackers.join(LOST)
    late = too_slow(meanwhile, statistics.median(paces))
    print({name: max(seconds) for name, seconds in meanwhile.items()}, "pace", paces)  # read it by `pytest -rP`
    assert not late, (late, dict(answers))
    log = [json.loads(line) for line in running.lines]
    assert not [line for line in log if line["event"] == "failed"]
    for kind in ATTACKS:
        statuses = answers[kind.__name__]
        taken = (
            {200, 201} if kind in (patterns, bombs, words) else {200, 503} if kind in (views, strangers) else set[int]()
        )
        if kind in (half_headers, half_bodies):
            taken = {503}  # its address had its share
        assert set(statuses) <= ANSWERS.get(kind.__name__, REFUSED | taken), (kind.__name__, statuses)
    assert 0 < at_once.result() <= CHECKS, f"{at_once.result()} checks at once"
    assert {line["received"] for line in log if line["event"] == "request" and line["status"] == 401} == {0}, (
        "bodies are read before tokens are looked at"
    )
    assert largest < 1024 * MIB, f"the hub grew to {largest // MIB} MiB"


@pytest.mark.parametrize(
    ("pace", "usually", "fails"),
    [(USUAL / 2, 1.9, False), (USUAL / 2, 2.1, True), (3 * USUAL, 5.9, False), (3 * USUAL, 6.1, True)],
)
def test_the_judge_goes_by_what_the_machine_does(pace: float, usually: float, fails: bool) -> None:
    assert bool(too_slow({"who": [0.01, usually, 9 * usually]}, pace)) is fails
