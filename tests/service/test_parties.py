"""Parties, tokens, sites, roles."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from tests.service.jobs import refusal

from suture_contract.errors import SutureError
from suture_service import operate


def test_a_role_that_is_none_is_asked_about(settings):
    operate.migrate(settings)
    for roles, meant in ((["publsher"], "did you mean 'publisher'?"), (["king"], "there are: operator, admin")):
        with pytest.raises(SutureError) as caught:
            operate.create_token(settings, "north", roles)
        assert caught.value.code == "role.unknown"
        assert meant in caught.value.hint


def test_whoami(world):
    assert world.north.get("/v1/whoami").json() == {
        "party": "north",
        "kind": "party",
        "roles": ["publisher", "reader", "requester"],
        "site": None,
    }
    site = world.sites["south"].get("/v1/whoami").json()
    assert (site["party"], site["kind"], site["site"]) == ("south", "site", "south-site")


def test_a_missing_or_wrong_token(world):
    wrong = ("Bearer", "Bearer ", "Bearer x", "Bearer suture_party_wrong", "Basic bm9ydGg6eA==", "Bearer ü")
    for headers in ({}, *({"Authorization": value.encode()} for value in wrong)):
        answer = world.client.get("/v1/whoami", headers=headers)
        assert refusal(answer, 401)["code"] == "auth.invalid"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]


def test_no_endpoint_answers_without_a_token(world):
    operations = [
        (path, method)
        for path, item in world.client.get("/openapi.json").json()["paths"].items()
        for method in item
        if path.startswith("/v1")
    ]
    assert len(operations) > 25
    for path, method in operations:
        answer = world.client.request(method, path.replace("{", "").replace("}", ""))
        assert refusal(answer, 401)["code"] == "auth.invalid", path


def test_a_revoked_token_is_refused_at_once(world):
    admin = world.actor("north", "admin")
    made = admin.post("/v1/parties/north/tokens", {"roles": ["requester"], "name": "laptop"}).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert made["token"].startswith("suture_party_")
    assert world.client.get("/v1/whoami", headers=headers).json()["roles"] == ["reader", "requester"]
    listed = {token["id"]: token for token in admin.get("/v1/parties/north/tokens").json()["items"]}
    assert listed[made["id"]]["name"] == "laptop"
    assert listed[made["id"]]["last_used_at"] is not None
    assert made["token"] not in str(listed)
    assert "north-site" in {token["site"] for token in listed.values()}
    for _ in range(2):
        assert admin("DELETE", f"/v1/tokens/{made['id']}").status_code == 204
    assert refusal(world.client.get("/v1/whoami", headers=headers), 401)["code"] == "auth.invalid"


def test_tokens_are_kept_as_digests_only(world):
    with world.hub.database.engine.connect() as connection:
        rows = str(connection.execute(text("SELECT * FROM tokens")).all())
    assert world.north.token not in rows
    assert world.sites["north"].token not in rows


def test_an_admin_rules_over_its_own_party_only(world):
    admin = world.actor("north", "admin")
    assert refusal(admin.post("/v1/parties", {"name": "west"}), 403)["code"] == "auth.forbidden"
    assert refusal(admin.post("/v1/parties/south/tokens", {"roles": []}), 403)["code"] == "auth.forbidden"
    assert refusal(admin.get("/v1/parties/south/tokens"), 403)["code"] == "auth.forbidden"
    assert refusal(admin.post("/v1/parties/south/sites", {"name": "x"}), 403)["code"] == "auth.forbidden"
    assert refusal(admin.post("/v1/parties/north/tokens", {"roles": ["operator"]}), 403)["where"] == "roles"
    south = operate.create_token(world.settings, "south", ["admin"])[0]
    assert refusal(admin("DELETE", f"/v1/tokens/{south}"), 404) == {
        **refusal(admin("DELETE", "/v1/tokens/tok_nothing"), 404)
    }
    site = admin.post("/v1/parties/north/sites", {"name": "second"}).json()
    assert site["site"] == "second"
    assert site["token"].startswith("suture_site_")
    assert refusal(admin.post("/v1/parties/north/sites", {"name": "second"}), 409)["code"] == "site.exists"


def test_other_roles_rule_over_nothing(world):
    for role in ("publisher", "requester", "reader"):
        actor = world.actor("north", role)
        assert refusal(actor.post("/v1/parties/north/tokens", {"roles": []}), 403)["code"] == "auth.forbidden"
        assert refusal(actor.post("/v1/parties/north/sites", {"name": "x"}), 403)["code"] == "auth.forbidden"


def test_an_operator_adds_parties(world):
    assert world.operator.post("/v1/parties", {"name": "west"}).status_code == 201
    assert refusal(world.operator.post("/v1/parties", {"name": "west"}), 409)["code"] == "party.exists"
    assert refusal(world.operator.post("/v1/parties", {"name": "a b"}), 422)["where"] == "name"
    made = world.operator.post("/v1/parties/west/tokens", {"roles": ["admin"]}).json()
    answer = world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {made['token']}"})
    assert answer.json()["party"] == "west"
    assert refusal(world.operator.post("/v1/parties/nowhere/tokens", {"roles": []}), 404)["code"] == "not_found"
    assert refusal(world.operator.post("/v1/parties/west/tokens", {"roles": ["king"]}), 422)["where"] == "roles.0"


def test_parties_are_listed_with_their_sites(world):
    world.sites["south"].lease()
    parties = {party["name"]: party for party in world.north.get("/v1/parties").json()["items"]}
    assert list(parties) == ["east", "north", "operators", "south"]
    seen = {"name": "south-site", "online": True, "suspended": False, "last_seen_at": None, "version": None}
    assert parties["south"]["sites"] == [seen]
    assert parties["north"]["sites"] == [{**seen, "name": "north-site", "online": False}]
    world.later(91)
    parties = {party["name"]: party for party in world.north.get("/v1/parties").json()["items"]}
    assert parties["south"]["sites"] == [{**seen, "online": False}]
    first = world.north.get("/v1/parties", params={"limit": 3}).json()
    rest = world.north.get("/v1/parties", params={"cursor": first["next"]}).json()
    assert [party["name"] for party in rest["items"]] == ["south"]


def test_operating_the_hub_without_a_server(world):
    settings = world.settings
    token_id, secret = operate.create_token(settings, "north", ["admin"], name="laptop")
    assert world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    (row,) = [row for row in operate.list_tokens(settings, "north") if row.id == token_id]
    assert (row.name, row.roles, row.revoked_at) == ("laptop", ("admin", "reader"), None)
    operate.revoke_token(settings, token_id)
    assert world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    (party,) = [row for row in operate.list_parties(settings) if row.name == "north"]
    assert [(site.name, site.online, site.last_seen_at) for site in party.sites] == [("north-site", False, None)]
    for code, call in {
        "not_found": lambda: operate.revoke_token(settings, "tok_x"),
        "party.exists": lambda: operate.add_party(settings, "north"),
        "name.invalid": lambda: operate.add_party(settings, "a/b"),
        "role.unknown": lambda: operate.create_token(settings, "north", ["king"]),
        "site.exists": lambda: operate.add_site(settings, "north", "north-site"),
    }.items():
        with pytest.raises(SutureError) as error:
            call()
        assert error.value.code == code
    with pytest.raises(SutureError, match="nowhere"):
        operate.create_token(settings, "nowhere", [])


def test_a_site_gets_another_token_and_the_one_before_goes_on_until_it_is_revoked(world):
    world.ask().raise_for_status()
    before = world.sites["north"]
    secret, (token_id,) = operate.add_site_token(world.settings, "north", "north-site")
    after = type(before)(world.client, secret)
    assert before.get("/v1/whoami").json() == after.get("/v1/whoami").json()
    operate.revoke_token(world.settings, token_id)
    assert before.get("/v1/whoami").status_code == 401
    assert after.lease()["kind"] == "fit"
    with pytest.raises(SutureError, match="no site 'other'"):
        operate.add_site_token(world.settings, "north", "other")
