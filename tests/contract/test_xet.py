"""The official client uploads large files through Xet, without being asked to, and the hub takes them in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select

from suture_service.database import Database
from suture_service.hf.xet import service
from suture_service.tables import XetEpoch, XetXorb

pytestmark = pytest.mark.timeout(600)  # the first run installs the clients
STEPS = Path(__file__).parent / "xet_steps.py"


def sent(live):
    """How many epochs there are, and how many bytes were sent to each."""
    database = Database(live.settings.database_url)
    try:
        with database.reading() as session:
            epochs = session.scalar(select(func.count()).select_from(XetEpoch))
            sizes = session.scalars(select(func.sum(XetXorb.size)).group_by(XetXorb.epoch_id)).all()
            return epochs, sorted(int(size) for size in sizes)
    finally:
        database.close()


def check(answers):
    assert answers.pop("xet") is True
    assert answers.pop("foreign") == "RepositoryNotFoundError"
    whole = ("by path", "changed, from memory", "again", "other repository", "other party", "folder")
    assert answers == dict.fromkeys(whole, [True] * 3)


@pytest.mark.parametrize(
    ("live", "version"), [("sqlite+folder", "2.4.0"), ("postgresql+s3", "1.33.0")], indirect=["live"]
)
def test_large_files_are_uploaded_through_xet(live, python_with, tmp_path, version):
    folder = tmp_path / "work"
    folder.mkdir()
    answers = live.run(python_with(version), STEPS, folder)
    assert answers.pop("version") == version
    check(answers)
    epochs, sizes = sent(live)
    assert epochs == 3, "one for each repository and token"
    # Nothing came another way, and what the client knew to be there did not come twice.
    assert all(9_000_000 < size < 14_000_000 for size in sizes), sizes


ONE_UPLOAD = """
import json, random, sys
from huggingface_hub import HfApi
api = HfApi(token=json.load(open(sys.argv[1] + "/tokens.json"))["north"])
api.create_repo("north/large")
api.upload_file(path_or_fileobj=random.Random(0).randbytes(70_000_000), path_in_repo="x.bin", repo_id="north/large")
print(json.dumps([file.size for file in api.get_paths_info("north/large", "x.bin")]))
"""


@pytest.mark.parametrize("live", ["sqlite+folder"], indirect=True)
def test_the_day_may_change_while_a_client_sends(live, python_with, tmp_path, monkeypatch):
    """A token that is about to end is asked for again within an upload; here each answer names another address."""
    permit, receive, given, addresses = service.permit, service.receive_xorb, [], []

    def next_day(hub, *whose):
        moments = iter([hub.now() + timedelta(days=len(given) % 2), hub.now()])
        clock = SimpleNamespace(key=hub.key, now=lambda: next(moments))
        given.append(replace(permit(clock, *whose), until=hub.now() + service.TOKEN_LASTS))
        return given[-1]

    async def slowly(hub, epoch, *what):
        addresses.append(epoch.id)
        await asyncio.sleep(4)
        return await receive(hub, epoch, *what)

    monkeypatch.setattr(service, "permit", next_day)
    monkeypatch.setattr(service, "receive_xorb", slowly)
    monkeypatch.setattr(service, "TOKEN_LASTS", timedelta(seconds=32))
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "one.py").write_text(ONE_UPLOAD)
    assert live.run(python_with("2.4.0"), folder / "one.py", folder) == [70_000_000]
    assert len({permit.epoch_id for permit in given}) == 2, "the address changed"
    assert len(set(addresses)) == 1, "the client went on with the one it had begun with"
