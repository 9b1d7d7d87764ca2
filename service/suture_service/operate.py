"""What a hub's operator does, as plain functions on the database: migrate, add parties and sites, make tokens.

settings = Settings(database_url="sqlite:///hub.db", store="store")
migrate(settings)
add_party(settings, "north")
token_id, token = create_token(settings, "north", ["publisher", "requester"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from sqlalchemy import Engine, inspect, text
from sqlalchemy.orm import Session

from suture_contract.errors import SutureError
from suture_contract.naming import did_you_mean
from suture_service.auth import Role
from suture_service.database import Database, open_engine, telling_of_database
from suture_service.errors import HubError, NotFound
from suture_service.hub import HubContext, utc_now
from suture_service.membership.repository import live_tokens
from suture_service.membership.service import get_site
from suture_service.observe import Metrics
from suture_service.parties import repository, service
from suture_service.parties.service import checked_name, is_online
from suture_service.settings import Settings
from suture_service.sites.service import add_site as add_site_row
from suture_service.storage import open_store
from suture_service.tables import Party

if TYPE_CHECKING:
    from alembic.config import Config

ROLES: tuple[Role, ...] = get_args(Role)
_ALL = 100_000


@dataclass(frozen=True)
class SiteRow:
    """A site: `online` where it asked for work recently, `suspended` where it is not let in for now."""

    name: str
    online: bool
    suspended: bool
    last_seen_at: datetime | None
    #: As it last said; None where it said none.
    version: str | None


@dataclass(frozen=True)
class PartyRow:
    """A party with its sites; `suspended` where none of its tokens opens anything for now."""

    name: str
    created_at: datetime
    suspended: bool
    sites: tuple[SiteRow, ...]


@dataclass(frozen=True)
class TokenRow:
    """A token without its secret."""

    id: str
    name: str | None
    site: str | None
    roles: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def migrations_folder() -> Path:
    """Return where the migrations are: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parents[1] / "migrations"


