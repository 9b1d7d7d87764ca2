"""The site's console: who gets in, what it shows, and that it decides as the commands do."""

from __future__ import annotations

import hashlib
import html
import json
import re
import socket
import threading
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
import uvicorn
from safetensors.numpy import save
from starlette.testclient import TestClient
from tests.browser import barriers, launched, opened, picture

from suture_contract.kinds import CANDIDATES
from suture_worker.config import load_site
from suture_worker.console import views
from suture_worker.console.app import CONSOLE, Console
from suture_worker.console.session import LASTS, LINK, Door
from suture_worker.decisions import operator
from suture_worker.egress.drawn import histogram
from suture_worker.egress.outbox import Outbox
from suture_worker.egress.readable import sections
from suture_worker.folder import TaskProgress, Terms
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.inbox import AskedModel, Estimate, Inbox, Request
from suture_worker.rules.ledger import Ledger

HERE = "http://127.0.0.1:8430"
HOSTILE = "<script>alert(1)</script>"


class Browser:
    def __init__(self, site):
        self.site, self.door = site, Door(site.state, HERE)
        self.client = TestClient(
            Console(CONSOLE, partial(load_site, site.path), self.door, 8430).app, base_url=HERE, follow_redirects=False
        )

    def enter(self, secret=None):
        secret = self.door.link.partition("#")[2] if secret is None else secret
        return self.client.post("/enter", data={"secret": secret})

    def page(self, path):
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert HOSTILE not in answer.text
        return answer.text

    def send(self, path, **fields):
        text = self.page(path if path != "/standing/forget" else "/")
        hidden = dict(re.findall(r'name="(csrf|seen)" value="([^"]+)"', text))
        return self.client.post(path, data={**hidden, **fields})


@pytest.fixture
def outside(site):
    return Browser(site)


@pytest.fixture
def browser(outside):
    assert outside.enter().headers["location"] == "/"
    return outside


@pytest.fixture
def asked(site, make):
    task = LeasedTask.parse(make.leased("evaluate", requester="south", dataset="patches"))
    models = tuple(AskedModel(**one.ref.model_dump(), party=one.party, size=3 * 2**20) for one in task.spec.members)
    request = Request(
        task=task.id,
        digest=task.digest,
        asked_at=datetime.now(UTC),
        party="south",
        action="evaluate",
        dataset="patches",
        job="job_1",
        models=models,
        candidates=4,
        options={"note": HOSTILE},
        leaves=("metrics of every candidate", HOSTILE),
        estimate=Estimate(flops_per_sample=2_000_000_000, peak_bytes=2**20, seconds_per_1000=12.3),
    )
    inbox = Inbox(site.state / "inbox")
    inbox.ask(request)
    return inbox, request, task


@pytest.fixture
def held(site, assign, make, write_json):
    known = make.candidates(make.leased("fit"))
    folder = assign("evaluate", files={CANDIDATES: json.dumps(known).encode()})
    folder.results.mkdir()
    write_json(folder.results / "document.json", make.evaluation())
    box = Outbox(site.state / "outbox", min_samples=11)
    box.hold(folder.assignment.task, folder)
    yield box.held, folder.assignment.task, box
    box.close()


def test_the_link_opens_once_and_for_one_browser(outside):
    first = outside.door.link
    assert (outside.site.state / LINK).read_text() == f"{first}\n"
    assert (outside.site.state / LINK).stat().st_mode & 0o077 == 0
    for path in ("/", "/egress", "/egress/export", "/datasets", "/health?check=now"):
        answer = outside.client.get(path)
        assert answer.status_code == 401
        assert "console.link" in answer.text
    assert outside.enter("wrong").status_code == 403
    answer = outside.enter()
    name, *flags = answer.headers["set-cookie"].split("; ")
    assert name.startswith("suture-site-8430=")
    assert {"HttpOnly", "SameSite=strict"} <= set(flags)
    assert outside.client.get("/").status_code == 200
    other = TestClient(outside.client.app, base_url=HERE)
    assert other.post("/enter", data={"secret": first.partition("#")[2]}).status_code == 403
    assert outside.door.link != first
    assert (outside.site.state / LINK).read_text() == f"{outside.door.link}\n"
    outside.door.close()
    assert not (outside.site.state / LINK).exists()


