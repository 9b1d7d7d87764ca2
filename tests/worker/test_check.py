"""Preflight: every part of a site is looked at, and each problem comes with what to do."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from suture_stitching.data import DatasetSpec
from suture_worker import broker
from suture_worker.check import check_site
from suture_worker.config import load_site


@pytest.fixture
def found(site):
    def check(config=site):
        return {item.name: item for item in check_site(config)}

    return check


@pytest.fixture
def known(live_hub, make, tmp_path):
    """A site the hub knows, and its party."""
    party = live_hub.add_party()
    path = make.write_site(tmp_path / "known", url=live_hub.url, token=live_hub.site_token(party))
    config = load_site(path)
    for dataset in config.datasets.values():
        make.save_patches(dataset.path)
    return config, party


def test_a_site_in_order(known, found):
    config, party = known
    checks = found(config)
    assert [item.status for item in checks.values()] == ["ok"] * len(checks), [str(item) for item in checks.values()]
    assert f"of party {party}" in checks["token"].detail
    assert "clocks agree" in checks["hub"].detail
    assert "train 60, validation 24, test 36" in checks["dataset patches"].detail
    assert "input 1 x 6 x 6" in checks["dataset patches"].detail
    assert "cpu" in checks["device"].detail
    assert "north may fit and evaluate with patches" in checks["policy"].detail
    assert all(item.ok for item in checks.values())


def test_small_counts_are_not_shown(known, found, make):
    config, _ = known
    make.save_patches(config.datasets["patches"].path, n=40)
    check = found(config)["dataset patches"]
    assert (check.status, check.ok) == ("warn", True)
    assert "validation fewer than 11" in check.detail
    assert "validation 8" not in str(check)


def test_every_problem_is_found_in_one_go(site, found):
    site.hub.token_file.chmod(0o644)
    checks = found()
    assert checks["hub"].status == "fail"
    assert "does not answer" in checks["hub"].detail
    assert "firewall" in checks["hub"].hint
    assert checks["dataset patches"].status == "fail"
    assert "mounted" in checks["dataset patches"].hint
    assert checks["token"].status == "fail"
    assert checks["redis"].status == "ok"
    assert "suture_t_1" not in str(list(checks.values()))


def test_a_token_that_others_can_read(known, found):
    config, _ = known
    config.hub.token_file.chmod(0o644)
    assert "chmod 600" in found(config)["token"].hint


def test_a_running_site_is_not_disturbed(site, found):
    socket = broker.socket_path(site)
    socket.touch()
    assert found()["redis"].ok
    assert socket.exists()


@pytest.mark.parametrize(("token", "detail"), [("suture_site_wrong", "token"), (None, "not the token of a site")])
def test_a_wrong_token(known, found, live_hub, token, detail):
    config, party = known
    token = token or live_hub.client(party).connection._client.headers["Authorization"].removeprefix("Bearer ")
    config.hub.token_file.write_text(token)
    check = found(config)["token"]
    assert check.status == "fail"
    assert detail in str(check)
    assert token not in str(check)


def test_files_that_are_left_out_are_counted(site, found, tmp_path):
    for i in range(60):
        path = tmp_path / "scans" / ("dark", "bright")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6), i).save(path)
    for name in ("dark/10.png", "bright/11.png"):
        (tmp_path / "scans" / name).write_bytes(b"not an image")
    spec = DatasetSpec(path=tmp_path / "scans", format="image_folder", labels=("dark", "bright"))
    config = site.model_copy(update={"datasets": {"scans": spec}})
    check = found(config)["dataset scans"]
    assert check.status == "fail"
    assert "bright/11.png" in check.detail
    config = site.model_copy(update={"datasets": {"scans": spec.model_copy(update={"on_unreadable": "skip"})}})
    check = found(config)["dataset scans"]
    assert "2 files that cannot be read are left out, such as bright/11.png" in check.detail


def test_a_link_out_of_the_dataset(known, found, tmp_path):
    config, _ = known
    folder = tmp_path / "scans"
    for label in ("dark", "bright"):
        (folder / label).mkdir(parents=True)
        for index in range(40):
            pixels = np.random.default_rng(index).integers(0, 255, (6, 6), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    spec = DatasetSpec(path=folder, format="image_folder", labels=("dark", "bright"))
    config = config.model_copy(update={"datasets": {"scans": spec}})
    assert found(config)["dataset scans"].status == "ok"
    (folder / "dark" / "0.png").rename(tmp_path / "0.png")
    (folder / "dark" / "0.png").symlink_to(tmp_path / "0.png")
    check = {item.status: item for item in check_site(config) if item.name == "dataset scans"}["fail"]
    assert "0.png is a link" in check.detail


def test_an_altered_log_of_what_left(site, found):
    (site.state / "outbox" / "egress.jsonl").write_text('{"seq":1}\n')
    assert "line 1" in found()["state"].detail


def test_no_rules(site, found):
    config = site.model_copy(update={"policy": site.policy.model_copy(update={"allow": ()})})
    assert found(config)["policy"].status == "warn"


def test_a_device_that_is_not_there(site, found):
    config = site.model_copy(update={"site": site.site.model_copy(update={"device": "cuda:9"})})
    assert "there is no cuda:9" in found(config)["device"].detail


def test_a_line_for_people(site, found):
    line = str(found()["hub"])
    assert line.startswith("fail  hub: ")
    assert "\n      check [hub] url" in line
