"""What the hub's pages take: the first ones with many rows, and job pages that stay open (`hub_api.py --pages`)."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import psutil
from benchmarks.hub_rows import TASKS, Size, add
from rich.table import Table

from suture_service import tables
from suture_service.database import Database

if TYPE_CHECKING:
    from benchmarks.hub_api import Cost

#: Pages of jobs that are open at once, and how many seconds they are watched.
OPEN, SECONDS = 200, 30.0
_HTML = {"Accept": "text/html"}
#: One for all clients, which make none of their own.
_TLS = ssl.create_default_context()
_LOADED = re.compile(r"""(?:src|href)="(/-/static/[^"]+)""")


def pages(size: Size) -> dict[str, str]:
    """Return the pages that people see first, by name; those of the party with token-1."""
    job = _newest_job(size, 1)
    return {
        "sign in": "/-/sign-in",
        "start": "/",
        "search": "/?search=rare&modality=MR",
        "model": f"/party-{1 % size.parties + 1}/model-1",
        "party": "/party-2",
        "parties": "/-/parties",
        "jobs": "/-/jobs",
        "job": f"/-/jobs/{job}",
        "new job": "/-/jobs/new",
        "compare": "/-/compare?of=party-2/model-1",
    }


def measure(address: str, size: Size, count: int, cost: Cost) -> dict[str, dict[str, float]]:
    """Ask for each page so many times; return times in ms, and its weight in kB with all that it loads."""
    results = {}
    with httpx.Client(base_url=address, headers={**_HTML, "Authorization": "Bearer token-1"}, timeout=60) as client:
        for name, path in pages(size).items():
            answer = client.get(path)
            if answer.status_code != 200:
                raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:300]}")
            loaded = set(_LOADED.findall(answer.text))
            weight = len(answer.content) + sum(len(client.get(part).content) for part in loaded)
            before, times = cost.seconds(), []
            for _ in range(count):
                started = time.perf_counter()
                client.get(path)
                times.append(1000 * (time.perf_counter() - started))
            times.sort()
            results[name] = {
                "p50_ms": times[len(times) // 2],
                "p95_ms": times[int(0.95 * (len(times) - 1))],
                "p99_ms": times[int(0.99 * (len(times) - 1))],
                "processor_ms": 1000 * (cost.seconds() - before) / count,
                "kb": weight / 1000,
            }
    return results


def watch(url: str, address: str, size: Size, pid: int, cost: Cost) -> dict[str, dict[str, float]]:
    """Keep `OPEN` pages of jobs open, first quiet ones, then such as something happens in; return what that takes."""
    quiet = asyncio.run(_watch(address, size, pid, cost))
    database, now = Database(url), datetime.now(UTC)
    with database.writing() as session:
        event = {"seq": 2, "at": now, "kind": "progress", "data": {"step": "moments", "done": 1, "total": 2}}
        add(session, tables.Event, [{**event, "job_id": job} for _, job in _watched(size)])
    database.close()
    return {"quiet": quiet, "at work": asyncio.run(_watch(address, size, pid, cost))}


def _newest_job(size: Size, party: int) -> str:
    """Return the newest job of a party, which is at work."""
    newest = next(n for n in range(size.tasks // TASKS - 1, -1, -1) if n % size.parties + 1 == party)
    return f"job_{newest:016x}"


def _watched(size: Size) -> list[tuple[str, str]]:
    """Return tokens and jobs: a page of each party's newest job, or several where there are fewer parties."""
    return [(f"token-{party}", _newest_job(size, party)) for party in range(1, min(OPEN, size.parties) + 1)]


async def _watch(address: str, size: Size, pid: int, cost: Cost) -> dict[str, float]:
    watched, process = _watched(size), psutil.Process(pid)
    ends = time.monotonic() + SECONDS
    before = cost.seconds()
    peak = asyncio.create_task(_connections(process, ends))
    asked = await asyncio.gather(*(_page(address, *watched[n % len(watched)], ends) for n in range(OPEN)))
    return {
        "requests_per_second": sum(asked) / SECONDS,
        "processor_percent": 100 * (cost.seconds() - before) / SECONDS,
        "connections": await peak,
    }


async def _page(address: str, token: str, job: str, ends: float) -> int:
    """Do as a browser with the page of a job: ask for what changes when the last answer said."""
    headers, asked = {**_HTML, "Authorization": f"Bearer {token}", "HX-Request": "true"}, 0
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60, verify=_TLS) as client:
        while time.monotonic() < ends:
            answer = await client.get(f"/-/jobs/{job}/live")
            answer.raise_for_status()
            asked += 1
            pause = re.search(r"delay:(\d+)s", answer.text)
            await asyncio.sleep(min(float(pause[1]) if pause else SECONDS, max(ends - time.monotonic(), 0)))
    return asked


async def _connections(process: psutil.Process, ends: float) -> float:
    most = 0
    while time.monotonic() < ends:
        most = max(most, sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp")))
        await asyncio.sleep(1)
    return float(most)


def show(kind: str, results: dict[str, Any]) -> Table:
    """Return a table of both."""
    table = Table(title=f"{kind}: pages with many rows", width=100)
    for column in ("page", "p50 ms", "p95 ms", "p99 ms", "cpu ms", "kB"):
        table.add_column(column, justify="left" if column == "page" else "right")
    for name, row in results["pages"].items():
        table.add_row(name, *(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "processor_ms", "kb")))
    for name, row in results["open"].items():
        about = f"{row['requests_per_second']:.0f} requests a second, {row['processor_percent']:.0f} % of a core"
        table.caption = f"{table.caption or ''}{OPEN} open pages of jobs, {name}: {about}, "
        table.caption += f"at most {row['connections']:.0f} connections\n"
    return table
