"""Commands of a hub's operator. They work on the hub's database, at the hub's machine; no token is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints
from suture_contract.errors import SutureError
from suture_service.commands.documents import (
    AddedParty,
    AddedSite,
    CreatedToken,
    ListedParty,
    ListedSite,
    ListedToken,
    PartySite,
)
from suture_service.commands.options import PartyArgument, RoleOption
from suture_service.settings import read_settings

if TYPE_CHECKING:
    from suture_service.operate import PartyRow, SiteRow, TokenRow


def serve(
    host: Annotated[str, typer.Option(help="address to listen on; behind a TLS proxy keep 127.0.0.1")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8420,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate chain, PEM: speak TLS without a proxy")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="the certificate's private key, PEM, without password")] = None,
) -> None:
    """Run the hub until it is told to stop (SIGTERM, Ctrl-C).

    To other machines it speaks TLS only, or behind a proxy named in SUTURE_HUB_PROXIES.

    \b
    Examples:
      suture hub serve --port 8420
      suture hub serve --host 0.0.0.0 --port 443 --tls-cert chain.pem --tls-key key.pem
    """
    from suture_service.main import Tls, serve

    if (tls_cert is None) != (tls_key is None):
        raise SutureError("hub.tls", "--tls-cert and --tls-key belong together", where="--tls-cert, --tls-key")
    tls = Tls(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None
    serve(read_settings(), host, port, tls)


def migrate() -> None:
    """Bring the database to this version's schema. Safe to repeat.

    \b
    Example:
      SUTURE_HUB_DATABASE_URL=postgresql://hub@db/suture suture hub migrate
    """
    from suture_service import operate

    operate.migrate(read_settings())
    notes.print("the database has this version's schema")


@prints(AddedParty)
def add_party(name: PartyArgument, format: FormatOption = Format.text) -> None:
    """Add a party.

    \b
    Example:
      suture hub party add north
    """
    from suture_service import operate

    added = operate.add_party(read_settings(), name)
    if format is Format.json:
        print_json(AddedParty(added))
    else:
        console.print(f"added {added}")
        notes.print(f"next:  suture hub token create {added} --role publisher --role requester")


@prints(list[ListedParty])
def list_parties(format: FormatOption = Format.text) -> None:
    """List the parties and their sites.

    \b
    Example:
      suture hub party list --format json
    """
    from suture_service import operate

    parties = operate.list_parties(read_settings())
    if format is Format.json:
        print_json(
            [
                ListedParty(
                    row.name,
                    row.created_at,
                    row.suspended,
                    [
                        PartySite(site.name, site.online, site.suspended, site.last_seen_at, site.version)
                        for site in row.sites
                    ],
                )
                for row in parties
            ]
        )
        return
    rows = [
        (
            f"{row.name} (suspended)" if row.suspended else row.name,
            ", ".join(f"{site.name} ({_presence(row, site)})" for site in row.sites),
            f"{row.created_at:%Y-%m-%d %H:%M}",
        )
        for row in parties
    ]
    print_table(
        ("party", "sites", "since (UTC)"),
        rows,
        prose=("sites",),
        empty="no parties; add one with `suture hub party add NAME`",
    )


def _presence(row: PartyRow, site: SiteRow) -> str:
    if site.suspended or row.suspended:
        return "suspended"
    return "online" if site.online else "offline"


@prints(CreatedToken)
def create_token(
    party: PartyArgument,
    role: RoleOption = None,
    name: Annotated[str | None, typer.Option(help="a name to recognise it by")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3660, help="how long it is valid; without: for good")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Make a token of a party and print it, this once.

    \b
    Examples:
      suture hub token create north --role publisher --role requester
      (umask 077; suture hub token create north > token)
    """
    from suture_service import operate

    token_id, secret = operate.create_token(read_settings(), party, role or [], name=name, days=days)
    if format is Format.json:
        print_json(CreatedToken(token_id, secret))
    else:
        print(secret)
        notes.print(f"id {token_id}; the token is shown this once, only its hash is kept")