def test_a_session_ends(browser, monkeypatch):
    assert browser.send("/").status_code in (401, 405)
    csrf = re.search(r'name="csrf" value="(\w+)"', browser.page("/"))[1]
    assert browser.client.post("/leave", data={"csrf": csrf}).status_code == 303
    assert browser.client.get("/").status_code == 401
    browser.enter()
    import time

    late = time.monotonic() + LASTS + 1
    monkeypatch.setattr("suture_worker.console.session.time.monotonic", lambda: late)
    assert browser.client.get("/").status_code == 401


def test_other_names_and_other_sites_get_nothing(browser, asked):
    path = f"/inbox/{asked[1].task}"
    assert browser.client.get("/", headers={"Host": "evil.example:8430"}).status_code == 401
    fields = dict(re.findall(r'name="(csrf|seen)" value="([^"]+)"', browser.page(path)))
    fields["decision"] = "approve"
    for headers, changed in (
        ({"Origin": "https://evil.example"}, {}),
        ({"Origin": "null"}, {}),
        ({"Host": "evil.example:8430"}, {}),
        ({}, {"csrf": "0" * 64}),
    ):
        answer = browser.client.post(path, data={**fields, **changed}, headers=headers)
        assert answer.status_code == 403
    long = browser.client.post(path, data={**fields, "reason": "x" * 70_000})
    assert long.status_code == 403
    assert asked[0].decided(asked[1]) is None


@pytest.mark.parametrize("approved", [True, False])
def test_a_request_is_decided_as_the_command_does(browser, asked, approved):
    inbox, request, task = asked
    assert "south asks to evaluate with patches" in browser.page("/")
    text = browser.page(f"/inbox/{request.task}")
    for part in ("4 candidates", "2 GFLOPs", "3.0 MiB", "metrics of every candidate", request.models[0].sha256):
        assert part in text
    fields = {"days": "30"} if approved else {"tell": "no_agreement"}
    word = "approve" if approved else "decline"
    answer = browser.send(f"/inbox/{request.task}", decision=word, reason="seen by two", **fields)
    assert answer.headers["location"] == f"/?done={word}"
    assert ("Approved, and written" if approved else "Declined, and written") in browser.page(f"/?done={word}")
    decision = inbox.answer(task, "patches")
    assert (decision.approved, decision.by, decision.reason) == (approved, operator(), "seen by two")
    assert decision.told == (None if approved else "no_agreement")
    (line,) = (inbox.folder / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line)["by"] == operator()
    assert "Nothing waits for you" in browser.page("/")
    again = browser.client.post(f"/inbox/{request.task}", data={})
    assert again.status_code == 403
    if approved:
        assert "may evaluate with patches until" in browser.page("/")
        fields = {"party": "south", "action": "evaluate", "dataset": "patches"}
        assert browser.send("/standing/forget", **fields).headers["location"] == "/?done=withdraw"
        assert inbox.standing() == []


def test_what_has_changed_since_it_was_shown_is_not_decided(browser, asked):
    inbox, request, _ = asked
    path = f"/inbox/{request.task}"
    hidden = dict(re.findall(r'name="(csrf|seen)" value="([^"]+)"', browser.page(path)))
    inbox.ask(request.model_copy(update={"leaves": ("everything",)}))
    answer = browser.client.post(path, data={**hidden, "decision": "approve"})
    assert answer.status_code == 422
    assert "has changed since it was shown" in answer.text
    assert inbox.decided(inbox.request(request.task)) is None
    for wrong in ({"decision": "maybe"}, {"decision": "decline", "tell": "x"}, {"decision": "approve", "days": "0"}):
        assert browser.send(path, **wrong).status_code == 422
    assert inbox.decided(inbox.request(request.task)) is None


