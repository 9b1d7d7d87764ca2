"""Operators on torch's meta device, without the compiler that torch would import for them.

There most operators are Python functions, and each is marked as one that `torch.compile` must not look into. The mark
is made at the first call and imports `torch._dynamo` for it, which takes half as long as torch itself. Nothing is
compiled in a dry run, so each function is its own marked version until then.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

#: The modules with torch's functions for the meta device.
_MODULES = ("torch._refs.", "torch._decomp.", "torch._prims.", "torch._prims_common.", "torch._meta_registrations.")
#: Under this name torch keeps the marked version of a function, on the function; in 2.11 to 2.14 alike.
_MARK = "__dynamo_disable"


@functools.cache
def without_compiler() -> None:
    """Let operators run on the meta device without an import of torch's compiler; once a process.

    Does nothing where the compiler is there already. Where another torch keeps no such mark, the import just happens.
    """
    if "torch._dynamo" in sys.modules:
        return
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith(_MODULES)]
    waiting = [value for module in modules for value in vars(module).values() if isinstance(value, FunctionType)]
    seen: set[FunctionType] = set()
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        inner = [value for value in _enclosed(function) if isinstance(value, FunctionType)]
        waiting += inner
        if _MARK in function.__code__.co_consts:
            for marked in inner:
                vars(marked).setdefault(_MARK, marked)


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """Yield what `function` holds of the functions that it was made in."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            yield cell.cell_contents
