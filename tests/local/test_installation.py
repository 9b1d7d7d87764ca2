"""One machine's installation: what it writes, what it reuses, and that one folder has one user."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from suture_contract.errors import SutureError
from suture_local.installation import Installation, _site_toml, _with_url
from suture_local.ports import free_port
from suture_local.up import _own_dataset
from suture_service import operate
from suture_worker import load_site


def test_a_written_site_is_one_that_a_site_accepts(tmp_path: Path) -> None:
    dataset = {"path": tmp_path / 'a "b" \\ ü', "format": "npz", "labels": ["0", "ü"], "value_range": [0.0, 1.0]}
    text = _site_toml(
        "http://127.0.0.1:1",
        "north",
        {"digits": dataset},
        {"north": ["fit", "evaluate"], "south": ["evaluate"]},
        {"threads": 1},
        {"south": tmp_path / "south.pub"},
    )
    (tmp_path / "site.toml").write_text(text)
    site = load_site(tmp_path / "site.toml")
    assert site.datasets["digits"].path == dataset["path"]
    assert site.datasets["digits"].labels == ("0", "ü")
    assert site.limits.threads == 1
    assert [(rule.parties, rule.actions) for rule in site.policy.allow] == [
        (("north",), ("fit", "evaluate")),
        (("south",), ("evaluate",)),
    ]


def test_only_the_hubs_address_is_changed_in_a_site_that_is_there() -> None:
    text = '# mine\n[hub]\nurl = "http://127.0.0.1:1"\n\n[broker]\nurl = "redis://127.0.0.1:2"\n'
    assert _with_url(text, "http://127.0.0.1:9") == text.replace("127.0.0.1:1", "127.0.0.1:9")


def test_tokens_are_private_and_parties_are_reused(tmp_path: Path) -> None:
    def set_up() -> bool:
        with Installation(tmp_path / "root") as here:
            operate.migrate(here.settings)
            here.url = "http://127.0.0.1:1"
            created = here.add_party("north")
            here.add_site("north", {}, allow={})
            assert [row.name for row in operate.list_parties(here.settings)] == ["north"]
            return created

    assert set_up()
    secrets = [tmp_path / "root/north/token", tmp_path / "root/north/site/token"]
    before = [path.read_text() for path in secrets]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    assert not set_up()
    assert [path.read_text() for path in secrets] == before


def test_a_lost_token_is_replaced_and_the_party_kept(tmp_path: Path) -> None:
    with Installation(tmp_path) as here:
        operate.migrate(here.settings)
        here.url = "http://127.0.0.1:1"
        here.add_party("north")
        here.add_site("north", {}, allow={})
        here.token_file("north").unlink()
        (here.site_file("north").parent / "token").unlink()
        assert here.add_party("north")
        here.add_site("north", {}, allow={})
        assert here.token("north")
        (party,) = operate.list_parties(here.settings)
        assert len(party.sites) == 2


def test_one_folder_has_one_user(tmp_path: Path) -> None:
    with Installation(tmp_path), pytest.raises(SutureError) as caught, Installation(tmp_path):
        pass
    assert caught.value.code == "root.in_use"
    with Installation(tmp_path):
        pass


def test_a_taken_port_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (port, 0)
    assert free_port(port) == port


def test_a_free_port_is_given_once_and_no_connection_of_anybodys_takes_it() -> None:
    ports = [free_port() for _ in range(50)]
    assert max(ports) < 32768
    assert len(set(ports)) == len(ports) or sys.platform != "linux"


# A dataset of one's own


def test_a_folder_of_images_by_class_describes_itself(tmp_path: Path) -> None:
    for label in ("dog", "cat"):
        (tmp_path / "animals" / label).mkdir(parents=True)
    (tmp_path / "animals" / "readme.txt").touch()
    name, dataset = _own_dataset(tmp_path / "animals")
    assert name == "animals"
    assert dataset == {"path": tmp_path / "animals", "format": "image_folder", "labels": ["cat", "dog"]}


def test_arrays_and_tables_describe_themselves(tmp_path: Path) -> None:
    np.savez(tmp_path / "scans.npz", images=np.zeros((3, 4, 4)), labels=np.array(["b", "a", "b"]))
    (tmp_path / "risk.csv").write_text("age,label\n1,high\n2,low\n3,high\n")
    assert _own_dataset(tmp_path / "scans.npz")[1]["labels"] == ["a", "b"]
    assert _own_dataset(tmp_path / "risk.csv")[1] == {
        "path": tmp_path / "risk.csv",
        "format": "csv",
        "labels": ["high", "low"],
    }


@pytest.mark.parametrize("name", ["nothing", "image.png", "empty.npz", "bad name.npz", "nolabel.csv"])
def test_what_describes_no_dataset_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.png").touch()
    (tmp_path / "empty.npz").touch()
    (tmp_path / "nolabel.csv").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "bad name.npz", labels=np.zeros(2))
    with pytest.raises(SutureError) as caught:
        _own_dataset(tmp_path / name)
    assert caught.value.code == "up.data"
    assert name in (caught.value.where or "")
