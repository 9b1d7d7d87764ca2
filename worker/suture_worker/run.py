"""Starting a site: all of it in one process tree, or its agent and its worker each on their own."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import structlog

from suture_contract.console.logs import configure_logging, log_uncaught
from suture_contract.errors import SutureError
from suture_contract.files import trouble
from suture_worker import broker
from suture_worker.compute import confine
from suture_worker.compute.tied import tied
from suture_worker.config import SiteConfig, load_site, prepare_state, read_token
from suture_worker.stop import told_to_stop
from suture_worker.supervise import LAST_WORDS, SitePart, supervise

log = structlog.get_logger(__name__)


def run_site(config: SiteConfig) -> None:
    """Run Redis (unless site.toml names one), the Celery worker and the agent until SIGTERM or SIGINT.

    Each is restarted when it ends, and none outlives this process, however it ends. Raises `SutureError` (`site.*`)
    when the site cannot start.
    """
    _set_up_logging()
    read_token(config)
    state = prepare_state(config)
    redis = broker.redis_command(config) if config.broker is None else []
    names = [*(["redis"] if redis else []), "worker", "agent"]
    with _alone(state / "site.lock"), told_to_stop() as stop:
        parts = [SitePart(name, _command(name, config), state / "logs" / f"{name}.log") for name in names]
        if redis:
            # What it needs is at hand by now; when it is started again, its folder or the server may have gone.
            broker.socket_path(config).unlink(missing_ok=True)  # a killed one's
            parts[0] = replace(parts[0], first=tied(redis))
        log.info("the site starts", state=str(state), parts=names)
        try:
            supervise(parts, stop, environment=_environment())
        finally:
            if config.broker is None:
                broker.remove_socket(config)
        log.info("the site has stopped")


def run_agent(config: SiteConfig) -> None:
    """Run the agent until SIGTERM or SIGINT: the one part that needs the token and the network."""
    from suture_worker.agent.agent import Agent
    from suture_worker.agent.hub import HubClient
    from suture_worker.agent.metrics import serving
    from suture_worker.compute.celery_app import make_app
    from suture_worker.egress.outbox import Outbox
    from suture_worker.status import AGENT_LOCK, CONTACT

    _set_up_logging()
    confine.hide_memory()
    token = read_token(config)
    state = prepare_state(config)
    with _alone(state / AGENT_LOCK), told_to_stop() as stop, serving(config):
        hub = HubClient(config.hub.url, token, sleep=stop.wait, heard=(state / CONTACT).touch)
        policy = config.policy
        outbox = Outbox(
            state / "outbox",
            min_samples=policy.min_samples,
            min_per_class=policy.min_per_class,
            decimals=policy.decimals,
            disclose_refusals=policy.disclose_refusals,
        )
        try:
            log.info("the agent starts", hub=config.hub.url)
            Agent(config, hub, outbox, make_app(config), stop).run()
        finally:
            outbox.close()
            hub.close()


def run_worker(config: SiteConfig, drain: float = 0.0) -> None:
    """Run the Celery worker until SIGTERM or SIGINT; it needs neither token nor hub.

    Then it takes nothing new. A running task that has not ended within `drain` seconds is handed back: whoever takes it
    goes on from its checkpoint.
    """
    if not drain:
        # Read by Celery when it is imported: on SIGTERM end now, not when the task has.
        os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    from suture_worker.compute.celery_app import serve

    _set_up_logging()
    prepare_state(config)
    serve(config, drain)


def main(arguments: list[str]) -> None:
    """Run one part as a process of its own: `PART SITE.TOML PARENT`."""
    name, path, parent = arguments
    confine.die_with_parent(int(parent))
    try:
        config = load_site(path)
        if name == "redis":
            command = broker.redis_command(config)
            broker.socket_path(config).unlink(missing_ok=True)  # a killed one's
            os.execv(command[0], command)  # noqa: S606 - keeps the process, and with it the tie to its parent
        {"agent": run_agent, "worker": run_worker}[name](config)
    except SutureError as error:
        _end(name, error)
    except OSError as error:
        log.exception("fault", part=name)
        _end(name, trouble(error))


def _end(name: str, error: SutureError) -> NoReturn:
    """Say why this part ends, in the line that the site's own process reads."""
    from suture.errors import AuthError

    if isinstance(error, AuthError):
        error.hint = "ask the hub's operator for a new token of this site, and save it in [hub] token_file"
    log.error(LAST_WORDS, part=name, **error.as_dict())
    raise SystemExit(1)


def _command(name: str, config: SiteConfig) -> list[str]:
    return [sys.executable, "-m", "suture_worker", name, str(config.path), str(os.getpid())]


def _environment() -> dict[str, str]:
    """Return this process's environment without what belongs to other parts of Suture, a token say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SUTURE_")}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SutureError(
                "site.running",
                "this site runs already",
                where=str(path.parent),
                hint="stop it first, or give this one another state folder",
            ) from None
        yield


def _set_up_logging() -> None:
    os.umask(0o077)
    configure_logging("info", "suture_worker", "suture_stitching", "celery")
    log_uncaught()
