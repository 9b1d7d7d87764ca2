"""`/-/sign-in` and `/-/sign-out`, and the files that pages load."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from suture_contract.errors import SutureError
from suture_service.auth import digest, note_wrong_token
from suture_service.errors import DATABASE_ERRORS, Forbidden, HubError, NotFound
from suture_service.hub import SIGN_IN_TURN, HubContext, HubDep
from suture_service.origin import Origin, origin
from suture_service.pages.forms import read_form, status_of
from suture_service.pages.frame import provider_of, render, static_answer
from suture_service.pages.route import PageCaller, cookie_name, own_form, page_caller, pages
from suture_service.people import endpoints as people
from suture_service.people.schemas import LoginIn
from suture_service.people.service import SeveralParties
from suture_service.sessions import service
from suture_service.tokens import find_token

router = pages()
Next = Annotated[str, Form(max_length=2000)]
ShortQuery = Annotated[str, Query(max_length=4096)]
#: In seconds: for signing in at the identity provider.
_AWAY = 600


@router.get("/-/static/{file}")
def static_file(file: str, v: str = "") -> Response:
    """Return a style sheet, a script or a picture; `v` changes with the content."""
    answer = static_answer(file)
    if answer is None:
        raise NotFound("no such file", where=file[:100])
    return answer


@router.get("/-/sign-in")
def ask_for_token(hub: HubDep, request: Request, next: str = "/") -> Response:
    """Show the form; who is signed in already may as well go on."""
    with suppress(HubError, *DATABASE_ERRORS):  # without its database, the hub shows the form all the same
        page_caller(request, hub, None)
    return _form(hub, request, 200, None, _own_path(next))


@router.post("/-/sign-in", dependencies=[Depends(own_form)])
def sign_in(
    hub: HubDep, request: Request, token: Annotated[str, Form(max_length=500)] = "", next: Next = "/"
) -> Response:
    """Begin a session with a token, then go where one wanted to go."""
    try:
        secret = _begin(hub, token.strip())
    except SutureError as error:
        answer: Response = _form(hub, request, status_of(error), error, _own_path(next))
        answer.headers.update(getattr(error, "headers", {}))
        return answer
    answer = RedirectResponse(_own_path(next), status_code=303)
    _set_cookie(request, answer, secret, int(service.LASTS.total_seconds()))
    return answer


@router.get("/-/sign-in/provider", dependencies=[SIGN_IN_TURN])
def go_to_provider(hub: HubDep, request: Request, next: str = "/", party: str = "") -> Response:
    """Send the browser to the identity provider; a cookie of ten minutes holds what must come back with it."""
    if not hub.settings.oidc_issuer:
        raise NotFound("nobody signs in at an identity provider here", where="/-/sign-in/provider")
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    answer = RedirectResponse(hub.issuer.authorization(_back(request), state, nonce, challenge), status_code=303)
    kept = json.dumps([state, nonce, verifier, _own_path(next), party[:96]])
    # Not `Strict`: the browser comes back from another site.
    _set_cookie(request, answer, base64.urlsafe_b64encode(kept.encode()).decode(), _AWAY, _away(request), "lax")
    return answer


@router.get("/-/sign-in/back", dependencies=[SIGN_IN_TURN])
def come_back(hub: HubDep, request: Request, code: ShortQuery = "", state: ShortQuery = "") -> Response:
    """Begin a session for whom the provider names, if this browser was sent there from here."""
    if not hub.settings.oidc_issuer:
        raise NotFound("nobody signs in at an identity provider here", where="/-/sign-in/back")
    next = "/"
    try:
        expected, nonce, verifier, next, party = _kept(request)
        if not code or not hmac.compare_digest(state.encode(), expected.encode()):
            raise _no_sign_in()
        wanted = read_form(LoginIn, id_token=hub.issuer.exchange(code, _back(request), verifier), nonce=nonce)
        logged_in = people.login(hub, wanted.model_copy(update={"party": party or None}), Response())
        secret = _begin(hub, logged_in.token)
    except SutureError as error:
        answer: Response = _form(hub, request, status_of(error), error, _own_path(next))
    else:
        # From another site's redirect the new cookie would not be sent on: the page itself goes on.
        answer = render(request, "signed_in.html.jinja", next=_own_path(next))
        answer.headers["Refresh"] = f"0;url={_own_path(next)}"
        _set_cookie(request, answer, secret, int(service.LASTS.total_seconds()))
    _set_cookie(request, answer, "", 0, _away(request), "lax")
    return answer


@router.post("/-/sign-out", dependencies=[Depends(own_form)])
def sign_out(hub: HubDep, request: Request, caller: PageCaller) -> Response:
    """End the session."""
    secret = request.cookies.get(cookie_name(request))
    if secret:
        with hub.database.writing() as session:
            service.end(session, caller, secret, hub.now())
    answer = RedirectResponse("/-/sign-in", status_code=303)
    _set_cookie(request, answer, "", 0)
    return answer


def _form(hub: HubContext, request: Request, status: int, problem: SutureError | None, next: str) -> Response:
    """Return the page on which one signs in; who belongs to several parties chooses one of them there."""
    parties = problem.parties if isinstance(problem, SeveralParties) else ()
    return render(
        request,
        "sign_in.html.jinja",
        status,
        problem=None if parties else problem,
        next=next,
        provider=provider_of(hub),
        parties=parties,
    )


def _back(request: Request) -> str:
    return f"{str(request.base_url).rstrip('/')}/-/sign-in/back"


def _away(request: Request) -> str:
    return f"{cookie_name(request)}-away"


def _kept(request: Request) -> list[str]:
    try:
        kept = json.loads(base64.urlsafe_b64decode(request.cookies.get(_away(request), "")))
    except ValueError:
        raise _no_sign_in() from None
    if not isinstance(kept, list) or len(kept) != 5 or not all(isinstance(part, str) for part in kept):
        raise _no_sign_in()
    return kept


def _no_sign_in() -> Forbidden:
    hint = "sign in again; it has to be done within ten minutes, in one browser"
    return Forbidden("login.state", "this does not belong to a sign-in that was begun here", where="state", hint=hint)


def _begin(hub: HubContext, token: str) -> str:
    source = origin.get() or Origin()
    address = source.address or ""
    hub.limits.check_address(address)
    with hub.database.writing() as session:
        live = find_token(session, digest(token), hub.now())
        if live is None:
            note_wrong_token(hub)
            raise _WrongToken
        source.token_id = live.id
        return service.begin(session, live, hub.now())


class _WrongToken(HubError):
    status = 401

    def __init__(self) -> None:
        hint = "copy the whole of it, from suture_party_ on; your party's admin makes another one"
        super().__init__("auth.invalid", "this token is wrong, revoked or over", where="token", hint=hint)


def _own_path(path: str) -> str:
    """Return a path of this hub; anything that leads elsewhere becomes the first page."""
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain else "/"


def _set_cookie(
    request: Request,
    answer: Response,
    value: str,
    seconds: int,
    name: str | None = None,
    samesite: Literal["lax", "strict"] = "strict",
) -> None:
    answer.set_cookie(
        name or cookie_name(request),
        value,
        max_age=seconds,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite=samesite,
    )
