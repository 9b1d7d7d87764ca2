"""A hub and sites on one machine, under one folder: what `suture up` keeps running and `suture demo` plays on.

    with Installation(Path(".suture/up")) as here:
        here.start_hub()
        token = here.add_party("north")
        here.add_site("north", datasets={"digits": {"path": "/data/digits.npz", "format": "npz", "labels": [...]}})
        here.start_site("north")
        here.wait_until_online("north")

Folder: `hub/` (database, models), `<party>/token` and `<party>/site/` (configuration, its token, state), `*.log`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from suture.credentials import read_private, write_private
from suture.errors import HubError
from suture.http import Connection
from suture.keys import Keys
from suture.processes import Processes
from suture_contract.files import read_text, write_text
from suture_contract.model.signature import create_key
from suture_contract.toml_text import toml
from suture_local.folder_lock import lock
from suture_local.ports import free_port
from suture_service import operate
from suture_service.settings import Settings
from suture_worker import load_site
from suture_worker.console.session import LINK

PORT, CONSOLE_PORT = 8420, 8430
_START_SECONDS = 90.0
_SITE = "main"


class Installation:
    """Everything it started is stopped when its block ends. One process at a time may use a folder.

    `database_url` is SQLite in the folder by default; `port` is the preferred one, any free one if None or taken.
    """

    def __init__(self, root: Path, *, port: int | None = None, database_url: str | None = None) -> None:
        self.root = root.absolute()
        self._preferred = port
        self._database_url = database_url or f"sqlite:///{self.root / 'hub' / 'hub.db'}"
        self._lock: IO[bytes] | None = None
        self.processes = Processes()
        self.url = ""

    def __enter__(self) -> Self:
        for folder in (self.root, self.root / "hub"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock(self.root)
        self.processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.__exit__(kind, error, trace)
        if self._lock is not None:
            self._lock.close()

    @property
    def settings(self) -> Settings:
        """The hub's settings."""
        return Settings(database_url=self._database_url, store=str(self.root / "hub" / "models"))

    # Hub

    def start_hub(self) -> str:
        """Migrate the database, start the hub and return its URL; `wait_until_ready` before the first request."""
        operate.migrate(self.settings)
        port = free_port(self._preferred)
        self.processes.start(
            "hub",
            _suture("hub", "serve", "--port", str(port)),
            log=self.root / "hub.log",
            environment={
                "SUTURE_HUB_DATABASE_URL": self.settings.database_url,
                "SUTURE_HUB_STORE": self.settings.store,
            },
        )
        self.url = f"http://127.0.0.1:{port}"
        return self.url

    def wait_until_ready(self) -> None:
        """Wait until the hub serves requests."""
        with Connection(self.url, attempts=1, timeout=5) as hub:
            self.processes.wait_until(
                lambda: _answers(hub, "/readyz"), "until the hub is ready", seconds=_START_SECONDS
            )

    # Parties and sites

    def token_file(self, party: str) -> Path:
        """Where the party's token is."""
        return self.root / party / "token"

    def token(self, party: str) -> str:
        """Return the party's token."""
        return read_private(self.token_file(party))

    def add_party(self, party: str, roles: Sequence[str] = ("publisher", "requester")) -> bool:
        """Add a party with a token, stored for this user alone; returns False if it was there already."""
        if self.token_file(party).exists():
            return False
        if party not in {row.name for row in operate.list_parties(self.settings)}:
            operate.add_party(self.settings, party)
        _, secret = operate.create_token(self.settings, party, list(roles))
        self.token_file(party).parent.mkdir(exist_ok=True, mode=0o700)
        private, public = create_key()
        write_private(self.key_file(party), private.decode("ascii"))
        write_text(self.key_file(party).with_suffix(".pub"), public.pem)
        write_private(self.token_file(party), secret + "\n")
        return True

    def key_file(self, party: str) -> Path:
        """Where the private key is with which the party signs its models; its public key is beside it."""
        return self.root / party / "key.pem"

    def signing_key(self, party: str) -> Path:
        """Return `key_file`, with the public key registered at the hub, which must be ready."""
        token, secret = operate.create_token(self.settings, party, ["admin"])
        with Connection(self.url, secret) as hub:
            Keys(hub).register(party, party, read_text(self.key_file(party).with_suffix(".pub")))
        operate.revoke_token(self.settings, token)
        return self.key_file(party)

    def site_file(self, party: str) -> Path:
        """Where the configuration of the party's site is."""
        return self.root / party / "site" / "site.toml"

    def add_site(
        self,
        party: str,
        datasets: Mapping[str, Mapping[str, Any]],
        *,
        allow: Mapping[str, Sequence[str]],
        limits: Mapping[str, Any] | None = None,
        ask: bool = False,
    ) -> Path:
        """Write the party's site.toml, keeping one that is there but for the hub's URL; returns its path.

        `allow` is party -> actions; with `ask`, what other parties want waits for a person, and the hub hears which
        datasets the party's own people may fit on. Every rule is for all
        `datasets`, and trusts the models of the parties that are here by now: the own party's as they are, others'
        where they are signed. Paths in `datasets` should be absolute.
        """
        path = self.site_file(party)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = path.parent / "token"
        if not token.exists():
            rows = operate.list_parties(self.settings)
            names = {site.name for row in rows if row.name == party for site in row.sites}
            name = next(name for name in (_SITE, *(f"{_SITE}{n}" for n in range(2, 1000))) if name not in names)
            write_private(token, operate.add_site(self.settings, party, name) + "\n")
        if path.exists():
            write_text(path, _with_url(read_text(path), self.url))
        else:
            keys = {key.parent.name: key for key in sorted(self.root.glob("*/key.pub")) if key.parent.name != party}
            write_text(path, _site_toml(self.url, party, datasets, allow, limits or {}, keys, ask=ask))
        return path

    def start_site(self, party: str) -> None:
        """Start the party's site: agent, Celery worker and Redis."""
        path = self.site_file(party)
        self.processes.start(f"{party}'s site", _suture("site", "run", str(path)), log=self.root / f"{party}.log")

    def start_console(self, party: str, port: int) -> Path:
        """Start the console of the party's site at the preferred port; return the file with the link to it."""
        link = load_site(self.site_file(party)).state / LINK
        link.unlink(missing_ok=True)
        command = _suture("site", "console", str(self.site_file(party)), "--port", str(free_port(port)))
        self.processes.start(f"{party}'s console", command, log=self.root / f"{party}-console.log")
        self.processes.wait_until(link.exists, "until the console has a link", seconds=_START_SECONDS)
        return link

    def wait_until_online(self, *parties: str) -> None:
        """Wait until the hub has heard from the sites of these parties."""
        with Connection(self.url, self.token(parties[0]), attempts=1, timeout=5) as hub:

            def all_online() -> bool:
                try:
                    known = list(hub.pages("/v1/parties"))
                except HubError:
                    return False
                return {item["name"] for item in known if any(site["online"] for site in item["sites"])} >= set(parties)

            self.processes.wait_until(all_online, f"until {', '.join(parties)} ask for work", seconds=_START_SECONDS)


