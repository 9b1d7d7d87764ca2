"""What the hub holds of a person is shown and erased, and the audit log is still verified."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from tests.identity_provider import Provider
from tests.service.people import add, login

from suture_contract.console.terminal import Format
from suture_contract.errors import SutureError
from suture_service.audit import chain
from suture_service.commands import people as commands
from suture_service.people import erasure
from suture_service.tables import AuditEntry, Person, Token


@pytest.fixture
def world(start, provider):
    return start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)


@pytest.fixture
def admin(world):
    return world.actor("north", "admin")


def test_a_person_is_shown_and_erased_and_the_log_is_still_verified(world, admin, provider, monkeypatch, capsys):
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", world.settings.database_url)
    monkeypatch.setenv("SUTURE_HUB_STORE", world.settings.store)
    add(admin, email="a.berg@north.example")
    add(admin, "other", subject="other-1")
    token = login(world, provider.sign(sub="berg-1", email="a.berg@north.example", email_verified=True)).json()
    person = type(world.north)(world.client, token["token"])
    assert person.publish("north/a.berg").status_code == 201  # a model may be called as a person is
    with world.hub.database.reading() as session:
        noted = chain.verify(session)
    capsys.readouterr()
    commands.show("north", "a.berg", format=Format.json)
    held = json.loads(capsys.readouterr().out)
    assert (held["registered"]["email"], held["registered"]["subject"]) == ("a.berg@north.example", "berg-1")
    assert [each["id"] for each in held["tokens"]] == [token["id"]]
    assert {each["action"] for each in held["entries"]} == {"person.add", "person.login", "model.commit"}
    commands.show("north", "a.berg")
    assert "1 tokens of logins, 3 entries" in capsys.readouterr().out
    with pytest.raises(SutureError) as asked:
        commands.erase("north", "a.berg")
    assert asked.value.code == "command.unconfirmed"
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "redact", lambda *_arguments, **_options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            commands.erase("north", "a.berg", yes=True)
    commands.erase("north", "a.berg", yes=True)
    assert person.get("/v1/whoami").status_code == 401
    with pytest.raises(SutureError) as gone:
        commands.show("north", "a.berg")
    assert gone.value.code == "not_found"
    commands.show("north", "other")
    with world.hub.database.reading() as session:
        chain.verify(session, noted)  # what was noted before holds
        rows = [entry for table in (Person, Token, AuditEntry) for entry in session.scalars(select(table))]
        known = {str(value) for row in rows for value in vars(row).values()}
        assert not [text for text in known if "berg" in text and "north/a.berg" not in text]
        redacted = session.scalars(select(AuditEntry).where(AuditEntry.redacted_by.is_not(None))).all()
        assert {(entry.action, entry.what) for entry in redacted} == {
            ("person.add", "north/erased"),
            ("person.login", token["id"]),
            ("model.commit", "north/a.berg"),
            ("token.revoke", token["id"]),
        }
        assert {(entry.token_id, entry.address) for entry in redacted} == {(None, None)}


@pytest.mark.parametrize("change", ["content", "digest", "witness"])
def test_who_redacts_without_an_entry_that_says_so_is_found_out(world, admin, change):
    add(admin, subject="berg-1")
    with world.hub.database.writing() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "person.add")).one()
        entry.redacted_by, entry.what = 10_000, "north/erased"
        if change == "digest":
            entry.redacted_by, entry.digest = None, "0" * 64
        if change == "content":
            entry.redacted_by = None
    with world.hub.database.reading() as session, pytest.raises(SutureError) as broken:
        chain.verify(session)
    assert broken.value.code == "audit.broken"
