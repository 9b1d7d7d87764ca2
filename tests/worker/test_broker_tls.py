"""A site's Redis elsewhere: password and TLS, with a real Redis behind a door that speaks TLS."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.until import until

from suture_contract.errors import SutureError
from suture_local.ports import free_port
from suture_worker import broker
from suture_worker.compute.celery_app import make_app, ring
from suture_worker.config import load_site, prepare_state
from suture_worker.folder import Assignment, TaskFolder, Terms
from suture_worker.leased_task import LeasedTask

PASSWORD = "hunter2-canary"


def authority(folder, name):
    """A certificate authority's key and certificate, the latter as a file, too."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = _certificate(
        subject, subject, key.public_key(), key, [(x509.BasicConstraints(ca=True, path_length=0), True)]
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, made, path


def _certificate(subject, issuer, public, signer, extensions):
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def server_context(folder, signer, issuer, host):
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = _certificate(subject, issuer.subject, key.public_key(), signer, [(names, False)])
    path = folder / f"server-{host}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Door(socketserver.ThreadingTCPServer):
    """Takes TLS connections and passes on what they hold to Redis."""

    daemon_threads = True

    def __init__(self, context, port):
        self.context, self.port = context, port
        super().__init__(("127.0.0.1", 0), Passing)


class Passing(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            outside = self.server.context.wrap_socket(self.request, server_side=True)  # type: ignore[attr-defined]
        except (ssl.SSLError, OSError):
            return
        with outside, socket.create_connection(("127.0.0.1", self.server.port)) as inside:  # type: ignore[attr-defined]
            back = threading.Thread(target=self.copy, args=(inside, outside), daemon=True)
            back.start()
            self.copy(outside, inside)
            back.join()

    def copy(self, source, target):
        try:
            while content := source.recv(65536):
                target.sendall(content)
        except OSError:
            pass
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture(scope="module")
def redis_port():
    port = free_port()
    command = [str(broker.find_server().program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen([*command, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port, password=PASSWORD)

        def answers():
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

        until(answers)
        yield port
        client.close()
        server.terminate()


@pytest.fixture(scope="module")
def door(redis_port, tmp_path_factory):
    """The port of a Redis that speaks TLS, and the certificate of who signed for it."""
    folder = tmp_path_factory.mktemp("tls")
    key, made, path = authority(folder, "hospital")
    with Door(server_context(folder, key, made, "127.0.0.1"), redis_port) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1], path
        server.shutdown()


@pytest.fixture
def site_with(tmp_path, make):
    def write(url, ca_file=None):
        path = make.write_site(tmp_path / "site")
        lines = f'[broker]\nurl = "{url}"\n' + (f'ca_file = "{ca_file}"\n' if ca_file else "")
        path.write_text(path.read_text().replace("[limits]", f"{lines}\n[limits]"))
        config = load_site(path)
        prepare_state(config)
        return config

    return write


def test_a_password(site_with, redis_port):
    assert broker.check_answers(site_with(f"redis://:{PASSWORD}@127.0.0.1:{redis_port}/0"))
    with pytest.raises(SutureError, match="AuthenticationError") as caught:
        broker.check_answers(site_with(f"redis://:wrong@127.0.0.1:{redis_port}/0"))
    assert "wrong" not in str(caught.value)


def test_tls_is_checked(site_with, door, redis_port, tmp_path):
    port, ca_file = door
    assert broker.check_answers(site_with(f"rediss://:{PASSWORD}@127.0.0.1:{port}/0", ca_file))
    stranger = authority(tmp_path, "stranger")[2]
    for url, ca in (
        (f"rediss://:{PASSWORD}@127.0.0.1:{port}/0", stranger),
        (f"rediss://:{PASSWORD}@127.0.0.1:{port}/0", None),  # the machine's own authorities do not know it either
        (f"rediss://:{PASSWORD}@localhost:{port}/0", ca_file),  # signed for another name
        (f"rediss://:{PASSWORD}@127.0.0.1:{redis_port}/0", ca_file),  # no TLS there
    ):
        with pytest.raises(SutureError) as caught:
            broker.check_answers(site_with(url, ca))
        assert caught.value.code == "site.redis_unreachable"
        assert PASSWORD not in str(caught.value)


def test_work_goes_over_it(site_with, door, make, members, portable, quick):
    port, ca_file = door
    config = site_with(f"rediss://:{PASSWORD}@127.0.0.1:{port}/0", ca_file)
    make.save_patches(config.datasets["patches"].path)
    task = LeasedTask.parse(make.leased("fit", members=members, options=quick))
    folder = TaskFolder(config.state / "tasks", task.id)
    folder.create(Assignment(task=task, dataset="patches"))
    folder.note_terms(Terms(min_samples=11))
    for index, path in enumerate(portable):
        folder.member(index).write_bytes(path.read_bytes())
    log = config.state / "logs" / "worker.log"
    command = [sys.executable, "-m", "suture_worker", "worker", str(config.path), str(os.getpid())]
    with log.open("wb") as output:
        worker = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        ring(make_app(config), folder.id)
        outcome = until(lambda: folder.outcome, 60)
    finally:
        worker.terminate()
        worker.wait(120)
    assert outcome.state == "done", log.read_text()
    assert PASSWORD not in log.read_text()
