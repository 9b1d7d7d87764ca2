"""Which rules are in force: an edited site.toml is, from before the next lease and the next result on.

`state/rules.json` tells the command line what the running site goes by, and what keeps it from going by the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from suture_contract.errors import SutureError
from suture_worker import files
from suture_worker.config import SiteConfig, Version, refreshed
from suture_worker.rules.assurance import HOW, assurance, lacking

log = structlog.get_logger(__name__)


class RulesInForce(BaseModel):
    """What a running site goes by, since when; `problem` says why it leases nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Version
    since: AwareDatetime
    problem: str | None = None


class InForce:
    """The configuration that a running agent goes by. `users` are told of each new one; what they raise refuses it."""

    def __init__(self, config: SiteConfig, users: Sequence[Callable[[SiteConfig], None]]) -> None:
        self._config = config
        self._users = users
        self._since = datetime.now(UTC)
        self._written: str | None = ""
        self._turn = threading.Lock()

    def refresh(self) -> None:
        """Go by what the file says now; raises `SutureError` while that is not in order, or lets nobody do anything."""
        with self._turn:
            try:
                self._take(refreshed(self._config))
                _some_rule_holds(self._config)
            except SutureError as error:
                self._tell(f"{error.message}; {error.hint}" if error.hint else error.message)
                raise
            self._tell(None)

    def _take(self, now: SiteConfig) -> None:
        if now is self._config and self._written != "":
            return
        for use in self._users:
            use(now)
        if now is not self._config:
            self._config, self._since, self._written = now, datetime.now(UTC), ""
            log.info("site.toml was edited and is in force", version=str(now.version))
        for index, problem in lacking(now):
            log.error("a rule is not in force", rule=index, problem=problem, next=HOW)

    def _tell(self, problem: str | None) -> None:
        """Write down what is in force, where that is not what is written there."""
        if problem == self._written or self._config.version is None:
            return
        in_force = RulesInForce(version=self._config.version, since=self._since, problem=problem)
        files.write(_file(self._config.state), in_force.model_dump_json(indent=1))
        self._written = problem


def rules_in_force(state: Path) -> RulesInForce | None:
    """Return what the site that keeps `state` went by when it last looked; None before its first start."""
    try:
        return RulesInForce.model_validate_json(_file(state).read_bytes())
    except (OSError, ValidationError):
        return None


def _some_rule_holds(config: SiteConfig) -> None:
    rules = config.policy.allow
    if rules and not any(assurance(rule, config) for rule in rules):
        raise SutureError("policy.lacking", lacking(config)[0][1], where=str(config.path), hint=HOW)


def _file(state: Path) -> Path:
    return state / "rules.json"
