"""What a confined process can no longer do, tried in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suture_worker.compute import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")
PRELUDE = "import os, socket, sys\nfrom pathlib import Path\nfrom suture_worker.compute import confine\n"


def tried(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("which", ["local", "none"])
def test_no_network(which):
    script = """
local = sys.argv[1] == "local"
assert confine.no_network(local=local)
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError:
        continue
    sys.exit(f"opened {family}")
try:
    socket.socket(socket.AF_UNIX).close()
    assert local
except PermissionError:
    assert not local
try:
    socket.socketpair(type=socket.SOCK_DGRAM)
    assert local
except PermissionError:
    assert not local
assert os.fork() or os._exit(0) is None
try:
    socket.create_connection(("127.0.0.1", 9))
except PermissionError:
    print("refused")
"""
    answer = tried(script, which)
    assert (answer.returncode, answer.stdout) == (0, "refused\n"), answer.stderr


def test_no_network_for_what_it_starts():
    script = """
import subprocess
confine.no_network(local=True)
sys.exit(subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], stderr=subprocess.DEVNULL).returncode)
"""
    assert tried(script).returncode == 1


@pytest.mark.skipif(not confine.files_supported(), reason="this kernel has no Landlock")
def test_only_named_files(tmp_path):
    for name in ("read", "write", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    script = """
here = Path(sys.argv[1])
assert confine.only_files(read=[here / "read", here / "nothing"], write=[here / "write"])
print((here / "read" / "file").read_text(), (here / "write" / "file").read_text())
(here / "write" / "new").write_text("x")
(here / "write" / "new").replace(here / "write" / "renamed")
for attempt in (
    lambda: (here / "secret" / "file").read_text(),
    lambda: (here / "read" / "file").write_text("x"),
    lambda: (here / "read" / "new").touch(),
    lambda: list((here / "secret").iterdir()),
    lambda: (here / "write" / "link").symlink_to(here / "secret" / "file"),
    lambda: os.link(here / "secret" / "file", here / "write" / "hard"),
    lambda: open("/proc/1/environ", "rb").read(),
    lambda: open(f"/proc/{os.getppid()}/mem", "rb").read(1),
):
    try:
        attempt()
    except OSError:
        continue
    sys.exit("it could")
print("refused")
"""
    answer = tried(script, str(tmp_path))
    assert (answer.returncode, answer.stdout) == (0, "read write\nrefused\n"), answer.stderr


@pytest.mark.skipif(not confine.files_supported(), reason="this kernel has no Landlock")
def test_no_signals_to_others():
    with subprocess.Popen(["sleep", "600"]) as other:
        script = """
confine.only_files(read=[], write=[])
try:
    os.kill(int(sys.argv[1]), 9)
except PermissionError:
    print("refused")
"""
        answer = tried(script, str(other.pid))
        alive = other.poll() is None
        other.kill()
    version = confine._landlock_version()
    assert version < 6 or (answer.stdout, alive) == ("refused\n", True)


def test_memory_is_bounded_but_not_what_is_mapped_from_a_file(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**33)
    script = """
import mmap
confine.limit(memory_bytes=2**30, cpu_seconds=60)
with Path(sys.argv[1]).open("rb") as file:
    print(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)[-1])
try:
    bytearray(2**31)
except MemoryError:
    print("refused")
"""
    assert tried(script, str(tmp_path / "large")).stdout == "0\nrefused\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser has privileges to give up")
def test_the_superuser_keeps_no_privileges_but_to_read(tmp_path):
    (tmp_path / "data").write_text("here")
    (tmp_path / "data").chmod(0)
    script = """
if sys.argv[2] == "without":
    assert confine.no_privileges()
print((Path(sys.argv[1]) / "data").read_text())
try:
    os.setuid(1)
    print("could")
except PermissionError:
    print("refused")
"""
    assert tried(script, str(tmp_path), "with").stdout == "here\ncould\n"
    assert tried(script, str(tmp_path), "without").stdout == "here\nrefused\n"


def test_processor_time_is_bounded():
    answer = tried("confine.limit(memory_bytes=2**32, cpu_seconds=1)\nwhile True: pass")
    assert answer.returncode == -24  # SIGXCPU


def test_no_core_dump():
    script = """
import resource
confine.limit(memory_bytes=2**32, cpu_seconds=60)
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    assert tried(script).stdout == "(0, 0)\n"


def test_it_ends_with_its_parent(tmp_path):
    note = tmp_path / "pid"
    grandchild = PRELUDE + (
        "import time\nconfine.die_with_parent(int(sys.argv[2]))\n"
        "Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    script = (
        "import subprocess, time\n"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}, sys.argv[1], str(os.getpid())])\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", PRELUDE + script, str(note)])
    until(lambda: note.exists() and note.read_text())
    pid = int(note.read_text())
    assert running(pid)
    parent.kill()
    parent.wait()
    until(lambda: not running(pid))


def test_it_does_not_start_without_its_parent():
    assert tried("confine.die_with_parent(1)\nprint('went on')").stdout == ""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_agent_s_memory_is_its_own():
    script = """
import ctypes
confine.hide_memory()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""
    assert tried(script).stdout == "0\n"
