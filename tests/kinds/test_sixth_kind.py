"""What another kind of task takes: its name in the contract, one module at the hub and one at the site; no other file.

A copy of the project gets a kind that counts samples, in an environment of its own. A real hub gives out such a task,
and the site's real, confined process does it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "contract": "suture_contract",
    "service": "suture_service",
    "worker": "suture_worker",
}
HUB = '''
"""`count`: a party says on how many samples it could evaluate."""

from pydantic import BaseModel

from suture_service.kinds.checks import parse
from suture_service.kinds.kind import Accepted, TaskKind
from suture_service.kinds.schemas import SpecMember
from suture_service.states import JobState, Overdue, Rules


class CountSpec(BaseModel):
    """Count samples."""

    members: list[SpecMember]
    dataset: str | None


class CountDocument(BaseModel):
    """So many."""

    n: int


class Count(TaskKind):
    rules = Rules("count", during=JobState.EVALUATING, overdue=Overdue.LEFT_OUT)
    spec_model = CountSpec

    def asked(self, job):
        return [(entry["party"], entry["dataset"]) for entry in job.evaluate_at]

    def spec(self, work, start):
        return CountSpec(members=list(work.members), dataset=work.task.dataset)

    def check(self, work, result):
        return Accepted(parse(CountDocument, result.document, "document").model_dump())


KIND = Count()
'''
SITE = '''
"""`count`: say how many samples there are, if they are enough."""

from pydantic import BaseModel, ConfigDict

from suture_worker.kinds.kind import TaskKind
from suture_worker.leased_task import TaskSpec


class CountDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n: int


class Count(TaskKind):
    spec_model = TaskSpec
    action = "evaluate"
    documents = {"document": CountDocument}
    splits = ("test",)

    def do(self, work, spec):
        work.finish({"n": work.dataset.n("test")})

    def released(self, gate, task, spec, folder):
        return gate.document(CountDocument, folder)


KIND = Count()
'''
#: Run in the copy's environment: prints what became of the task with each number of samples, as JSON.
PLAY = '''
import json, sys
from pathlib import Path
from typing import get_args

import numpy as np
from starlette.testclient import TestClient
from tests.service.conftest import World, hub_app

from suture_contract.kinds import Kind
from suture_contract.model.signature import create_key
from suture_service import kinds
from suture_service import operate
from suture_service.settings import Settings
from suture_worker.agent.admission import Admission
from suture_worker.compute.work import server, work
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Assignment, TaskFolder
from suture_worker.leased_task import LeasedTask

_, KEY = create_key()
SITE = """
[hub]
url = "http://127.0.0.1:9"
token_file = "token"
[site]
device = "cpu"
[limits]
threads = 1
[datasets.scans]
path = "scans.npz"
format = "npz"
labels = ["0", "1"]
[[policy.allow]]
parties = ["north"]
actions = ["evaluate"]
datasets = ["scans"]
members_from = ["north", "south"]
signed_by = ["tests"]
[keys]
tests = "tests.pub"
"""


def site(place, samples):
    (place / "site.toml").write_text(SITE)
    (place / "tests.pub").write_text(KEY.pem)
    (place / "token").write_text("suture_t_1\\n")
    (place / "token").chmod(0o600)
    labels = np.arange(samples) % 2
    images = np.random.default_rng(0).random((samples, 1, 4, 4), dtype=np.float32)
    np.savez(place / "scans.npz", images=images, labels=labels)
    config = load_site(place / "site.toml")
    prepare_state(config)
    return config


def done(config, actor, leased, place):
    """Do a leased task as the agent would."""
    task = LeasedTask.parse(leased)
    admission = Admission(config)
    decision = admission.decide(task)
    folder = TaskFolder(config.state / "tasks", task.id)
    folder.create(Assignment(task=task, dataset=decision.dataset))
    for index, member in enumerate(task.spec.members):
        answer = actor.get(f"/v1/models/{member.repo}/revisions/{member.revision}/files/model.safetensors")
        folder.member(index).write_bytes(answer.content)
        folder.note_signer(index, KEY.fingerprint)
    assert admission.admit(task, folder).dataset == "scans"
    state = work(config, task.id)
    if state != "done":
        outcome = folder.outcome
        log = folder.log.read_text() if outcome.state == "failed" else ""
        answer = actor.tell(leased, "decline", code=outcome.code)
        return [outcome.state, outcome.code, log], answer.status_code
    outbox = Outbox(place / "outbox", min_samples=11)
    messages = outbox.result(task, folder)
    outbox.close()
    body = json.loads(messages[-1].content)
    return body["document"], actor.post(f"/v1/tasks/{task.id}/result", body).status_code


def play(world, place, samples):
    place.mkdir()
    job = world.ask().json()
    world.fit()
    leased = {task["kind"]: task for task in (world.sites["south"].lease(), world.sites["south"].lease())}
    result, status = done(site(place, samples), world.sites["south"], leased["count"], place)
    tasks = {task["kind"]: task["state"] for task in world.job(job)["tasks"] if task["party"] == "south"}
    described = world.client.app.openapi()["components"]["schemas"]
    state = world.job(job)["state"]
    world.north.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()  # the next one's tasks are given out first
    return {
        "kinds": get_args(Kind), "result": result, "status": status, "tasks": tasks,
        "state": state, "api": described["TaskOut"]["properties"]["kind"]["enum"],
        "specs": [one["$ref"].rpartition("/")[2] for one in described["TaskLease"]["properties"]["spec"]["anyOf"]],
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    settings = Settings(database_url=f"sqlite:///{place / 'hub.db'}", store=str(place / "store"), sweep_seconds=3600)
    operate.migrate(settings)
    app = hub_app(settings)
    with TestClient(app) as client:
        world = World(settings, client, app.state.hub)
        played = {samples: play(world, place / samples, int(samples)) for samples in sys.argv[2:]}
    server.stop()
    print(json.dumps(played))
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the project has another kind of task."""
    place = tmp_path_factory.mktemp("sixth")
    for folder, package in PACKAGES.items():
        shutil.copytree(ROOT / folder / package, place / folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "migrations").symlink_to(ROOT / "migrations")
    table = place / "contract/suture_contract/kinds.py"
    text = table.read_text().replace('"compose"]', '"compose", "count"]')
    table.write_text(text.replace('"evaluate": (),', '"evaluate": (),\n    "count": (),'))
    (place / "service/suture_service/kinds/count.py").write_text(HUB)
    (place / "worker/suture_worker/kinds/count.py").write_text(SITE)
    venv.create(place / "venv", symlinks=True, with_pip=False)
    (packages,) = (place / "venv").glob("lib/python*/site-packages")
    here = sysconfig.get_paths()
    paths = [*(place / folder for folder in PACKAGES), ROOT / "stitching", ROOT / "client", here["purelib"], ROOT]
    (packages / "sixth.pth").write_text("".join(f"{path}\n" for path in paths))
    return place / "venv/bin/python"


@pytest.fixture(scope="module")
def played(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of the task where there are enough samples, and where there are too few."""
    place = tmp_path_factory.mktemp("played")
    script = place / "play.py"
    script.write_text(PLAY)
    done = subprocess.run(
        [python, script, place, "200", "20"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("samples", "result", "state"),
    [(200, "counted", "done"), (20, ["declined", "policy.too_few_samples", ""], "declined")],
)
def test_a_sixth_kind_takes_one_file_on_each_side(played: Any, samples: int, result: object, state: str) -> None:
    found = played[str(samples)]
    assert found["kinds"] == ["match", "contribute", "fit", "evaluate", "compose", "count"]
    assert sorted(found["api"]) == sorted(found["kinds"])
    assert "CountSpec" in found["specs"]
    assert found["status"] == 200
    assert found["result"] == ({"n": found["result"]["n"]} if result == "counted" else result)
    assert result != "counted" or 11 <= found["result"]["n"] < samples
    assert found["tasks"] == {"evaluate": "leased", "count": state}
    assert found["state"] == "evaluating"
