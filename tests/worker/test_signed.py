"""A site that runs signed models only, against a hub that somebody else has got at."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from uuid import uuid4

import pytest
from tests.forged import forge, show
from tests.until import until

from suture.hub import Hub as Client
from suture_contract.errors import SutureError
from suture_contract.model.metadata import ModelMetadata
from suture_contract.model.signature import create_key, sign
from suture_service import operate
from suture_worker.agent.admission import Admission
from suture_worker.agent.agent import Agent
from suture_worker.agent.hub import HubClient
from suture_worker.agent.signed import SignedBy, Signers
from suture_worker.compute.celery_app import make_app
from suture_worker.config import load_site, prepare_state
from suture_worker.egress.outbox import Outbox
from suture_worker.folder import Assignment, TaskFolder
from suture_worker.leased_task import LeasedTask
from suture_worker.rules.policy import Allow, decide
from suture_worker.stop import Stop

pytestmark = pytest.mark.usefixtures("looked_at_once")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("suture_worker.agent.agent.LEASE_WAIT", 0.5)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the key pairs `own` and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        private, public = create_key()
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_text(public.pem)
    return folder


class Party:
    """A party with a site, two signed models and a job that stitches them."""

    def __init__(self, live_hub, make, portable, keys, folder):
        self.live, self.make, self.portable, self.keys, self.folder = live_hub, make, portable, keys, folder
        self.name = live_hub.add_party()
        self.client = live_hub.client(self.name)
        admin = operate.create_token(live_hub.settings, self.name, ["admin"])[1]
        self.admin = Client(live_hub.url, admin)
        self.key = self.admin.keys.register(self.name, "own", (keys / "own.pub").read_text())
        self.models = [self.publish(index) for index in (0, 1)]

    def publish(self, index, key="own", repo=None, card="# Net\n"):
        repo = repo or f"{self.name}/m{uuid4().hex[:8]}"
        metadata = ModelMetadata.model_validate(self.make.METADATA)
        options = {"key": self.keys / f"{key}.pem"} if key else {}
        self.client.publish_file(
            self.portable[index], repo, metadata=metadata, card=card, visibility="all", show=lambda _: None, **options
        )
        return repo

    def revisions(self, repo):
        """The ids of its revisions, newest first."""
        found = self.client.connection.pages(f"/v1/models/{repo}/revisions")
        return [revision["id"] for revision in found]

    def files(self, repo):
        target = self.folder / uuid4().hex
        self.client.pull(repo, target)
        return {path.name: path.read_bytes() for path in target.iterdir()}

    def site(self, signed_by=("own",), keys=("own",), approval="automatic"):
        rules = [([self.name], ["fit", "evaluate"], ["patches"])]
        path = self.make.write_site(
            self.folder / "site", url=self.live.url, token=self.live.site_token(self.name), rules=rules, trusting=None
        )
        more = "epsilon = 8\ndelta = 1e-5\n"
        if signed_by:
            parties = [self.name, "north", "south"]
            more = f"members_from = {json.dumps(parties)}\nsigned_by = {json.dumps(list(signed_by))}\n"
        more += f'approval = "{approval}"\n'
        more += "\n[keys]\n" + "".join(f'{name} = "{self.keys / f"{name}.pub"}"\n' for name in keys)
        path.write_text(path.read_text() + more)
        config = load_site(path)
        prepare_state(config)
        return config

    def stitch(self):
        return self.client.stitch(self.models, "patches")


@pytest.fixture
def party(live_hub, make, portable, keys, tmp_path):
    return Party(live_hub, make, portable, keys, tmp_path)


@contextmanager
def agent(config):
    """A running agent; gives a function that waits for the task's folder with all that the worker needs."""
    stop = Stop()
    hub = HubClient(config.hub.url, config.hub.token_file.read_text().strip(), sleep=stop.wait)
    outbox = Outbox(config.state / "outbox", min_samples=config.policy.min_samples)
    thread = threading.Thread(target=Agent(config, hub, outbox, make_app(config), stop).run)
    thread.start()
    tasks = config.state / "tasks"

    def taken():
        def look():
            found = [TaskFolder(tasks, path.name) for path in tasks.iterdir()]
            return next((folder for folder in found if folder.member(1).exists()), None)

        return until(look)

    try:
        yield taken
    finally:
        stop.set()
        thread.join(120)
        assert not thread.is_alive()
        outbox.close()
        hub.close()


def ending(job, config):
    with agent(config):
        status = until(lambda: job.refresh().state in ("failed", "complete", "cancelled") and job.status)
    assert not any((config.state / "tasks").iterdir())
    return status.error.code


def test_signed_models_are_taken(party):
    party.stitch()
    with agent(party.site()) as taken:
        folder = taken()
        assert [folder.signer(index) for index in (0, 1)] == [party.key.fingerprint] * 2


def flip(content, at):
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