@prints(list[ListedToken])
def list_tokens(party: PartyArgument, format: FormatOption = Format.text) -> None:
    """List a party's tokens and those of its sites, without secrets.

    \b
    Example:
      suture hub token list north
    """
    from suture_service import operate

    tokens = operate.list_tokens(read_settings(), party)
    if format is Format.json:
        print_json(
            [
                ListedToken(
                    id=row.id,
                    name=row.name,
                    site=row.site,
                    roles=list(row.roles),
                    created_at=row.created_at,
                    expires_at=row.expires_at,
                    last_used_at=row.last_used_at,
                    revoked_at=row.revoked_at,
                )
                for row in tokens
            ]
        )
        return
    rows = [
        (
            row.id,
            row.name or "",
            f"site {row.site}" if row.site else ", ".join(row.roles) or "reader",
            f"{row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never",
            _state(row),
        )
        for row in tokens
    ]
    print_table(
        ("id", "name", "for", "last used (UTC)", "state"),
        rows,
        empty="no tokens",
        prose=("for",),
        spare=("last used (UTC)",),
    )


def _state(row: TokenRow) -> str:
    if row.revoked_at:
        return f"revoked {row.revoked_at:%Y-%m-%d %H:%M}"
    return f"valid until {row.expires_at:%Y-%m-%d %H:%M}" if row.expires_at else "valid"


def revoke_token(token_id: Annotated[str, typer.Argument(metavar="ID", help="the token's id, not the token")]) -> None:
    """End a token at once.

    \b
    Example:
      suture hub token revoke tok_1f2e3d
    """
    from suture_service import operate

    operate.revoke_token(read_settings(), token_id)
    notes.print(f"revoked {token_id}")


@prints(AddedSite)
def add_site(
    party: PartyArgument,
    name: Annotated[str, typer.Argument(help="the site's name within the party")],
    format: FormatOption = Format.text,
) -> None:
    """Add a site to a party and print its token, this once: it belongs in the site's token file.

    \b
    Example:
      suture hub site add north main
    """
    from suture_service import operate

    secret = operate.add_site(read_settings(), party, name)
    if format is Format.json:
        print_json(AddedSite(party, name, secret))
    else:
        print(secret)
        notes.print("shown this once; hand it to the site: it goes into the file that site.toml calls token_file")


@prints(AddedSite)
def renew_site_token(
    party: PartyArgument,
    name: Annotated[str, typer.Argument(help="the site's name within the party")],
    format: FormatOption = Format.text,
) -> None:
    """Make another token of a site and print it, this once; those it has go on until they are revoked.

    \b
    Example:
      suture hub site token north main
    """
    from suture_service import operate

    secret, others = operate.add_site_token(read_settings(), party, name)
    if format is Format.json:
        print_json(AddedSite(party, name, secret))
        return
    print(secret)
    notes.print("shown this once; the site goes by it once it is in the file that site.toml calls token_file")
    for token_id in others:
        notes.print(f"then end the one before: suture hub token revoke {token_id}")


@prints(list[ListedSite])
def list_sites(format: FormatOption = Format.text) -> None:
    """List all sites, when they last asked for work, and their version.

    \b
    Example:
      suture hub site list
    """
    from suture_service import operate

    parties = operate.list_parties(read_settings())
    sites = [(row.name, site, _presence(row, site)) for row in parties for site in row.sites]
    if format is Format.json:
        print_json(
            [
                ListedSite(party, site.name, state == "online", state == "suspended", site.last_seen_at, site.version)
                for party, site, state in sites
            ]
        )
    else:
        rows = [
            (
                party,
                site.name,
                state,
                f"{site.last_seen_at:%Y-%m-%d %H:%M}" if site.last_seen_at is not None else "never",
                site.version or "unknown",
            )
            for party, site, state in sites
        ]
        header = ("party", "site", "state", "last seen (UTC)", "version")
        print_table(header, rows, empty="no sites; add one with `suture hub site add PARTY NAME`")