def alembic_config(settings: Settings) -> Config:
    """Return the configuration that Alembic's own commands need."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["database_url"] = settings.database_url
    return config


def migrate(settings: Settings) -> None:
    """Bring the database to the present schema. Safe to repeat, and from several processes at once.

    All of it is one transaction: what fails changes nothing (`hub.migration`).
    """
    from alembic import command  # a hub that serves has no need of it, and starts sooner

    with telling_of_database():
        engine = open_engine(settings.database_url)
        try:
            before = _schema_of(engine)
            _refuse_newer(before)
        finally:
            engine.dispose()
    try:
        with telling_of_database():
            command.upgrade(alembic_config(settings), "head")
    except (SutureError, RuntimeError) as error:
        problem = error.message if isinstance(error, SutureError) else str(error)
        raise SutureError(
            "hub.migration",
            f"the database keeps the schema {before or 'none'}, and all that is in it: {problem}",
            where="database_url",
            hint="end all hubs, make room, and run `suture hub migrate` again; until it succeeds, go on with the "
            "version that wrote this schema",
        ) from None


def check_migrated(engine: Engine) -> None:
    """Raise `SutureError` unless the database has the schema this hub was written for.

    `hub.not_migrated` where it has an older one or none, `hub.newer` where it has a later one.
    """
    wanted, present = _schemas()[0], _schema_of(engine)
    _refuse_newer(present)
    if present != wanted:
        raise SutureError(
            "hub.not_migrated",
            f"the database has schema {present or 'none'}, this hub needs {wanted}",
            where="database_url",
            hint="run `suture hub migrate`",
        )


@cache
def _schemas() -> tuple[str, ...]:
    """Return the schemas that this version knows, the latest first: the file of a migration begins with its own."""
    files = (migrations_folder() / "versions").glob("[0-9]*_*.py")
    return tuple(sorted((path.name.partition("_")[0] for path in files), reverse=True))


def _schema_of(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        schema: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return schema


def _refuse_newer(schema: str | None) -> None:
    if schema is not None and schema not in _schemas():
        raise SutureError(
            "hub.newer",
            f"the database has schema {schema}, which a later version of the hub has made",
            where="database_url",
            hint="install that version, or a later one; a backup from before can be restored into a new database",
        )


def add_party(settings: Settings, name: str) -> str:
    """Add a party and return its name; raises `SutureError` (`name.invalid`, `party.exists`)."""
    with writing(settings) as session:
        return service.add_party(session, name, utc_now()).name


def checked_roles(roles: Sequence[str], where: str) -> list[Role]:
    """Return roles; raises `SutureError` `role.unknown` for one that is none."""
    for role in roles:
        if role not in ROLES:
            raise HubError("role.unknown", f"{role!r} is no role", where=where, hint=did_you_mean(role, ROLES))
    return cast("list[Role]", list(roles))


def create_token(
    settings: Settings, party: str, roles: Sequence[str], *, name: str | None = None, days: int | None = None
) -> tuple[str, str]:
    """Make a token of a party, for good or for some days, and return `(id, secret)`; the secret is kept nowhere."""
    checked = checked_roles(roles, "roles")
    if name is not None:
        checked_name(name, "name")
    with writing(settings) as session:
        owner = service.get_party(session, party)
        token, secret = service.add_token(session, owner, checked, utc_now(), name=name, days=days)
        return token.id, secret


def revoke_token(settings: Settings, token_id: str) -> None:
    """End a token at once; raises `SutureError` (`not_found`)."""
    with writing(settings) as session:
        token = repository.get_token(session, token_id)
        if token is None:
            raise NotFound(f"no token {token_id!r}")
        service.end(session, token, utc_now())


def add_site(settings: Settings, party: str, name: str) -> str:
    """Add a site to a party and return its token, which is kept nowhere."""
    with writing(settings) as session:
        site = add_site_row(session, service.get_party(session, party), name, utc_now())
        return service.add_site_token(session, site, utc_now())[1]


def add_site_token(settings: Settings, party: str, name: str) -> tuple[str, list[str]]:
    """Add another token of a site; return it, which is kept nowhere, and the ids of the others that open something."""
    with writing(settings) as session:
        owner = service.get_party(session, party)
        site = get_site(session, owner, name)
        others = live_tokens(session, utc_now(), party_id=owner.id, site_id=site.id)
        ids = [token.id for token in others]
        return service.add_site_token(session, site, utc_now())[1], ids


def list_parties(settings: Settings) -> list[PartyRow]:
    """Return all parties by name, with their sites."""
    now = utc_now()
    with reading(settings) as session:
        return [_row(party, now, settings.online_seconds) for party in repository.list_parties(session, None, _ALL)]


def _row(party: Party, now: datetime, online_seconds: float) -> PartyRow:
    sites = tuple(
        SiteRow(
            site.name,
            is_online(site, now, online_seconds),
            site.suspended_at is not None,
            site.last_seen_at,
            site.version,
        )
        for site in party.sites
        if site.removed_at is None
    )
    return PartyRow(party.name, party.created_at, party.suspended_at is not None, sites)


def list_tokens(settings: Settings, party: str) -> list[TokenRow]:
    """Return a party's tokens and those of its sites, without secrets."""
    with reading(settings) as session:
        owner = service.get_party(session, party)
        return [
            TokenRow(
                token.id,
                token.name,
                token.site.name if token.site else None,
                tuple(token.roles),
                token.created_at,
                token.expires_at,
                token.last_used_at,
                token.revoked_at,
            )
            for token in repository.list_tokens(session, owner.id, None, _ALL)
        ]


@contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """A transaction on the database of these settings that changes nothing."""
    with _open(settings) as database, database.reading() as session:
        yield session


@contextmanager
def writing(settings: Settings) -> Iterator[Session]:
    """A transaction on the database of these settings that commits at the end."""
    with _open(settings) as database, database.writing() as session:
        yield session


@contextmanager
def running(settings: Settings) -> Iterator[HubContext]:
    """What a hub of these settings works with, for a command that does a hub's own work beside it."""
    with _open(settings) as database:
        hub = HubContext(settings, database, open_store(settings), Metrics())
        hub.set_clock()
        yield hub


@contextmanager
def _open(settings: Settings) -> Iterator[Database]:
    with telling_of_database():
        database = Database(settings.database_url)
        try:
            check_migrated(database.engine)
            yield database
        finally:
            database.close()
