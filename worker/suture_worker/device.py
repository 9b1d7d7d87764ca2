"""What this machine has: a device to compute on, processors, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_devices: list[str] = []


def resolve_device(wanted: str) -> str:
    """Return the device to use; "auto" is the first CUDA device if there is one, else the CPU.

    Asked of a process of its own, so that the worker neither imports torch nor holds memory of the device.
    """
    if wanted != "auto":
        return wanted
    return "cuda:0" if cuda_devices() else "cpu"


def cuda_devices() -> list[str]:
    """Return the names of the CUDA devices torch can use; once found, they are not asked for again."""
    if not _devices:
        _devices.extend(_ask_for_devices())
    return list(_devices)


def _ask_for_devices() -> list[str]:
    script = (
        "import torch\n"
        "for i in range(torch.cuda.device_count()):\n"
        "    print(torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory // 2**30, 'GiB')\n"
    )
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
        return []  # spares importing torch where there is certainly none
    answer = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-I", "-c", script], capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def shares(wanted: str) -> list[str | None]:
    """Return what CUDA_VISIBLE_DEVICES is for each process that may work at once: one device each, none twice.

    One process, whose environment stays as it is ([None]), on the CPU or when the operator chose one device.
    """
    if wanted not in ("auto", "cuda"):
        return [None]
    count = len(cuda_devices())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    return list(names[:count]) or [None]


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(gib: float | None) -> int:
    """Return how much memory a child may use: `gib`, or all this machine has."""
    return int(gib * 2**30) if gib is not None else physical_memory()


def physical_memory() -> int:
    """Return this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
