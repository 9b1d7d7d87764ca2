"""What a child takes from itself before it touches a model: memory, time, network, processes, all files but its own.

Each is kept by the kernel for the rest of the process's life and passed on to whatever it starts; nothing it does later
can undo it. Linux only, but for the limits. References: seccomp(2), landlock(7), capset(2), clone(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2
#: Instructions of a filter, and its answers; seccomp(2).
_LOAD, _EQUAL, _AT_LEAST, _AND, _ANSWER = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
#: By machine: its audit architecture and the numbers of socket(2) and socketpair(2).
_SOCKET = {"x86_64": (0xC000003E, 41, 53), "aarch64": (0xC00000B7, 198, 199)}
_IO_URING_SETUP = 425
#: By machine: clone(2), and what else makes a process there, fork(2) and vfork(2).
_CLONE: dict[str, tuple[int, tuple[int, ...]]] = {"x86_64": (56, (57, 58)), "aarch64": (220, ())}
_CLONE3 = 435
#: clone(2): a thread of the same process; and every kind of namespace.
_THREAD, _NAMESPACES = 0x00010000, 0x7E020000
#: What a model has no use for, by what it is for. Namespaces give back what was taken; memory, semaphores, queues and
#: keys that have no file outlive the process and are seen by others; the rest is where kernels have been broken most.
_NEEDLESS: dict[str, dict[str, int]] = {
    "x86_64": {
        "unshare": 272, "setns": 308,
        "shmget": 29, "shmat": 30, "shmctl": 31, "shmdt": 67,
        "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220,
        "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
        "add_key": 248, "request_key": 249, "keyctl": 250,
        "userfaultfd": 323, "bpf": 321, "perf_event_open": 298,
    },
    "aarch64": {
        "unshare": 97, "setns": 268,
        "shmget": 194, "shmat": 196, "shmctl": 195, "shmdt": 197,
        "semget": 190, "semop": 193, "semctl": 191, "semtimedop": 192,
        "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180, "mq_unlink": 181,
        "add_key": 217, "request_key": 218, "keyctl": 219,
        "userfaultfd": 282, "bpf": 280, "perf_event_open": 241,
    },
}  # fmt: skip
#: Threads that a child may have, beside all that its user has already.
_THREADS = 4096
#: capset(2), third version: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that data of another user can still be read.
_CAPABILITIES, _FILE_MODES = 0x20080522, 0b110
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE, _READ, _LIST = 1, 2, 4, 8
_REMOVE_FOLDER, _REMOVE_FILE, _MAKE_FOLDER, _MAKE_FILE = 16, 32, 128, 256
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; exit at once if it already has."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def name(word: str) -> None:
    """Have `ps` and `top` show this process by a name of up to 15 letters."""
    if sys.platform == "linux":
        Path("/proc/self/comm").write_text(word, encoding="ascii")


def need_one_thread() -> None:
    """Raise RuntimeError if this process has a second thread: what one gives up, the others there already keep."""
    try:
        threads = len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return
    if threads > 1:
        raise RuntimeError(f"{threads} threads are there already, and would not be confined; something started them")


def hide_memory() -> None:
    """Keep other processes of this user from reading this one's memory, which holds the token; no core dump either."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0)


def adopt() -> None:
    """Have the kernel make this process the parent of whatever its children leave behind, even in other sessions."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_adopted() -> None:
    """Kill every child of this process, and what those leave, until there is none; see `adopt`.

    One that makes processes faster than they can be killed goes on: who waits for this process has to bound that.
    """
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Return this process's children. Read from every process's status: not every kernel has a list of them."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_bytes().rpartition(b")")[2].split()[1]
            children += [int(path.parent.name)] if int(parent) == os.getpid() else []
    return children


def limit(*, memory_bytes: int, cpu_seconds: int, file_bytes: int | None = None) -> None:
    """Bound memory, processor time, threads and the size of a file; no core dump, which would hold patients' data."""
    # Memory it may write to, not address space: a dataset mapped from a file may be larger than this machine's memory,
    # and CUDA reserves far more addresses than it uses.
    if sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, memory_bytes)
    _lower(resource.RLIMIT_CPU, cpu_seconds, beyond=5)  # SIGXCPU says why; only then SIGKILL
    _lower(resource.RLIMIT_CORE, 0)
    if file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, file_bytes)  # Python ignores SIGXFSZ: a write past it raises EFBIG
    # The kernel counts all of a user's threads together, and does not bind the superuser.
    if sys.platform == "linux":
        _lower(resource.RLIMIT_NPROC, _threads_of_user() + _THREADS)
    # When memory runs out on the whole machine, this process is the one to end, not the worker or the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def no_privileges() -> bool:
    """Keep nothing of the superuser's but that file modes do not bind it; return whether this kernel can do that.

    A site should not run as the superuser. One that does must not have a child that raises its own limits. No program
    that it starts gets any of them back either.
    """
    if sys.platform != "linux":
        return False
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # there are no more of them; or they are not this user's to drop, nor to have
            break
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITIES, 0)), ctypes.create_string_buffer(24)
    if library.capget(header, sets) != 0:
        return False
    effective, permitted = struct.unpack("=6I", sets.raw)[:2]
    kept = struct.pack("=6I", effective & _FILE_MODES, permitted & _FILE_MODES, 0, 0, 0, 0)
    return bool(library.capset(header, ctypes.create_string_buffer(kept, 24)) == 0)


