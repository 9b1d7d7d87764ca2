"""People who sign in with an identity provider: who gets a token, who does not, and when it ends."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.identity_provider import Provider
from tests.service.people import PEOPLE, add, login
from tests.service.test_live import Live

from suture_contract.errors import SutureError
from suture_local.ports import free_port
from suture_service import identity
from suture_service.hub import SIGN_INS
from suture_service.parties.service import get_party
from suture_service.people import service
from suture_service.settings import Settings, read_settings


@pytest.fixture
def world(start, provider):
    return start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)


@pytest.fixture
def admin(world):
    return world.actor("north", "admin")


def refusal(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["code"]


def roles_of(world, token):
    return world.client.get("/v1/whoami", headers={"Authorization": f"Bearer {token}"})


def test_a_person_signs_in_and_acts_for_the_party(world, admin, provider):
    assert world.client.get("/v1/login").json() == {"issuer": provider.url, "client_id": "suture"}
    made = add(admin)
    assert made.status_code == 201
    assert (made.json()["subject"], made.json()["roles"]) == ("user-1", ["publisher"])
    answer = login(world, provider.sign())
    assert answer.status_code == 201, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    given = answer.json()
    assert (given["party"], given["roles"]) == ("north", ["publisher", "reader"])
    assert roles_of(world, given["token"]).json()["roles"] == ["publisher", "reader"]
    (listed,) = [row for row in admin.get("/v1/parties/north/tokens").json()["items"] if row["id"] == given["id"]]
    assert listed["name"] == "a.berg"
    auditor = world.actor("north", "auditor")
    (entry,) = auditor.get("/v1/audit?action=person.login").json()["items"]
    assert (entry["what"], entry["detail"]["person"]) == (given["id"], "a.berg")
    assert given["token"] not in auditor.get("/v1/audit").text
    world.later(12 * 3600 - 60)
    assert roles_of(world, given["token"]).status_code == 200
    world.later(120)
    assert roles_of(world, given["token"]).status_code == 401


def test_a_key_of_either_kind_signs(world, admin, provider):
    add(admin)
    for kid in ("rsa-1", "ec-1"):
        assert login(world, provider.sign(kid=kid)).status_code == 201


def test_a_key_without_a_name_must_be_the_only_one(world, admin, provider):
    add(admin)
    assert login(world, provider.sign(kid=None, key=provider.keys["rsa-1"])).status_code == 201
    provider.keys["rsa-2"] = own_key()
    world.hub.issuer = identity.Issuer(provider.url, Provider.CLIENT)
    assert login(world, provider.sign(kid=None, key=provider.keys["rsa-1"])).status_code == 403
    assert login(world, provider.sign(kid="rsa-1")).status_code == 201


def test_an_id_token_is_taken_once(world, admin, provider):
    add(admin)
    token = provider.sign()
    assert login(world, token).status_code == 201
    assert refusal(login(world, token), 403) == "login.used"
    # An elliptic signature has a second form, and base64 more than one: it is the same token nevertheless.
    token = provider.sign(kid="ec-1")
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    assert login(world, token).status_code == 201
    second = f"{head}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}"
    assert refusal(login(world, second), 403) == "login.used"


def b64(content):
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def unsigned(provider):
    _, body, _ = provider.sign().split(".")
    return f"{b64({'alg': 'none', 'kid': 'rsa-1', 'typ': 'JWT'})}.{body}."


def signed_with_the_public_key(provider):
    """HS256 with the text of the public key as the secret: the oldest trick."""
    import hashlib
    import hmac

    secret = provider.keys["rsa-1"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _, body, _ = provider.sign().split(".")
    text = f"{b64({'alg': 'HS256', 'kid': 'rsa-1', 'typ': 'JWT'})}.{body}"
    mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def changed(provider):
    head, body, signature = provider.sign(sub="user-2").split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    return f"{head}.{b64({**claims, 'sub': 'user-1'})}.{signature}"


def own_key():
    return rsa.generate_private_key(65537, 2048)


HOSTILE = {
    "another issuer": lambda p: p.sign(iss="https://id.example"),
    "the issuer with a slash": lambda p: p.sign(iss=f"{p.url}/"),
    "another audience": lambda p: p.sign(aud="other"),
    "for others too": lambda p: p.sign(aud=["suture", "other"]),
    "another audience, given to this client": lambda p: p.sign(aud="other", azp="suture"),
    "given to another": lambda p: p.sign(azp="other"),
    "no audience": lambda p: p.sign(aud=None),
    "expired": lambda p: p.sign(exp=int(time.time()) - 120),
    "without an end": lambda p: p.sign(exp=None),
    "from the future": lambda p: p.sign(iat=int(time.time()) + 600),
    "an hour old": lambda p: p.sign(iat=int(time.time()) - 3600),
    "without its time": lambda p: p.sign(iat=None),
    "a time that is none": lambda p: p.sign(iat=True, exp="soon"),
    "a time in words": lambda p: p.sign(iat=str(int(time.time()))),
    "times without end": lambda p: p.sign(exp=float("inf")),
    "issued at no time": lambda p: p.sign(iat=float("nan")),
    "a subject that is none": lambda p: p.sign(sub=" " * 256),
    "a subject of no characters": lambda p: p.sign(sub="\ud800"),
    "no subject": lambda p: p.sign(sub=None),
    "a nonce nobody sent": lambda p: p.sign(nonce="n"),
    "an access token": lambda p: p.sign(typ="at+jwt"),
    "a log-out token": lambda p: p.sign(events={"http://schemas.openid.net/event/backchannel-logout": {}}),
    "not signed": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "RS384": lambda p: p.sign(algorithm="RS384"),
    "an algorithm that is not the key's": lambda p: p.sign(kid="ec-1", algorithm="RS256", key=p.keys["rsa-1"]),
    "an unknown key": lambda p: p.sign(kid="rsa-9", key=own_key()),
    "an unnamed key": lambda p: p.sign(kid=None, key=own_key()),
    "a known key's name": lambda p: p.sign(key=own_key()),
    "changed after it was signed": changed,
}


def test_hostile_tokens_are_refused(world, admin, provider):
    add(admin)
    wrong = {}
    for name, make in HOSTILE.items():
        answer = login(world, make(provider))
        if answer.status_code != 403 or answer.json()["error"]["code"] != "login.refused":
            wrong[name] = answer.text
    assert wrong == {}
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 5000).decode().rstrip("=")
    for text in (f"{deep}.e30.e30", "", "x", "a.b.c", "é.é.é", "." * 50, provider.sign()[:-1] + "\0"):
        assert login(world, text).status_code in (400, 403), text
    assert login(world, provider.sign()).status_code == 201
    for nonce, given in (("n", "n"), ("n", "m"), (None, "n")):
        assert login(world, provider.sign(nonce=nonce), nonce=given).status_code == (201 if nonce == given else 403)


def test_whom_nobody_registered_gets_nothing(world, admin, provider):
    assert refusal(login(world, provider.sign()), 403) == "login.unknown"
    add(admin, email="A.Berg@North.example")
    said = {"sub": "user-9", "email": "a.berg@north.EXAMPLE"}
    for verified in (None, False, "true", 1):
        assert refusal(login(world, provider.sign(**said, email_verified=verified)), 403) == "login.unknown", verified
    assert login(world, provider.sign(**said, email_verified=True)).status_code == 201
    # From then on it is this subject: the address may be given to somebody else one day.
    taken_over = provider.sign(**said | {"sub": "user-10"}, email_verified=True)
    assert refusal(login(world, taken_over), 403) == "login.unknown"
    assert login(world, provider.sign(sub="user-9")).status_code == 201
    (person,) = admin.get(PEOPLE).json()["items"]
    assert (person["email"], person["subject"]) == ("a.berg@north.example", "user-9")


def test_removal_ends_tokens_at_once_and_a_replay_brings_none_back(world, admin, provider):
    add(admin)
    unused, used = provider.sign(), provider.sign()
    tokens = [login(world, token).json()["token"] for token in (used, provider.sign())]
    assert admin("DELETE", f"{PEOPLE}/a.berg").status_code == 204
    assert [roles_of(world, token).status_code for token in tokens] == [401, 401]
    assert [refusal(login(world, token), 403) for token in (used, unused)] == ["login.unknown"] * 2
    assert admin.get(PEOPLE).json()["items"] == []
    assert admin("DELETE", f"{PEOPLE}/a.berg").status_code == 404
    add(admin)
    assert refusal(login(world, used), 403) == "login.used"
    assert [roles_of(world, token).status_code for token in tokens] == [401, 401]
    assert login(world, unused).status_code == 201


@pytest.mark.parametrize("first", ["login", "removal"])
def test_a_login_and_a_removal_at_the_same_moment(world, admin, provider, first):
    add(admin)
    known = world.hub.issuer.verify(provider.sign())
    with ThreadPoolExecutor(1) as other:
        with world.hub.database.writing() as session:
            if first == "login":
                _, secret = service.login(session, known, None, world.now())
                second = other.submit(admin, "DELETE", f"{PEOPLE}/a.berg")
            else:
                north = get_party(session, "north")
                service.remove(session, north, service.get_person(session, north, "a.berg"), world.now())
                second = other.submit(login, world, provider.sign())
            with pytest.raises(TimeoutError):
                second.result(0.5)
        answer = second.result(30)
    if first == "login":
        assert answer.status_code == 204
        assert roles_of(world, secret).status_code == 401
    else:
        assert refusal(answer, 403) == "login.unknown"


def test_other_roles_end_the_tokens_of_the_old_ones(world, admin, provider):
    add(admin, roles=["publisher", "requester"])
    token = login(world, provider.sign()).json()["token"]
    same = admin("PATCH", f"{PEOPLE}/a.berg", json={"roles": ["requester", "publisher"]})
    assert same.status_code == 200
    assert roles_of(world, token).status_code == 200
    assert admin("PATCH", f"{PEOPLE}/a.berg", json={"roles": []}).json()["roles"] == []
    assert roles_of(world, token).status_code == 401
    assert login(world, provider.sign()).json()["roles"] == ["reader"]


def test_a_persons_token_can_be_revoked_as_any_other(world, admin, provider):
    add(admin)
    first, second = (login(world, provider.sign()).json() for _ in range(2))
    assert admin("DELETE", f"/v1/tokens/{first['id']}").status_code == 204
    assert roles_of(world, first["token"]).status_code == 401
    assert roles_of(world, second["token"]).status_code == 200


def test_only_an_admin_of_the_party_has_a_say(world, admin, provider):
    add(admin)
    person = f"{PEOPLE}/a.berg"
    for other in (world.north, world.actor("south", "admin"), world.sites["north"]):
        assert add(other, "b").status_code == 403
        assert other.get(PEOPLE).status_code == 403
        assert other("PATCH", person, json={"roles": []}).status_code == 403
        assert other("DELETE", person).status_code == 403
    assert refusal(add(admin, "b", roles=["operator"], subject="user-2"), 403) == "auth.forbidden"
    assert admin("PATCH", person, json={"roles": ["operator"]}).status_code == 403
    assert add(world.operator, "boss", roles=["operator"], subject="user-3").status_code == 201
    assert admin("DELETE", f"{PEOPLE}/boss").status_code == 404
    assert admin("PATCH", f"{PEOPLE}/boss", json={"roles": []}).status_code == 404
    assert world.operator("DELETE", f"{PEOPLE}/boss").status_code == 204


def test_a_person_of_two_parties_says_for_which(world, admin, provider):
    south = world.actor("south", "admin")
    add(admin)
    assert add(south, path="/v1/parties/south/people", roles=["auditor"]).status_code == 201
    assert refusal(login(world, provider.sign()), 409) == "login.party"
    assert login(world, provider.sign(), party="south").json()["roles"] == ["auditor", "reader"]
    assert refusal(login(world, provider.sign(), party="east"), 403) == "login.unknown"


def test_a_person_is_known_once_and_by_one_thing(world, admin):
    assert add(admin).status_code == 201
    assert refusal(add(admin), 409) == "person.exists"
    assert refusal(add(admin, "b.berg"), 409) == "person.exists"
    for known in ({"subject": "x", "email": "a@b.c"}, {"subject": ""}, {"email": "nobody"}, {"subject": "a\0"}):
        assert refusal(add(admin, "c", **known), 422) == "request.invalid", known
    assert refusal(admin.post(PEOPLE, {"name": "c", "roles": []}), 422) == "request.invalid"


def test_new_keys_are_looked_for_at_a_bounded_rate(world, admin, provider, monkeypatch):
    add(admin)
    assert login(world, provider.sign()).status_code == 201
    provider.keys["rsa-2"] = own_key()
    for _ in range(5):
        assert login(world, provider.sign(kid="rsa-2")).status_code == 403
    assert provider.asked.count("/jwks") == 1
    later = time.monotonic() + identity.PAUSE + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert login(world, provider.sign(kid="rsa-2")).status_code == 201
    for _ in range(5):
        assert login(world, provider.sign(kid="rsa-3", key=own_key())).status_code == 403
    assert provider.asked.count("/jwks") == 2
    assert provider.asked.count("/.well-known/openid-configuration") == 1


def test_a_provider_that_does_not_answer_is_not_asked_for_every_login(world, admin, provider, monkeypatch):
    add(admin)
    provider.down = True
    for _ in range(3):
        assert refusal(login(world, provider.sign()), 503) == "login.unavailable"
    assert len(provider.asked) == 1
    provider.down = False
    for described in ({"issuer": "https://id.example"}, {"jwks_uri": "http://id.example/jwks"}, {"jwks_uri": 1}, {}):
        provider.changes = described
        later = time.monotonic() + identity.PAUSE + 1
        monkeypatch.setattr(time, "monotonic", lambda later=later: later)
        assert login(world, provider.sign()).status_code == (503 if described else 201)


def test_guessing_locks_an_address_out(start, provider):
    world = start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT, wrong_tokens=3)
    for _ in range(3):
        assert login(world, provider.sign(aud="other")).status_code == 403
    assert refusal(login(world, provider.sign()), 429) == "auth.locked"
    metrics = world.client.get("/metrics").text
    assert {"suture_hub_wrong_tokens_total 3.0", "suture_hub_lockouts_total 1.0"} <= {*metrics.splitlines()}


def test_without_a_provider_nothing_of_it_is_there(start):
    world = start()
    admin = world.actor("north", "admin")
    for method, path in (
        ("GET", "/v1/login"),
        ("POST", "/v1/login"),
        ("GET", PEOPLE),
        ("POST", PEOPLE),
        ("PATCH", f"{PEOPLE}/a.berg"),
        ("DELETE", f"{PEOPLE}/a.berg"),
    ):
        answer, unknown = admin(method, path), admin(method, "/v1/parties/north/nothing")
        assert (answer.status_code, answer.text) == (unknown.status_code, unknown.text) == (404, unknown.text)
    assert not [path for path in world.client.app.openapi()["paths"] if "people" in path or "login" in path]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"OIDC_ISSUER": "https://id.example"}, "OIDC_CLIENT_ID"),
        ({"OIDC_CLIENT_ID": "suture"}, "OIDC_CLIENT_ID"),
        ({"OIDC_ISSUER": "http://id.example", "OIDC_CLIENT_ID": "suture"}, "OIDC_ISSUER"),
        ({"OIDC_ISSUER": "file:///etc", "OIDC_CLIENT_ID": "suture"}, "OIDC_ISSUER"),
        ({"OIDC_ISSUER": "https://id.example/?x=1", "OIDC_CLIENT_ID": "suture"}, "OIDC_ISSUER"),
    ],
)
def test_settings_that_do_not_fit_are_refused(monkeypatch, given, where):
    for name, value in given.items():
        monkeypatch.setenv(f"SUTURE_HUB_{name}", value)
    with pytest.raises(SutureError) as error:
        read_settings()
    assert error.value.where == f"SUTURE_HUB_{where}"


def test_settings_that_fit(monkeypatch):
    assert Settings().oidc_issuer == ""
    monkeypatch.setenv("SUTURE_HUB_OIDC_ISSUER", "https://id.example/realms/north")
    monkeypatch.setenv("SUTURE_HUB_OIDC_CLIENT_ID", "suture")
    assert read_settings().oidc_client_id == "suture"


# A provider that others wrote, in a process of its own


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    port = free_port()
    users = [
        {"sub": "user-1", "email": "a.berg@north.example", "email_verified": True},
        {"sub": "user-2", "email": "b.berg@north.example", "email_verified": False},
    ]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)]
    command += [word for user in users for word in ("--user-claims", json.dumps(user))]
    log = (tmp_path_factory.mktemp("provider") / "log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NO_COLOR": "1"}) as process:
        url = f"http://127.0.0.1:{port}"
        deadline, pause = time.monotonic() + 120, 0.05
        while True:
            try:
                httpx.get(f"{url}/.well-known/openid-configuration", timeout=5)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(pause)
                pause = min(2 * pause, 1)
        yield url
        process.terminate()
        process.wait(120)


def authorize(url, subject, nonce, client="suture"):
    """Sign in there as a browser does, with the code flow; return the ID token."""
    back = "https://app.example/back"
    asked = {"client_id": client, "redirect_uri": back, "response_type": "code", "scope": "openid email", "state": "s"}
    with httpx.Client(base_url=url, timeout=60) as browser:
        answer = browser.post("/oauth2/authorize", params={**asked, "nonce": nonce}, data={"sub": subject})
        assert answer.status_code == 302, answer.text
        (code,) = parse_qs(urlsplit(answer.headers["Location"]).query)["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back}
        told = browser.post("/oauth2/token", data=form, auth=(client, "any")).json()
    return told["id_token"]


def test_a_provider_that_others_wrote(start, foreign):
    world = start(oidc_issuer=foreign, oidc_client_id="suture")
    admin = world.actor("north", "admin")
    add(admin, email="a.berg@north.example")
    add(admin, "b.berg", email="b.berg@north.example")
    token = authorize(foreign, "user-1", "n-1")
    assert re.fullmatch(r"RS256|ES256", jwt.get_unverified_header(token)["alg"])
    assert refusal(login(world, token), 403) == "login.refused"
    assert login(world, token, nonce="n-1").json()["roles"] == ["publisher", "reader"]
    unverified = authorize(foreign, "user-2", "n-2")
    assert refusal(login(world, unverified, nonce="n-2"), 403) == "login.unknown"
    other = authorize(foreign, "user-1", "n-3", client="other")
    assert refusal(login(world, other, nonce="n-3"), 403) == "login.refused"


class Slow(Provider):
    """It lets nobody have a token before one more than may ask at once does."""

    def __init__(self):
        super().__init__()
        self.crowd, self.crowded = threading.Barrier(SIGN_INS + 1), False

    def _token_of(self, form):
        with suppress(threading.BrokenBarrierError):
            self.crowd.wait(0.5)
            self.crowded = True
        return super()._token_of(form)


def test_strangers_do_not_take_all_threads_by_a_slow_provider(migrated_sqlite, tmp_path):
    """A cookie for it is soon made up, and of addresses they have many."""
    database = tmp_path / "hub.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    kept = base64.urlsafe_b64encode(json.dumps(["state", "nonce", "verifier", "/", ""]).encode()).decode()
    with Slow() as provider:
        settings = Settings(
            database_url=f"sqlite:///{database}",
            store=str(tmp_path / "store"),
            proxies="127.0.0.1",
            oidc_issuer=provider.url,
            oidc_client_id=Provider.CLIENT,
        )
        with (
            Live(settings) as live,
            httpx.Client(base_url=live.url, timeout=60) as client,
            ThreadPoolExecutor(12) as pool,
        ):

            def come_back(stranger):
                headers = {"Cookie": f"suture-away={kept}", "X-Forwarded-For": f"192.0.2.{stranger}"}
                return client.get("/-/sign-in/back?code=x&state=state", headers=headers).status_code

            assert set(pool.map(come_back, range(3 * SIGN_INS))) == {403}
        assert not provider.crowded
        assert provider.asked.count("/token") == 3 * SIGN_INS