@pytest.mark.parametrize("released", [True, False])
def test_a_result_is_let_out_as_the_command_does(browser, held, make, released):
    box, task, _ = held
    text = browser.page(f"/outbox/{task.id}")
    assert "test split" in text.lower()
    assert "Kept back" in text
    # Each candidate of both splits stands on an axis, too.
    assert text.count('<circle cx="') == 2 * len(make.evaluation()["splits"]["test"]["scores"])
    content = browser.client.get(f"/outbox/{task.id}/part/0")
    assert content.content == box.part(box.manifest(task.id), 0).read_bytes()
    assert content.headers["content-disposition"].startswith("attachment")
    answer = browser.send(f"/outbox/{task.id}", decision="release" if released else "refuse", reason="seen by two")
    assert answer.status_code == 303, answer.text
    verdict = box.verdict(task.id)
    assert (verdict.released, verdict.by, verdict.reason) == (released, operator(), "seen by two")
    assert ("Released" if released else "Refused") in browser.page(f"/outbox/{task.id}")


def test_one_number_that_lies_apart_from_thousands_is_seen():
    drawn = histogram("all numbers", [np.linspace(-1, 1, 100_000), np.array([9.0])])
    assert (drawn.low, drawn.high) == ("-1", "9")
    (*_, last) = drawn.bars
    assert last.left > 95
    assert last.height > 5
    assert last.tooltip.startswith("1 number from ")
    (only,) = histogram("equal ones", [np.full(3, 2.5)]).bars
    assert (only.left, only.height, only.tooltip) == (0, 100, "3 numbers from 2.5 to 2.525")


def test_what_left_is_listed_shown_and_exported_once_it_is_checked(browser, held):
    _, task, box = held
    claim = task.claim
    for number in range(3):
        box.progress(claim, TaskProgress(step="fit", done=number, total=3))
    box.failure(claim, "work.out_of_memory", "0123456789abcdef", retryable=False)
    text = browser.page("/egress")
    assert "4 records, unbroken" in text
    assert "progress" not in text
    assert "progress" in browser.page("/egress?signs=on&task=task_evaluate")
    failed = browser.page("/egress/4")
    assert dict(tables_of(failed)["The message"]) == {
        "number of the lease": str(task.claim.fence),
        "code": "work.out_of_memory",
        "correlation id": "0123456789abcdef",
        "retryable": "no",
    }
    # Exactly what left is behind it.
    left = browser.client.get("/egress/4/bytes")
    assert hashlib.sha256(left.content).hexdigest() in failed
    assert left.headers["content-disposition"].startswith("attachment")
    assert left.text in html.unescape(failed)
    exported = browser.client.get("/egress/export").content
    log = browser.site.state / "outbox" / "egress.jsonl"
    assert exported == log.read_bytes()
    log.write_bytes(exported.replace(b"out_of_memory", b"out_of_memorY"))
    for path in ("/egress", "/egress/export", "/egress/1"):
        answer = browser.client.get(path)
        assert answer.status_code == 422
        assert "egress.broken" in answer.text


def tables_of(page):
    """The rows below the heading of each table of a page, by the table's name."""
    tables = {}
    for name, body in re.findall(r'aria-label="([^"]+)"><table.*?<tbody>(.*?)</tbody>', page, re.DOTALL):
        rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t", row) for row in body.split("<tr>")[1:]]
        tables[html.unescape(name)] = [[html.unescape(cell) for cell in row] for row in rows]
    return tables