def _suture(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "suture", *arguments]


def _answers(hub: Connection, path: str) -> bool:
    try:
        hub.get(path)
    except HubError:
        return False
    return True


def _site_toml(
    url: str,
    party: str,
    datasets: Mapping[str, Mapping[str, Any]],
    allow: Mapping[str, Sequence[str]],
    limits: Mapping[str, Any],
    keys: Mapping[str, Path],
    *,
    ask: bool = False,
) -> str:
    lines = [
        "[hub]",
        f"url = {toml(url)}",
        'token_file = "token"',
        *(["tell_datasets = true"] if ask else []),
        "",
        "[site]",
        'state = "state"',
        'device = "auto"',
    ]
    lines += ["# Models of this party need no signature.", f"party = {toml(party)}"]
    if limits:
        lines += ["", "[limits]", *(f"{key} = {toml(value)}" for key, value in limits.items())]
    for name, fields in datasets.items():
        lines += ["", f"[datasets.{toml(name)}]", *(f"{key} = {toml(value)}" for key, value in fields.items())]
    if keys:
        lines += ["", "[keys]", *(f"{toml(name)} = {toml(path)}" for name, path in keys.items())]
    lines += ["", "[policy]", "min_patients = 11"]
    for asking, actions in allow.items():
        lines += ["", "[[policy.allow]]"]
        lines += [f"parties = {toml([asking])}", f"actions = {toml(actions)}", f"datasets = {toml(list(datasets))}"]
        lines += [f"members_from = {toml([party, *keys])}"]
        lines += [f"signed_by = {toml(list(keys))}"] if keys else []
        if ask and asking != party:
            lines.append('approval = "ask"')
        if "evaluate" in actions:  # on one machine nobody asks but its own user
            lines.append("evaluations_per_month = 1000")
    return "\n".join(lines) + "\n"


def _with_url(text: str, url: str) -> str:
    """Return a site.toml that was written here or edited since, with `url` in its [hub] table."""
    lines = text.splitlines()
    table = ""
    for index, line in enumerate(lines):
        if line.strip().startswith("["):
            table = line.strip()
        elif table == "[hub]" and line.split("=")[0].strip() == "url":
            lines[index] = f"url = {toml(url)}"
    return "\n".join(lines) + "\n"
