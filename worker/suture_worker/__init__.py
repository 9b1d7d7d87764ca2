"""The site: what runs beside the patients' data.

One process, the agent, holds the site's token and talks to the hub; it only dials out. It asks the site's policy, hands
the id of an allowed task to Celery through the site's own Redis, and lets out nothing that did not pass the outbox.
The Celery worker has no token. It runs each task in a confined child process, so that a hostile model can neither
take the worker down nor reach the network.

    from suture_worker import load_site, run_site
    run_site(load_site("site.toml"))

Importing this package imports neither torch nor Celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suture_worker.check import Check, check_site
    from suture_worker.config import SiteConfig, load_site
    from suture_worker.run import run_agent, run_site, run_worker

_WHERE = {
    "Check": "check",
    "check_site": "check",
    "SiteConfig": "config",
    "load_site": "config",
    "run_agent": "run",
    "run_site": "run",
    "run_worker": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


__all__ = ["Check", "SiteConfig", "check_site", "load_site", "run_agent", "run_site", "run_worker"]