def no_network(*, local: bool) -> bool:
    """Refuse this process any socket, or any but `local` ones; return whether this kernel and machine can do that."""
    known = _SOCKET.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, socket, pair = known
    return _filter(
        architecture,
        [
            (_EQUAL, 5, 0, _IO_URING_SETUP),  # could open sockets on its own
            (_EQUAL, 1, 0, socket),
            (_EQUAL, 0, 2, pair),  # one of a pair for datagrams can send to any local socket, the system's log say
            (_LOAD, 0, 0, 16),  # its first argument, the address family
            (_EQUAL, 0, 1, 1 if local else 0xFFFFFFFF),  # 1 is a local one
            (_ANSWER, 0, 0, _ALLOW),
            (_ANSWER, 0, 0, _refuse(errno.EACCES)),
        ],
    )


def no_processes() -> bool:
    """Refuse this process any other one, but not threads; return whether this kernel and machine can do that.

    What it cannot start cannot outlive it. It is told what a process is told that has as many as it may have.
    """
    known = _CLONE.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    clone, forks = known
    return _filter(
        _SOCKET[platform.machine()][0],
        [
            *((_EQUAL, len(forks) + 7 - at, 0, fork) for at, fork in enumerate(forks)),
            # Its flags lie in memory, where no filter can look. Libraries then take clone(2).
            (_EQUAL, 5, 0, _CLONE3),
            (_EQUAL, 1, 0, clone),
            (_ANSWER, 0, 0, _ALLOW),
            (_LOAD, 0, 0, 16),  # its first argument, the flags
            (_AND, 0, 0, _THREAD | _NAMESPACES),
            (_EQUAL, 1, 2, _THREAD),
            (_ANSWER, 0, 0, _refuse(errno.ENOSYS)),
            (_ANSWER, 0, 0, _ALLOW),
            (_ANSWER, 0, 0, _refuse(errno.EAGAIN)),
        ],
    )


def no_needless_calls() -> bool:
    """Refuse this process what no model has a use for; return whether this kernel and machine can do that."""
    calls = _NEEDLESS.get(platform.machine())
    if sys.platform != "linux" or calls is None:
        return False
    numbers = sorted(calls.values())
    return _filter(
        _SOCKET[platform.machine()][0],
        [
            *((_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
            (_ANSWER, 0, 0, _ALLOW),
            (_ANSWER, 0, 0, _refuse(errno.EPERM)),
        ],
    )


def _refuse(error: int) -> int:
    return 0x00050000 | error


def _filter(architecture: int, about_the_call: list[tuple[int, int, int, int]]) -> bool:
    """Have the kernel ask this program about every call of this process; return whether it does from now on."""
    program = [
        (_LOAD, 0, 0, 4),  # the architecture: another one would number its calls differently
        (_EQUAL, 1, 0, architecture),
        (_ANSWER, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the call
        (_AT_LEAST, 0, 1, 0x40000000),  # the x32 numbering of x86-64
        (_ANSWER, 0, 0, _refuse(errno.EACCES)),
        *about_the_call,
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))
    except OSError:
        return False
    return True


def files_supported() -> bool:
    """Whether this kernel can keep a process to named files."""
    return _landlock_version() > 0


def only_files(*, read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Keep this process to these files and folders; return whether this kernel can. What does not exist is left out.

    It can also no longer look into, or send signals to, processes outside.
    """
    version = _landlock_version()
    if version < 1:
        return False
    every = (1 << 13) - 1
    every |= (1 << 13 if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL if version >= 5 else 0)
    ruleset = struct.pack("QQQ", every, 0, 0b11 if version >= 6 else 0)[: 24 if version >= 6 else 8]
    descriptor = _syscall(_CREATE_RULESET, ruleset, len(ruleset), 0)
    try:
        reading = _EXECUTE | _READ | _LIST
        writing = reading | _WRITE | _TRUNCATE | _IOCTL | _REMOVE_FOLDER | _REMOVE_FILE | _MAKE_FOLDER | _MAKE_FILE
        for access, paths in ((reading, read), (writing, write)):
            for path in paths:
                _allow(descriptor, path, access & every)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _syscall(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
    return True


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _ON_FILES
        _syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, descriptor), 0)
    finally:
        os.close(descriptor)


def _landlock_version() -> int:
    if sys.platform != "linux" or platform.machine() not in _SOCKET:
        return 0
    try:
        return _syscall(_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def _threads_of_user() -> int:
    """Return how many threads this process's user has, as far as they can be seen."""
    own, threads = os.getuid(), 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            threads += len(list((path / "task").iterdir())) if path.stat().st_uid == own else 0
    return threads


def _lower(kind: int, value: int, *, beyond: int = 0) -> None:
    _, hard = resource.getrlimit(kind)
    highest = value + beyond if hard == resource.RLIM_INFINITY else min(value + beyond, hard)
    resource.setrlimit(kind, (min(value, highest), highest))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    c_arguments = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = library.syscall(ctypes.c_long(number), *c_arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _prctl(option: int, argument: int, pointer: int = 0) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, *(ctypes.c_ulong(value) for value in (argument, pointer, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