def test_a_document_that_left_is_read_as_tables(browser, held):
    _, task, box = held
    box.held.decide(box.held.manifest(task.id), released=True, reason=None, reply=None)
    box.released(task)
    tables = tables_of(browser.page("/egress/1"))
    assert ["metric", "accuracy: the share of test samples that are classified correctly"] in tables["The document"]
    assert sorted(row[:2] for row in tables["Splits"]) == [["test", "40"], ["validation", "40"]]
    assert ["test · c01", "0.8123 (0.7123 to 0.9123)"] in tables["Splits › scores"]
    # Sums over patients are kept as they left, and are no text.
    numbers = save({"0.4.train.mean": np.array([1.5, -2.25], np.float32)})
    box._log.document(task.id, "file", "moments.safetensors", numbers)
    assert tables_of(browser.page("/egress/2"))["2 numbers"] == [["0.4.train.mean", "2", "-2.25", "1.5"]]
    assert browser.client.get("/egress/2/bytes").content == numbers
    box._log.file(task.id, "model.safetensors", "0" * 64, 12)
    assert "not kept" in browser.page("/egress/3")
    assert browser.client.get("/egress/3/bytes").status_code == 422


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("no JSON", []),
        ("[1, 2]", []),
        ('{"a": {}, "b": [], "c": {"d": {}}}', []),
        ('{"a": 1e400, "b": NaN, "c": -0.5}', [[("a", "inf"), ("b", "nan"), ("c", "-0.5")]]),
        ('{"a": [[{"b": 2}], [3]]}', [[("1 · 1", "2", ""), ("2 · 1", "", "3")]]),
        ('{"a": ' * 3000 + "1" + "}" * 3000, []),
        (json.dumps({"a": [{"b": [n, "x"]} for n in range(201)]}), [[(str(n + 1), f"{n}, x") for n in range(200)]]),
    ],
)
def test_whatever_left_has_its_tables(content, rows):
    assert [list(section.rows) for section in sections(content)] == rows


def test_every_page_answers_and_says_what_is_missing(browser, data):
    assert {path for path in views.PAGES if "{" not in path} == {
        *("/", "/egress", "/egress/export", "/ledger", "/ledger/export", "/datasets", "/datasets/sheet", "/health"),
    }
    assert HOSTILE not in browser.page(f"/?done={HOSTILE}")
    assert "Nothing yet" in browser.page("/ledger")
    assert "patches" in browser.page("/datasets")
    assert "train" not in browser.page("/datasets")
    assert "train" in browser.page("/datasets?look=patches")
    sheet = browser.client.get("/datasets/sheet?look=patches")
    assert sheet.headers["content-type"] == "image/png"
    assert sheet.headers["cache-control"] == "no-store"
    assert sheet.content.startswith(b"\x89PNG")
    assert '"/datasets/sheet?look=patches"' in browser.page("/datasets?look=patches&sheet=on")
    assert browser.client.get("/datasets/sheet?look=nothing").status_code == 422
    text = browser.page("/health?check=now")
    assert "What to do" in text  # the hub of this site is away
    unknown = browser.client.get("/inbox/task_none")
    assert (unknown.status_code, "<code>suture site inbox list</code>" in unknown.text) == (422, True)
    assert browser.client.get("/outbox/../../site.toml").status_code in (404, 422)
    browser.site.path.write_text("[hub")
    answer = browser.client.get("/")
    assert answer.status_code == 422
    assert "site.toml" in answer.text


def test_a_request_says_who_signed_and_what_is_left_of_the_budget(browser, asked, make):
    inbox, request, task = asked
    text = browser.page(f"/inbox/{request.task}")
    assert "signed with no key that is known here" in text
    assert "20 of 20 evaluations are left this month" in text
    Ledger(browser.site.state / "ledger.jsonl").charge(task, "patches")
    signed = tuple(model.model_copy(update={"signed_by": "north's"}) for model in request.models)
    inbox.ask(request.model_copy(update={"models": signed}))
    text = browser.page(f"/inbox/{request.task}")
    assert "signed with the key north&#39;s" in text
    assert "19 of 20 evaluations are left this month" in text
    # Of the site's own party, whose models need none, an unsigned one is no news.
    settings = browser.site.path.read_text()
    party = request.models[0].party
    browser.site.path.write_text(settings.replace("[site]", f'[site]\nparty = "{party}"'))
    inbox.ask(request)
    text = browser.page(f"/inbox/{request.task}")
    assert text.count("your own party&#39;s, which needs no signature here") == 1
    assert text.count("signed with no key that is known here") == len(request.models) - 1


