"""Preflight: every part of a site is looked at, and each problem comes with what to do."""

from __future__ import annotations

import os
import ssl
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
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
    # The one who runs the tests has written the data, and may have no Redis but the bundled one.
    status = {name: item.status for name, item in checks.items() if not name.startswith(("mount", "redis"))}
    assert checks["redis"].status == ("warn" if broker.find_server().bundled else "ok")
    assert set(status.values()) == {"ok"}, checks
    assert checks["mount patches"].status == "warn"
    assert "read-only" in checks["mount patches"].hint
    assert f"of party {party}" in checks["token"].detail
    assert "agrees" in checks["clock"].detail
    counts = "train 60 (dark 30, bright 30), validation 24 (dark 12, bright 12), test 36 (dark 18, bright 18)"
    assert counts in checks["dataset patches"].detail
    assert "input 1 x 6 x 6" in checks["dataset patches"].detail
    assert "cpu" in checks["device"].detail
    assert "north may fit and evaluate with patches" in checks["policy"].detail
    assert all(item.ok for item in checks.values())


def test_a_rule_for_a_party_that_the_hub_does_not_have(known, found, live_hub, make, tmp_path):
    _, party = known
    rules = [([party], ["fit"], ["patches"]), (["nroth", "south"], ["evaluate"], ["patches"])]
    path = make.write_site(tmp_path / "other", url=live_hub.url, token=live_hub.site_token(party), rules=rules)
    check = found(load_site(path))["parties"]
    assert (check.status, check.ok) == ("warn", True)
    assert "the party nroth" in check.detail
    assert "'north'" in check.hint


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
    assert "no connection" in checks["hub"].detail
    assert "check the URL" in checks["hub"].hint
    assert checks["dataset patches"].status == "fail"
    assert "mounted" in checks["dataset patches"].hint
    assert checks["token"].status == "fail"
    assert checks["redis"].ok
    assert "suture_t_1" not in str(list(checks.values()))


def test_a_key_that_is_not_there_or_is_none(site, found, tmp_path):
    (tmp_path / "text.pub").write_text("no key", encoding="utf-8")
    (tmp_path / "own.pub").write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    names = {name: tmp_path / f"{name}.pub" for name in ("none", "text", "own")}
    checks = found(site.model_copy(update={"keys": names}))
    assert [checks[f"key {name}"].status for name in names] == ["fail", "fail", "ok"]
    assert "none.pub" in checks["key none"].detail
    assert "owner" in checks["key none"].hint


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
    assert "record 1 was edited" in found()["state"].detail


def test_the_room_that_a_disk_must_have_is_said(found):
    assert "needed: 64 MiB, and for a task twice what its models and files take" in found()["disk"].detail


def test_no_rules(site, found):
    config = site.model_copy(update={"policy": site.policy.model_copy(update={"allow": ()})})
    assert found(config)["policy"].status == "warn"


def test_a_device_that_is_not_there(site, found):
    config = site.model_copy(update={"site": site.site.model_copy(update={"device": "cuda:9"})})
    assert "there is no cuda:9" in found(config)["device"].detail


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        ((40, 20), "dark 40, bright 20"),
        ((40, 9), "dark not shown, bright fewer than 11"),
        ((9, 9), "dark fewer than 11, bright fewer than 11"),
    ],
)
def test_small_classes_are_not_shown_nor_what_would_give_them_away(site, found, n, shown):
    labels = np.concatenate([[0, 1] * 16, np.repeat([0, 1], n)])
    split = np.array([*["train"] * 30, *["validation"] * 2, *["test"] * sum(n)])
    np.savez(site.datasets["patches"].path, images=np.zeros((len(labels), 1, 6, 6)), labels=labels, split=split)
    assert f"test {sum(n)} ({shown})" in found()["dataset patches"].detail


def test_samples_of_few_patients_are_not_counted_out(site, found):
    # 60 samples of ten patients: as few as ten samples.
    labels, split = np.arange(92) % 2, np.array([*["train"] * 30, *["validation"] * 2, *["test"] * 60])
    groups = np.where(split == "test", [f"p{i % 10}" for i in range(92)], [f"q{i}" for i in range(92)])
    images = np.zeros((92, 1, 6, 6))
    np.savez(site.datasets["patches"].path, images=images, labels=labels, split=split, group=groups)
    assert "test fewer than 11" in found()["dataset patches"].detail


