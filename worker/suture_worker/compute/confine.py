"""What a child takes from itself before it touches a model: memory, time, network, all files but its own.

Each is kept by the kernel for the rest of the process's life and passed on to whatever it starts; nothing it does later
can undo it. Linux only, but for the limits. References: seccomp(2), landlock(7), capset(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
#: By machine: its audit architecture and the numbers of socket(2) and socketpair(2).
_SOCKET = {"x86_64": (0xC000003E, 41, 53), "aarch64": (0xC00000B7, 198, 199)}
_IO_URING_SETUP = 425
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


def limit(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Bound memory and processor time; no core dump, which would hold patients' data."""
    # Memory it may write to, not address space: a dataset mapped from a file may be larger than this machine's memory,
    # and CUDA reserves far more addresses than it uses.
    if sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, memory_bytes)
    _lower(resource.RLIMIT_CPU, cpu_seconds, beyond=5)  # SIGXCPU says why; only then SIGKILL
    _lower(resource.RLIMIT_CORE, 0)
    # When memory runs out on the whole machine, this process is the one to end, not the worker or the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def no_privileges() -> bool:
    """Keep nothing of the superuser's but that file modes do not bind it; return whether this kernel can do that.

    A site should not run as the superuser. One that does must not have a child that raises its own limits.
    """
    if sys.platform != "linux":
        return False
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
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | 13  # 13: permission denied
    program = [
        (load, 0, 0, 4),  # the architecture: another one would number its calls differently
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # the call
        (at_least, 6, 0, 0x40000000),  # the x32 numbering of x86-64
        (equal, 5, 0, _IO_URING_SETUP),  # could open sockets on its own
        (equal, 1, 0, socket),
        (equal, 0, 2, pair),  # one of a pair for datagrams can send to any local socket, the system's log say
        (load, 0, 0, 16),  # its first argument, the address family
        (equal, 0, 1, 1 if local else 0xFFFFFFFF),  # 1 is a local one
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
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


def _lower(kind: int, value: int, *, beyond: int = 0) -> None:
    _, hard = resource.getrlimit(kind)
    highest = value + beyond if hard == resource.RLIM_INFINITY else min(value + beyond, hard)
    resource.setrlimit(kind, (min(value, highest), highest))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = library.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _prctl(option: int, argument: int, pointer: int = 0) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, *(ctypes.c_ulong(value) for value in (argument, pointer, 0, 0))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
