"""Suture: publish trained models, never data, and stitch models of several parties into one better ensemble.

    import suture

    hub = suture.Hub()                      # the hub and token that `suture login` stored
    model = hub.load("north/digits")        # a torch.nn.Module

`Hub` and `Job` say what they do; every failure is a `SutureError` with a code, what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suture.hub import Hub
    from suture.job import Job
    from suture_contract.errors import SutureError

_WHERE = {"Hub": "suture.hub", "Job": "suture.job", "SutureError": "suture_contract.errors"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line needs none of it for its help."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]


__all__ = ["Hub", "Job", "SutureError"]