def test_classes_of_few_patients_are_not_counted_out(site, found):
    labels, split = np.repeat([0, 1], 60), np.array((["train"] * 20 + ["test"] * 40) * 2)
    groups = [
        f"{side}{label}-{i % (9 if label else 40)}" for i, (side, label) in enumerate(zip(split, labels, strict=True))
    ]
    images = np.zeros((120, 1, 6, 6))
    np.savez(site.datasets["patches"].path, images=images, labels=labels, split=split, group=groups)
    assert "test 80 of 49 patients (dark not shown, bright fewer than 11)" in found()["dataset patches"].detail


def test_a_rule_that_names_no_budget_has_one(site, found):
    rule = site.policy.allow[0]
    assert rule.evaluations_per_month is None
    assert "20 evaluations a month" in found(site)["policy"].detail


def test_a_delta_that_protects_nobody_is_warned_of(site, found, make):
    make.save_patches(site.datasets["patches"].path)
    checks = {}
    for delta in (0.05, 1e-5):
        noise = {"members_from": None, "signed_by": None, "epsilon": 1.0, "delta": delta}
        rule = site.policy.allow[0].model_copy(update=noise)
        noisy = site.model_copy(update={"policy": site.policy.model_copy(update={"allow": (rule,)})})
        checks[delta] = [check.detail for check in check_site(noisy) if check.name == "dataset patches"]
    assert sum("policy.allow[0] has delta = 0.05, not below one in its" in detail for detail in checks[0.05]) == 1
    assert not any("delta" in detail for detail in checks[1e-5])


def test_limits_of_rules_are_told(site, found):
    limits = {"evaluations_per_month": 3, "approval": "ask", "release": "manual"}
    rule = site.policy.allow[0].model_copy(update=limits)
    site = site.model_copy(update={"policy": site.policy.model_copy(update={"allow": (rule,)})})
    assert "(trust, 3 evaluations a month, a person approves, a person releases)" in found(site)["policy"].detail


def test_a_read_only_mount(site, found, make, monkeypatch):
    make.save_patches(site.datasets["patches"].path)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert found()["mount patches"].status == "ok"


class _Answers(BaseHTTPRequestHandler):
    skew = 0.0

    def do_GET(self):
        self.send_response_only(200)
        self.send_header("Date", format_datetime(datetime.now(UTC) + timedelta(seconds=self.skew), usegmt=True))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def hub_with(tmp_path, site, monkeypatch):
    """A site whose hub is an HTTPS server with a certificate of its own that ends in so many days."""
    with ExitStack() as stack:

        def serve(days=90, skew=0.0, trusted=True):
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
            builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            builder = builder.serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(days=100))
            builder = builder.not_valid_after(datetime.now(UTC) + timedelta(days=days, hours=1))
            place = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            certificate = builder.add_extension(place, critical=False).sign(key, hashes.SHA256())
            secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (tmp_path / "hub.pem").write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
            server = HTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"skew": skew}))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "hub.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "hub.pem"))
            url = f"https://localhost:{server.server_port}"
            return site.model_copy(update={"hub": site.hub.model_copy(update={"url": url})})

        yield serve


def test_a_certificate_that_is_trusted(found, hub_with):
    check = found(hub_with(days=90))["certificate"]
    assert (check.status, check.detail) == ("ok", "trusted, for 90 days more")


def test_a_certificate_that_ends_soon(found, hub_with):
    check = found(hub_with(days=3))["certificate"]
    assert (check.status, check.detail) == ("warn", "it ends in 3 days")


@pytest.mark.parametrize(("changes", "hint"), [({"days": -1}, "clock"), ({"trusted": False}, "SSL_CERT_FILE")])
def test_a_certificate_that_is_not_trusted(found, hub_with, changes, hint):
    check = found(hub_with(**changes))["certificate"]
    assert check.status == "fail"
    assert hint in check.hint


@pytest.mark.parametrize("skew", [-90, 90])
def test_a_clock_that_is_wrong(found, hub_with, skew):
    check = found(hub_with(skew=skew))["clock"]
    assert check.status == "warn"
    assert f"by {skew}" in check.detail or f"by {skew - 1}" in check.detail
    assert "NTP" in check.hint