def test_the_ledger_is_summed_narrowed_down_and_exported(browser, make):
    ledger = Ledger(browser.site.state / "ledger.jsonl")
    terms = Terms(min_samples=11, epsilon=4.0, delta=1e-5, share=0.5)
    for party in ("south", "east"):
        ledger.charge(LeasedTask.parse(make.leased("evaluate", requester=party, job={"id": f"job_{party}"})), "patches")
    fit = LeasedTask.parse(make.leased("fit"))
    ledger.spend(fit, "patches", terms, "a" * 64)
    page = browser.page("/ledger")
    assert "3 of 3" in page
    sums = re.search(r'aria-label="In all".*?</table>', page, re.DOTALL)[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t", row) for row in sums.split("<tr>")[2:]]
    assert ["south", "patches", "evaluate", "1", ""] in rows
    assert [fit.job.requester, "patches", "fit", "1", "2"] in rows
    assert "1 of 1" in browser.page("/ledger?party=east&dataset=patches")
    exported = browser.client.get("/ledger/export")
    assert exported.content == ledger.path.read_bytes()
    assert exported.headers["content-disposition"] == 'attachment; filename="ledger.jsonl"'


def test_health_says_what_the_site_does_now(browser, assign):
    assert "This site has not run yet" in browser.page("/health") or "does not run" in browser.page("/health")
    folder = assign("evaluate")
    text = browser.page("/health")
    assert "does not run: suture site run starts it" in text
    assert "none: suture site worker starts one" in text
    assert folder.assignment.task.id in text
    assert "does not answer" in text


@pytest.fixture
def served(site):
    """The console on a real socket, with its door."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        door = Door(site.state, f"http://127.0.0.1:{port}")
        app = Console(CONSOLE, partial(load_site, site.path), door, port).app
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{port}", door
        server.should_exit = True
        thread.join(60)


@pytest.mark.server
def test_somebody_decides_in_a_browser(served, asked, held, data):
    address, door = served
    inbox, request, task = asked
    link = door.link
    held[2].progress(held[1].claim, TaskProgress(step="fit", done=1, total=3))
    pages = ("/", f"/inbox/{request.task}", f"/outbox/{held[1].id}", "/egress", "/egress/1", "/ledger")
    pages += ("/datasets?look=patches&sheet=on", "/health")
    with launched() as chromium:
        for scheme, widths in (("light", (390, 768, 1920)), ("dark", (1280,))):
            with opened(chromium, address, color_scheme=scheme) as page:
                page.goto(door.link)
                page.get_by_role("heading", name="Waits for you").wait_for()
                assert page.url == f"{address}/"
                wrong = {}
                for path in pages:
                    page.goto(path)
                    name = path.partition("?")[0].strip("/").replace("/", "-") or "start"
                    for width in widths:
                        page.set_viewport_size({"width": width, "height": 900})
                        sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                        needed, there = page.evaluate(sizes)
                        picture(page, f"console-{name}-{width}-{scheme}")
                        if (problems := barriers(page)) or needed > there:
                            wrong[path, width] = (needed, there, problems)
                assert wrong == {}
        with opened(chromium, address) as page:
            page.goto(link)
            page.get_by_text("This link was used already").wait_for()
            page.goto(f"{address}/ledger")
            page.goto(door.link)
            page.get_by_role("link", name="south asks to evaluate with patches").click()
            page.get_by_label("Why").fill("seen by two")
            page.get_by_role("button", name="Approve").click()
            page.wait_for_url(f"{address}/?done=approve")
            assert page.get_by_text("Nothing is asked").is_visible()
    decision = inbox.answer(task, "patches")
    assert (decision.approved, decision.by, decision.reason) == (True, operator(), "seen by two")