CHANGES = {
    "a weight": lambda files: {**files, "model.safetensors": flip(files["model.safetensors"], -1)},
    "a label": lambda files: {**files, "suture.json": files["suture.json"].replace(b'"dark"', b'"dork"')},
    "the card": lambda files: {**files, "README.md": flip(files["README.md"], 3)},
    "dropped": lambda files: {name: content for name, content in files.items() if name != "README.md"},
    "added": lambda files: {**files, "more.txt": b"more"},
    "renamed": lambda files: {
        **{name: content for name, content in files.items() if name != "README.md"},
        "READ.md": files["README.md"],
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_are_not_as_signed_are_not_run(party, change):
    forge(party.live.settings, party.models[1], CHANGES[change](party.files(party.models[1])))
    assert ending(party.stitch(), party.site()) == "signature.mismatch"


def test_the_signature_of_another_model_does_not_do(party):
    files, other = (party.files(repo) for repo in party.models)
    forge(party.live.settings, party.models[0], {**files, "model.sig": other["model.sig"]})
    assert ending(party.stitch(), party.site()) == "signature.mismatch"


def test_a_hub_that_describes_a_signed_model_in_other_words_is_not_followed(party):
    files = party.files(party.models[1])
    said = json.loads(files["suture.json"])
    forge(party.live.settings, party.models[1], files | {"model.sig": resigned(files, party)}, swapped(said))
    assert ending(party.stitch(), party.site()) == "signature.metadata"


def test_a_hub_that_hands_out_a_hostile_file_is_told_so_and_the_agent_lives_on(party):
    """No hub takes such a file from anybody; one that was broken into has it all the same."""
    header = b'{"__metadata__":' + b"[" * 2**20
    files = {**party.files(party.models[1]), "model.safetensors": len(header).to_bytes(8, "little") + header}
    forge(party.live.settings, party.models[1], files | {"model.sig": resigned(files, party)})
    assert ending(party.stitch(), party.site()) == "model.graph"


def resigned(files, party):
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "model.sig"}
    return sign(digests, party.models[1], party.keys / "own.pem")


def swapped(said):
    return {**said, "labels": list(reversed(said["labels"]))}


def test_a_signed_model_is_not_taken_for_another(party):
    forge(party.live.settings, party.models[1], party.files(party.models[0]))
    assert ending(party.stitch(), party.site()) == "signature.name"


def test_an_older_revision_than_was_seen_runs_when_a_person_lets_it(party):
    newest = party.publish(0, repo=party.models[0], card="# Better\n")
    first, second = (party.revisions(newest)[index] for index in (1, 0))
    config = party.site()
    hub = HubClient(config.hub.url, config.hub.token_file.read_text().strip(), sleep=time.sleep)

    def fetched(job, admission):
        """Lease the job's task and bring its members here, as the agent does."""
        task = LeasedTask.parse(hub.lease(5))
        assert task.job.id == job.id
        folder = TaskFolder(config.state / "tasks", task.id)
        folder.create(Assignment(task=task, dataset="patches"))
        for index, member in enumerate(task.spec.members):
            found = admission.signers.find(hub, member, job.id)
            folder.note_signer(index, found.key, found.older)
            hub.fetch_member(member, folder.member(index), lambda _count: None)
        return task, folder

    admission = Admission(config)
    job = party.stitch()
    task, folder = fetched(job, admission)
    assert task.spec.members[0].revision == second
    assert isinstance(admission.admit(task, folder), Allow)
    job.cancel()
    folder.remove()
    # The hub goes back.
    show(party.live.settings, party.models[0], first)
    admission = Admission(party.site(approval="ask"))
    job = party.stitch()
    task, folder = fetched(job, admission)
    assert admission.admit(task, folder) is None
    (request,) = admission.inbox.requests()
    (words,) = request.older
    assert words.startswith(f"{party.models[0]}: it was signed on ")
    assert f"seen here: {second}" in words
    admission.inbox.decide(request, approved=True)
    assert isinstance(admission.admit(task, folder), Allow)
    # The job goes on with it, and no other does.
    member = task.spec.members[0]
    assert admission.signers.find(hub, member, job.id) == SignedBy(party.key.fingerprint)
    assert admission.signers.find(hub, member, "job_other").older in words
    job.cancel()
    hub.close()
    folder.remove()
    # Where nobody is asked, it is not run.
    assert ending(party.stitch(), party.site()) == "policy.older_revision"


def test_no_signature_and_one_by_another_key_are_declined(party):
    party.models[1] = party.publish(1, key=None)
    assert ending(party.stitch(), party.site()) == "policy.denied"
    files = party.files(party.models[0])
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "model.sig"}
    forge(
        party.live.settings,
        party.models[1],
        {**files, "model.sig": sign(digests, party.models[1], party.keys / "other.pem")},
    )
    assert ending(party.stitch(), party.site()) == "policy.denied"


def test_without_signers_in_the_rule_unsigned_models_are_run(party):
    party.models[1] = party.publish(1, key=None)
    party.stitch()
    with agent(party.site(signed_by=())) as taken:
        assert taken().signer(1) is None


@pytest.mark.parametrize("signed_by", [("own",), ()])
def test_a_revision_that_was_withdrawn_meanwhile_is_not_run(party, signed_by):
    job = party.stitch()
    revision = party.client.revision(party.models[0]).id
    party.client.withdraw(party.models[0], revision, "trained on wrong labels")
    assert ending(job, party.site(signed_by=signed_by)) == "model.flagged"


def test_what_a_revoked_key_signed_is_not_run(party):
    job = party.stitch()
    party.admin.keys.revoke(party.name, party.key.fingerprint, "laptop lost")
    assert ending(job, party.site()) == "model.flagged"


def test_a_rule_speaks_of_keys_that_there_are(party, keys):
    with pytest.raises(SutureError, match=r"policy.allow\[0\].signed_by: there is no key nobody"):
        party.site(signed_by=("nobody",))
    config = party.site(keys=("own", "other"))
    (keys / "broken.pub").write_text("no key")
    broken = config.model_copy(update={"keys": {"own": keys / "broken.pub"}})
    with pytest.raises(SutureError, match="no public key"):
        Signers(broken)


def test_the_limit_counts_once_the_files_have_come(party, make):
    config = party.site(keys=("own", "other"))
    task = LeasedTask.parse(make.leased(requester=party.name))
    assert isinstance(decide(task, config), Allow)
    assert isinstance(decide(task, config, signers=("own", "own")), Allow)
    for signers in (("own", None), ("other", "own")):
        decision = decide(task, config, signers=signers)
        assert "is not signed by own" in decision.reason
