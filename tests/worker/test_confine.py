"""What a confined process can no longer do, tried in processes of their own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from tests.until import until

from suture_worker.compute import confine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's means are Linux's")
#: Calls that a child is refused, by name, as the kernel's tables have them.
NUMBERS = {
    "x86_64": {"unshare": 272, "setns": 308, "userfaultfd": 323, "bpf": 321, "perf_event_open": 298}
    | {"add_key": 248, "request_key": 249, "keyctl": 250, "shmget": 29, "shmat": 30, "shmctl": 31, "shmdt": 67}
    | {"semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220, "mq_open": 240, "mq_unlink": 241}
    | {"msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71},
    "aarch64": {"unshare": 97, "setns": 268, "userfaultfd": 282, "bpf": 280, "perf_event_open": 241}
    | {"add_key": 217, "request_key": 218, "keyctl": 219, "shmget": 194, "shmat": 196, "shmctl": 195, "shmdt": 197}
    | {"semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192, "mq_open": 180, "mq_unlink": 181}
    | {"msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187},
}
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


def test_it_starts_threads_but_no_processes():
    script = """
import ctypes, errno, subprocess, threading
assert confine.no_processes()
thread = threading.Thread(target=print, args=("a thread",))
thread.start()
thread.join()
libc = ctypes.CDLL(None, use_errno=True)
for attempt in (
    os.fork,
    lambda: subprocess.run([sys.executable, "-c", ""]),
    lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {}),
):
    try:
        attempt()
    except OSError as error:
        assert error.errno == errno.EAGAIN, error
        continue
    sys.exit("it could")
assert libc.syscall(435, 0, 0) == -1
assert ctypes.get_errno() == errno.ENOSYS  # clone3
print("refused")
"""
    answer = tried(script)
    assert (answer.returncode, answer.stdout) == (0, "a thread\nrefused\n"), answer.stderr


def test_calls_that_no_model_needs_are_refused():
    script = """
import ctypes, errno, json
calls = json.loads(sys.argv[1])
assert confine.no_needless_calls()
libc = ctypes.CDLL(None, use_errno=True)
for name, number in calls.items():
    # Arguments of which every one of them makes something else than that it may not be used.
    assert libc.syscall(number, -1, -1, -1, -1, -1, -1) == -1
    assert ctypes.get_errno() == errno.EPERM, (name, ctypes.get_errno())
print(len(calls))
"""
    calls = {**NUMBERS[platform.machine()]}
    answer = tried(script, json.dumps(calls))
    assert (answer.returncode, answer.stdout) == (0, f"{len(calls)}\n"), answer.stderr


def test_what_leads_out_is_refused():
    script = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
key = libc.shmget(0, 4096, 0o1600)
assert key >= 0
assert libc.shmctl(key, 0, None) == 0
assert confine.no_needless_calls()
assert confine.no_processes()
assert libc.shmget(0, 4096, 0o1600) == -1
for flags in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x10000 | 0x20000):
    assert libc.unshare(flags) == -1
    assert libc.syscall(CLONE, flags, 0, 0, 0, 0) == -1
    assert ctypes.get_errno() == errno.EAGAIN
print("refused")
""".replace("CLONE", {"x86_64": "56", "aarch64": "220"}[platform.machine()])
    answer = tried(script)
    assert (answer.returncode, answer.stdout) == (0, "refused\n"), answer.stderr


def test_no_file_grows_past_its_bound(tmp_path):
    script = """
confine.limit(memory_bytes=2**32, cpu_seconds=60, file_bytes=4096)
with Path(sys.argv[1]).open("wb", buffering=0) as file:
    file.write(bytes(4096))
    try:
        file.write(b"x")
    except OSError as error:
        print(error.strerror)
"""
    assert tried(script, str(tmp_path / "file")).stdout == "File too large\n"


def test_the_number_of_threads_is_bounded():
    script = """
import resource
before = resource.getrlimit(resource.RLIMIT_NPROC)[1]
confine.limit(memory_bytes=2**32, cpu_seconds=60)
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
assert soft == hard
print(hard < 2**15 and (before == resource.RLIM_INFINITY or hard <= before))
"""
    assert tried(script).stdout == "True\n"


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser has privileges to give up")
def test_no_program_gets_the_superusers_privileges_back():
    script = """
assert confine.no_privileges()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(*(int(status[name], 16) for name in ("CapBnd", "CapInh", "CapAmb")))
"""
    assert tried(script).stdout == "0 0 0\n"


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


def test_the_agent_s_memory_is_its_own():
    script = """
import ctypes
confine.hide_memory()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""
    assert tried(script).stdout == "0\n"
