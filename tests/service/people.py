"""How an admin registers people, and how they sign in."""

from __future__ import annotations

PEOPLE = "/v1/parties/north/people"


def login(world, token, **body):
    return world.client.post("/v1/login", json={"id_token": token, **body})


def add(actor, name="a.berg", *, path=PEOPLE, roles=("publisher",), **known):
    return actor.post(path, {"name": name, "roles": list(roles), **(known or {"subject": "user-1"})})
