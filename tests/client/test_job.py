"""Following a job at a hub that is slow, restarts, or says how it ended."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from suture.errors import HubError, Unavailable
from suture.hub import Hub
from suture.job import Job, JobFailed
from suture_contract.errors import Cancelled, SutureError

TASK = {"id": "task_1", "kind": "fit", "party": "north", "state": "leased", "attempt": 1}


def job_as(state: str, **changes: Any) -> dict[str, Any]:
    member = {"revision": "0" * 40, "sha256": "0" * 64}
    return {
        "id": "job_1",
        "requester": "north",
        "state": state,
        "models": [{"repo": "north/a", **member}, {"repo": "south/b", **member}],
        "dataset": "digits",
        "evaluate_at": ["south"],
        "created_at": "2026-01-01T00:00:00Z",
        "tasks": [TASK],
        "added_by_a_newer_hub": True,
        **changes,
    }


class Told(ThreadingHTTPServer):
    """Answers questions for the job from a list, an integer being a status; the last answer is repeated."""

    daemon_threads = True
    answers: list[dict[str, Any] | int]


class Answer(BaseHTTPRequestHandler):
    server: Told

    def do_GET(self) -> None:
        answer: Any = {"items": [], "next": 0}
        if not self.path.partition("?")[0].endswith("/events"):
            answer = self.server.answers[0]
            del self.server.answers[: len(self.server.answers) > 1]
        body = json.dumps({} if isinstance(answer, int) else answer).encode()
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Job]]:
    monkeypatch.setattr("suture.http.pause", lambda *_: 0.0)
    monkeypatch.setattr("suture.job.pause", lambda *_: 0.01)
    with Told(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def with_answers(*answers: dict[str, Any] | int) -> Job:
            server.answers = [job_as("queued"), *answers]
            return Hub(f"http://127.0.0.1:{server.server_port}", "token").job("job_1")

        yield with_answers
        server.shutdown()
        thread.join()


def test_waiting_outlives_a_restart_of_the_hub(job: Callable[..., Job]) -> None:
    status = job(*[503] * 12, job_as("fitting"), *[502] * 7, job_as("complete")).wait(60, progress=False)
    assert status.state == "complete"


def test_waiting_for_a_hub_that_stays_away_ends(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suture.job._OUTAGE", 0.2)
    with pytest.raises(Unavailable):
        job(503).wait(60, progress=False)


def test_a_missing_party_is_no_failure(job: Callable[..., Job]) -> None:
    status = job(job_as("partial", missing=[{"party": "south", "reason": "declined"}])).wait(60, progress=False)
    assert [missing.party for missing in status.missing] == ["south"]


def test_a_failure_names_task_party_reason_and_where_to_look(job: Callable[..., Job]) -> None:
    failed = job_as(
        "failed",
        tasks=[{**TASK, "state": "failed", "reason": "dataset.unknown"}],
        error={"code": "dataset.unknown", "correlation_id": "f00"},
    )
    with pytest.raises(JobFailed, match=r"fit at north: dataset\.unknown: the site has no dataset of this") as caught:
        job(failed).wait(60, progress=False)
    assert caught.value.code == "dataset.unknown"
    hint = caught.value.hint or ""
    assert "suture site failure f00" in hint
    # Another try would ask for the same dataset.
    assert "suture stitch north/a south/b --dataset NAME" in hint
    assert "retry" not in hint


def test_a_cancelled_job_and_a_timeout_are_told_apart(job: Callable[..., Job]) -> None:
    with pytest.raises(Cancelled):
        job(job_as("cancelled")).wait(60, progress=False)
    with pytest.raises(SutureError) as caught:
        job(job_as("fitting")).wait(0.05, progress=False)
    assert caught.value.code == "job.timeout"


def test_every_task_has_a_bar(job: Callable[..., Job]) -> None:
    output = io.StringIO()
    busy = {**TASK, "progress": {"step": "moments", "done": 3, "total": 4, "seconds_left": 7.2}}
    other = {**TASK, "id": "task_2", "kind": "evaluate", "party": "south", "state": "open"}
    ended = job_as("complete", tasks=[{**TASK, "state": "done"}, {**other, "state": "declined"}])
    console = Console(file=output, width=120, force_terminal=True)
    job(job_as("fitting", tasks=[busy]), job_as("evaluating", tasks=[busy, other]), ended).wait(60, console=console)
    for part in ("fit at north", "moments, 7 s left", "evaluate at south", "declined"):
        assert part in output.getvalue()


def test_an_answer_that_is_not_as_agreed_is_named(job: Callable[..., Job]) -> None:
    with pytest.raises(HubError, match="state") as caught:
        job(job_as("dancing")).wait(60, progress=False)
    assert caught.value.code == "hub.answer"


def shown(status: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    from suture.cli.jobs import _show
    from suture.responses import JobStatus
    from suture_contract.console.terminal import Format

    _show(JobStatus.of(status, "job"), Format.text)
    return capsys.readouterr().out


def test_a_failed_job_shows_code_text_site_id_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "work.out_of_memory", "correlation_id": "f00", "party": "north", "site": "main", "task": "fit"}
    text = shown(job_as("failed", tasks=[{**TASK, "state": "failed", "reason": error["code"]}], error=error), capsys)
    for part in (
        "work.out_of_memory: the task needed more memory than it gets",
        "fit at north, site main",
        "f00",
        "raise limits.memory_gib in site.toml (at the site: suture site failure f00); then suture jobs retry job_1",
    ):
        assert part in text


def test_open_tasks_say_why_and_who_is_still_to_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    waits = {"why": "site_offline", "since": "2026-01-02T03:04:05+00:00"}
    asked = {**job_as("queued", tasks=[{**TASK, "state": "open", "waits": waits}]), "evaluate_at": ["south", "east"]}
    text = shown(asked, capsys)
    assert "site offline since 2026-01-02 03:04 UTC" in text
    assert "to ask   south, east: to evaluate, once the fit is there" in text


def test_who_reads_the_result_and_what_a_partial_job_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    status = {
        **job_as("partial", missing=[{"party": "east", "reason": "no_answer"}]),
        "publish_as": "north/both",
        "report_for": ["north", "south"],
        "result": {"repo": "north/both", "revision": "a" * 40},
    }
    text = shown(status, capsys)
    assert "north/both is readable by north alone until it is shared (suture share); its report also by south" in text
    assert "suture report job_1" in text
    assert "suture jobs retry job_1  asks those again" in text
