"""All that is known to be hostile, at once, against one hub that goes on answering honest callers.

How fast an honest answer is depends on the machine. So each kind of request is timed before and after the attack, too,
and so is how long this process waits for a processor. What a quiet machine answers within two seconds may take longer
by as much.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count, cycle
from pathlib import Path

import httpx
import psutil
import pytest
from tests.security.write_corpus import HOSTILE
from tests.service.conftest import metadata_of, model_bytes
from tests.service.test_connections import HALF
from tests.service.test_hostile_bodies import HEADERS, file_of
from tests.service.test_operations import Process

from suture_contract.model.format import graph_to_json
from suture_contract.model.graph import Graph, Input, Node, Ref
from suture_contract.model.graph_json import MAX_NODES
from suture_service import operate
from suture_service.settings import Settings

MIB = 2**20
#: How often each honest request is made, undisturbed and meanwhile.
ROUNDS = 6
#: Seconds of an honest answer on a quiet machine, where the same request takes `USUAL` undisturbed.
LIMIT, USUAL = 2.0, 0.04
#: What a hostile request may be answered with: taken for what it is or refused, but never a failure of the hub.
REFUSED = {400, 401, 404, 408, 409, 412, 413, 422, 429}
#: And what it has to be answered with, where there is one answer alone; a guess is locked out in the end.
ANSWERS = {"brackets": {422}, "graphs": {422}, "oversized": {413}, "guesses": {401, 429}}
#: How long the hub waits for a header, and for more of a body, here; and how many descriptors it has.
SECONDS = {"suture_service.connections.HEADER_SECONDS": 3.0, "suture_service.observe.BODY_SECONDS": 5.0}
DESCRIPTORS = 256
#: So many connections whoever is slow begins at once: more than there may be.
HELD = 110
#: So many uploads of one attacker are checked at once, if they are.
AT_ONCE = 6
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

    def __init__(self, hub: Process, token: str, address: str) -> None:
        self.port = hub.port
        self.address = address
        #: How many connections the hub has ended because nothing came.
        self.ended = 0
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{hub.port}",
            headers={"Authorization": f"Bearer {token}"},
            transport=httpx.HTTPTransport(local_address=address),
            timeout=300,
        )

    def publish(self, name: str, model: bytes, metadata: bytes = METADATA, card: bytes = b"# Card") -> int:
        files = {"model": ("m", model), "metadata": ("s", metadata), "card": ("c", card)}
        return self.client.put(f"/v1/models/south/{name}/revisions", files=files).status_code

    def commit(self, path: str, content: bytes, summary: str = "x") -> int:
        file = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
        lines = ({"key": "header", "value": {"summary": summary}}, {"key": "file", "value": file})
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
    for name in cycle(HEADERS):
        yield attacker.publish("brackets", file_of(HEADERS[name][: 16 * MIB]))


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


ATTACKS = (patterns, brackets, graphs, bombs, oversized, words, guesses, half_headers, half_bodies)


class Honest:
    """A party that works as always; every answer's seconds are noted, by what was asked."""

    def __init__(self, hub: Process, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self.url = f"http://127.0.0.1:{hub.port}"
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=300)
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
            "alive": lambda: httpx.get(f"{self.url}/healthz", timeout=300),
        }
        for name, request in calls.items():
            started = time.perf_counter()
            answer = request()
            seconds[name].append(time.perf_counter() - started)
            assert answer.status_code in (200, 201), (name, answer.status_code, answer.text)


def slowdown() -> float:
    """Return how many seconds a second of work takes, as others work on this machine, too."""
    started, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < 0.3:
        hashlib.sha256(bytes(2**16))
    return (time.perf_counter() - started) / 0.3


def too_slow(
    before: dict[str, list[float]], meanwhile: dict[str, list[float]], after: dict[str, list[float]], slower: float
) -> dict[str, str]:
    """Return which requests took too long, and how long, beside the slower of the two undisturbed times.

    `slower` is by how much this machine, undisturbed, is slower than a quiet one.
    """
    late = {}
    for name, seconds in meanwhile.items():
        undisturbed = max(statistics.median(before[name]), statistics.median(after[name]))
        allowed = LIMIT * max(1.0, slower, undisturbed / USUAL)
        if max(seconds) > allowed:
            late[name] = f"{max(seconds):.2f} s, of {allowed:.2f} s; undisturbed {undisturbed:.3f} s"
    return late


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
    before, meanwhile, after = (defaultdict[str, list[float]](list) for _ in range(3))
    honest.round(defaultdict(list))  # the first of each kind takes longer
    for _ in range(ROUNDS // 3):
        honest.round(before)
    slower = slowdown()
    over, answers, largest = threading.Event(), defaultdict[str, Counter[int]](Counter), 0
    ended = Counter[str]()

    def attack(number: int, kind: Callable[[Attacker], Iterator[int]]) -> None:
        attacker = Attacker(running, tokens["south"], f"127.0.1.{number + 1}")
        with attacker.client:
            for status in kind(attacker):
                answers[kind.__name__][status] += 1
                if over.is_set():
                    break
            ended[kind.__name__] += attacker.ended

    with ThreadPoolExecutor(len(ATTACKS)) as pool:
        attacks = [pool.submit(attack, number, kind) for number, kind in enumerate(ATTACKS)]
        try:
            for _ in range(ROUNDS):
                honest.round(meanwhile)
                largest = max(largest, watched.memory_info().rss)
        finally:
            over.set()
        for done in attacks:
            done.result()
    for _ in range(ROUNDS // 3):
        honest.round(after)
    late = too_slow(before, meanwhile, after, max(slower, slowdown()))
    assert not late, (late, dict(answers))
    for kind in ATTACKS:
        statuses = answers[kind.__name__]
        assert statuses, f"{kind.__name__} was never answered"
        taken = {200, 201} if kind in (patterns, bombs, words) else set[int]()
        if kind in (half_headers, half_bodies):
            assert ended[kind.__name__], f"{kind.__name__} were held for good"
            taken = {503}  # its address had its share
        assert set(statuses) <= ANSWERS.get(kind.__name__, REFUSED | taken), (kind.__name__, statuses)
    assert answers["guesses"][429], "whoever guesses tokens goes on as before"
    assert largest < 1024 * MIB, f"the hub grew to {largest // MIB} MiB"
    assert not [line for line in running.lines if '"event": "failed"' in line]


@pytest.mark.parametrize(
    ("undisturbed", "slower", "slowest", "fails"),
    [
        (0.01, 1.0, 1.9, False),
        (0.01, 1.0, 2.1, True),
        (0.4, 1.0, 19.0, False),
        (0.4, 1.0, 21.0, True),
        (0.01, 6.0, 11.0, False),
        (0.01, 6.0, 13.0, True),
    ],
)
def test_the_judge_goes_by_what_the_machine_does_undisturbed(
    undisturbed: float, slower: float, slowest: float, fails: bool
) -> None:
    times = {"who": [undisturbed, undisturbed, 9 * undisturbed]}
    assert bool(too_slow(times, {"who": [undisturbed, slowest]}, times, slower)) is fails
