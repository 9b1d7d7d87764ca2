"""Machines that are not as one wishes: small or read-only disks, files that cannot be locked, nobody's account.

Each is made by the kernel for one command and needs no rights. Where a kernel allows no user namespaces, the tests that
need one are skipped.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

#: Number of flock(2), by machine: linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_FLOCK = {"x86_64": 73, "aarch64": 32}
_NUMBERS = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_NOBODYS = 54321


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    largest_file: int | None = None,
    seconds: float = 280,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in an environment of its own, where no file may become larger than so many bytes."""
    limit: Callable[[], None] | None = None
    if largest_file is not None:
        # Python keeps a compiled module that was cut off by the limit, and every later process fails at it.
        environment = {"PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))  # noqa: E731
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        env={**kept, **(environment or {})},
        cwd=folder,
        preexec_fn=limit,
        timeout=seconds,
        check=False,
    )


def suture(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "suture", *map(str, arguments)]


def small_disk(place: Path, kibibytes: int, command: Sequence[str], *, read_only: bool = False) -> list[str]:
    """Return the command that runs `command` where a disk of that size is mounted at `place`; skips where it cannot.

    A read-only one holds what is at `place`.
    """
    _need_namespaces()
    if read_only:
        mount = f"mount --bind '{place}' '{place}' && mount -o remount,bind,ro '{place}'"
    else:
        mount = f"mount -t tmpfs -o size={kibibytes}k none '{place}'"
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]


def as_nobody(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` with a number of a user that has no name."""
    _need_namespaces()
    return ["unshare", "--user", f"--map-user={_NOBODYS}", f"--map-group={_NOBODYS}", *command]


def without_locks(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` on a kernel without file locks, as NFS may be; skips elsewhere."""
    if sys.platform != "linux" or platform.machine() not in _FLOCK:
        pytest.skip("needs seccomp of a known machine")
    return [sys.executable, str(Path(__file__)), *command]


def machine(host: str, mounts: Mapping[str, tuple[Path, bool]], hidden: Path, command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` as on another machine; skips where this kernel cannot make one.

    It has a host name, processes and a network of its own, which leads nowhere. Of the folder `hidden` it sees nothing
    but what is mounted: from where, and whether it may be written to, by its place below /mnt.
    """
    _need_namespaces("--net", "--uts", "--pid", "--fork", "--mount-proc")
    lines = [f"hostname {host}", "ip link set lo up", "mount -t tmpfs none /mnt"]
    for place, (source, writable) in mounts.items():
        lines += [f"mkdir -p /mnt/{place}", f"mount --bind '{source}' /mnt/{place}"]
        lines += [] if writable else [f"mount -o remount,bind,ro /mnt/{place}"]
    lines += [f"mount -t tmpfs none '{hidden}'", 'exec "$@"']
    own = ["--user", "--map-root-user", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *own, "sh", "-c", " && ".join(lines), "sh", *command]


def with_calls(names: Iterable[str], command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` with these system calls alone; others answer EPERM. Skips elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not _NUMBERS.exists():
        pytest.skip("needs the numbers of system calls on x86-64 (linux-libc-dev)")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", _NUMBERS.read_text(encoding="ascii")))
    allowed = ",".join(sorted(numbers[name] for name in set(names) & numbers.keys()))
    return [sys.executable, str(Path(__file__)), f"--calls={allowed}", *command]


@cache
def _need_namespaces(*further: str) -> None:
    made = shutil.which("unshare") and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *further, "true"], capture_output=True, check=False
    )
    if not made or made.returncode != 0:
        pytest.skip("needs user namespaces")


_LOAD, _EQUAL, _ANSWER, _ALLOW, _REFUSE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000


def _refuse_locks() -> None:
    """Have flock(2) answer ENOLCK in this process and all it starts."""
    _filter([(_EQUAL, 0, 1, _FLOCK[platform.machine()]), (_ANSWER, 0, 0, _REFUSE | 37), (_ANSWER, 0, 0, _ALLOW)])


def _allow_only(numbers: Iterable[int]) -> None:
    """Have all other calls answer EPERM in this process and all it starts."""
    each = [step for number in numbers for step in ((_EQUAL, 0, 1, number), (_ANSWER, 0, 0, _ALLOW))]
    _filter([*each, (_ANSWER, 0, 0, _REFUSE | 1)])


def _filter(instructions: Sequence[tuple[int, int, int, int]]) -> None:
    """Filter the calls of this process by their number: see seccomp(2)."""
    program = [(_LOAD, 0, 0, 0), *instructions]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    assert library.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert library.prctl(set_seccomp, filtered, ctypes.c_ulong(ctypes.addressof(header)), 0, 0) == 0


if __name__ == "__main__":
    first, *words = sys.argv[1:]
    if first.startswith("--calls="):
        _allow_only(map(int, first.removeprefix("--calls=").split(",")))
    else:
        words = [first, *words]
        _refuse_locks()
    os.execvp(words[0], words)
