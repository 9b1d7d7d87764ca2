"""Task files in a bucket: what goes there and comes back, who is at a task, and what happens when somebody is not.

test_two_machines has workers on two machines that share nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import time

import httpx
import pytest
from tests.client.nearby import answering
from tests.until import until
from tests.worker.test_celery import Site
from tests.worker.test_two_machines import KEY
from tests.worker.test_two_workers import results

from suture_contract.errors import SutureError
from suture_worker.agent.dispatch import Dispatch
from suture_worker.agent.resumable import Kept
from suture_worker.check import check_site
from suture_worker.compute.work import work
from suture_worker.config import TaskStoreConfig, load_site, prepare_state
from suture_worker.folder import Outcome, TaskProgress
from suture_worker.shared import shared_by
from suture_worker.stop import Stop
from suture_worker.task_store import TaskBucket, bucket, presence


class Beating:
    """A heartbeat of a lease that nobody takes away."""

    class _Never:
        def is_set(self):
            return False

    lost = cancelled = _Never()


@pytest.fixture(scope="module")
def site(make, tmp_path_factory, s3_server):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEY.items():
            patch.setenv(name, value)
        assert httpx.put(f"{s3_server}/one-site", timeout=60).is_success
        path = make.write_site(tmp_path_factory.mktemp("store") / "site")
        path.write_text(f'{path.read_text()}\n[task_store]\nurl = "s3://one-site/here"\nendpoint = "{s3_server}"\n')
        config = load_site(path)
        prepare_state(config)
        make.save_patches(config.datasets["patches"].path)
        yield config


@pytest.fixture(scope="module")
def queue(site):
    with Site(site) as here:
        yield here


@pytest.fixture
def give(queue, site, assign):
    """Give the site a task as its agent does, and take it away after the test."""
    with contextlib.ExitStack() as after:

        def do(kind="fit", **spec):
            folder = shared_by(site).task(assign(kind, **spec).id)
            after.callback(folder.remove)
            return folder

        yield do


def stored(site, prefix=""):
    return set(TaskBucket(site.task_store).list(f"tasks/{prefix}"))


def test_an_agent_has_a_task_done_by_a_worker_that_sees_the_bucket_alone(queue, site, give, quick):
    queue.start_worker()
    folder = give(options=quick)
    dispatch = Dispatch(site, queue.app, Stop())
    assert [worker.pid for worker in shared_by(site).workers()] == [queue.processes["worker"].pid]
    outcome = dispatch.have_done(folder, Beating())
    assert outcome.state == "done", queue.log("worker")
    assert set(results(folder)) == {"candidates.json", "stitches.safetensors", "document.json"}
    assert not folder.checkpoint.exists(), "what only workers need stays there"
    assert folder.progress is not None
    assert not (folder.path / "child.log").exists(), "it never leaves the machine"
    until(lambda: not list((site.state / "copies").iterdir()))  # which a worker removes after the outcome
    folder.remove()
    assert stored(site, f"{folder.id}/") == set()
    queue.end("worker")


def test_work_that_is_asked_for_again_goes_on_from_what_a_worker_on_another_machine_left(site, give, tmp_path):
    folder = give()
    folder.publish()
    with shared_by(site).opened(folder.id) as copy, copy.locked() as mine:
        assert mine
        copy.checkpoint.mkdir()
        (copy.checkpoint / "part").write_bytes(b"half")
    kept, assignment = Kept(tmp_path / "kept"), folder.assignment
    kept.put(folder)
    folder.create(assignment)
    kept.take(folder)
    assert (folder.checkpoint / "part").read_bytes() == b"half"
    assert folder.publish()
    with shared_by(site).opened(folder.id) as copy:
        assert (copy.checkpoint / "part").read_bytes() == b"half"


def test_one_is_at_a_task_at_a_time_and_is_not_any_more_when_it_says_no_more(site, give, monkeypatch):
    monkeypatch.setattr(presence, "LAPSE_SECONDS", 1.0)
    monkeypatch.setattr(presence, "_SEEN_SECONDS", 0.0)
    folder = give()
    assert folder.publish()
    shared = shared_by(site)
    with shared.opened(folder.id) as one, shared.opened(folder.id) as other:
        with one.locked() as mine, other.locked() as others:
            assert (mine, others) == (True, False)
            assert folder.busy
            assert shared.at_work() == 1
        with other.locked() as mine:
            assert mine
            assert shared.at_work() == 1
    assert not folder.busy

    monkeypatch.setattr(presence, "_RENEW_SECONDS", 60.0)  # as one that was killed
    with shared.opened(folder.id) as one, one.locked():
        deadline = time.monotonic() + 30
        while folder.busy:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with shared.opened(folder.id) as other, other.locked() as mine:
            assert mine


def test_only_files_of_the_task_are_passed_on(site, give, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("canary")
    folder = give()
    folder.publish()
    before = {name.partition("/")[2] for name in stored(site, f"{folder.id}/")}
    with shared_by(site).opened(folder.id) as copy, copy.locked():
        for place in (copy.results, copy.checkpoint):
            place.mkdir()
            (place / "link").symlink_to(secret)
            (place / "odd name\n").write_text("x")
            (place / ".part").write_text("x")
            (place / "kept").write_text("x")
        (copy.path / "child.log").write_text("what it printed")
        copy.write_progress(TaskProgress(step="match", done=1, total=2))
        copy.finish(Outcome(state="done"))
    names = {name.partition("/")[2] for name in stored(site, f"{folder.id}/")}
    assert names - before == {"results/kept", "checkpoint/kept", "results/progress.json", "outcome.json"}
    folder.refresh()
    assert folder.outcome is not None
    assert (folder.results / "kept").exists()
    assert not (folder.checkpoint / "kept").exists()


def test_what_an_earlier_lease_writes_late_is_seen_by_nobody(site, give):
    folder = give()
    folder.publish()
    assignment = folder.assignment
    with shared_by(site).opened(folder.id) as late, late.locked():
        late.finish(Outcome(state="failed", code="work.failed"))
        task = assignment.task.model_copy(update={"fence": assignment.task.fence + 1})
        folder.create(assignment.model_copy(update={"task": task}))
        assert folder.publish()
        assert not folder.busy
    with shared_by(site).opened(folder.id) as now:
        assert now.outcome is None
        assert now.assignment.task.fence == task.fence
    folder.refresh()
    assert folder.outcome is None
    assert {name.partition("/")[0] for name in stored(site, f"{folder.id}/")} == {str(task.fence)}


def test_files_of_tasks_that_nobody_knows_go_when_the_agent_starts(site, give):
    known, forgotten = give(), give("evaluate")
    known.publish()
    forgotten.publish()
    shutil.rmtree(forgotten.path)
    assert known.id in {folder.id for folder in shared_by(site).unfinished()}
    assert forgotten.id not in {name.partition("/")[0] for name in stored(site)}
    assert known.id in {name.partition("/")[0] for name in stored(site)}


def test_a_server_that_is_away_or_refuses_is_told_of_and_ends_nothing(queue, site, assign, monkeypatch):
    monkeypatch.setattr(bucket, "_RETRIES", {**bucket._RETRIES, "max_retries": 0})
    with answering(403) as server:
        store = site.task_store.model_copy(update={"endpoint": server.url})
        away = site.model_copy(update={"task_store": store})
        folder = shared_by(away).task(assign().id)
        assert not folder.publish()
        folder.refresh()
        with pytest.raises(SutureError) as caught:
            work(away, folder.id)
        assert caught.value.code == "site.task_store"
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint
        assert caught.value.where == f"s3://one-site/here at {server.url}"
        _, check = [check for check in check_site(away) if check.name == "task store"]
        assert check.status == "fail"
    missing, check = [check for check in check_site(site) if check.name == "task store"]
    assert (missing.status, check.status) == ("warn", "ok")
    assert "[broker] is missing" in missing.detail
    assert str(site.task_store.endpoint) in check.detail


@pytest.mark.parametrize(
    ("status", "content", "cause", "hint"),
    [
        (None, b"", "nothing listens there", "the address"),
        (404, b"<html>", "what answers there is no S3 server", "the address"),
        (200, b"<html>", "what answers there is no S3 server", "the address"),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", "it has no such bucket", "its name in url"),
        (
            403,
            b"<Error><Code>InvalidAccessKeyId</Code></Error>",
            "it does not know the access key",
            "AWS_ACCESS_KEY_ID",
        ),
        (403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>", "the secret is not that", "AWS_SECRET_ACCESS_KEY"),
        (500, b"oops", "it answers with the status 500", "the server's log"),
    ],
)
def test_what_is_wrong_with_a_store_is_said_with_its_address(monkeypatch, status, content, cause, hint):
    monkeypatch.setattr(bucket, "_RETRIES", {**bucket._RETRIES, "max_retries": 0})
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)
    with answering(status or 200, content) as server:
        url = server.url
        if status is not None:
            error = told(url)
    if status is None:
        error = told(url)
    assert cause in error.message
    assert hint in error.hint
    assert ("AWS_" in error.hint) is (status == 403)
    assert error.where == f"s3://one-site/here at {url}"
    assert "oops" not in str(error)


def told(endpoint):
    store = TaskBucket(TaskStoreConfig(url="s3://one-site/here", endpoint=endpoint))
    with pytest.raises(SutureError) as caught:
        store.check()
    assert caught.value.code == "site.task_store"
    return caught.value


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('url = "https://s3.example/bucket"', "task_store.url"),
        ('url = "s3://key:secret@bucket/x"', "task_store.url"),
        ('url = "s3://bucket/x"\nendpoint = "http://s3.example:9000"', "task_store.endpoint"),
        ('url = "s3://bucket/x"\nendpoint = "s3.example"', "task_store.endpoint"),
    ],
)
def test_a_store_is_named_without_a_secret_and_reached_by_tls(make, tmp_path, line, field):
    path = make.write_site(tmp_path / "site")
    path.write_text(f"{path.read_text()}\n[task_store]\n{line}\n")
    with pytest.raises(SutureError) as caught:
        load_site(path)
    assert field in caught.value.message
    assert ("AWS_" in caught.value.message) is ("key:secret" in line), "an address is no matter of credentials"
    assert "secret" not in str(caught.value)
