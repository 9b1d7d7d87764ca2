"""`/-/sign-in` and `/-/sign-out`, and the files that pages load."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from suture_contract.errors import SutureError
from suture_service.auth import digest, note_wrong_token
from suture_service.errors import HubError, NotFound
from suture_service.hub import HubContext, HubDep
from suture_service.origin import Origin, origin
from suture_service.pages.frame import render, static_answer
from suture_service.pages.route import PageCaller, cookie_name, own_form, pages
from suture_service.sessions import service
from suture_service.tokens import find_token

router = pages()
Next = Annotated[str, Form(max_length=2000)]


@router.get("/-/static/{file}")
def static_file(file: str, v: str = "") -> Response:
    """Return a style sheet, a script or a picture; `v` changes with the content."""
    answer = static_answer(file)
    if answer is None:
        raise NotFound("no such file", where=file[:100])
    return answer


@router.get("/-/sign-in")
def ask_for_token(request: Request, next: str = "/") -> Response:
    """Show the form."""
    return render(request, "sign_in.html.jinja", problem=None, next=_own_path(next))


@router.post("/-/sign-in", dependencies=[Depends(own_form)])
def sign_in(
    hub: HubDep, request: Request, token: Annotated[str, Form(max_length=500)] = "", next: Next = "/"
) -> Response:
    """Begin a session with a token, then go where one wanted to go."""
    try:
        secret = _begin(hub, token.strip())
    except SutureError as error:
        status = error.status if isinstance(error, HubError) else 422
        answer: Response = render(request, "sign_in.html.jinja", status, problem=error, next=_own_path(next))
        answer.headers.update(getattr(error, "headers", {}))
        return answer
    answer = RedirectResponse(_own_path(next), status_code=303)
    _set_cookie(request, answer, secret, int(service.LASTS.total_seconds()))
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


def _set_cookie(request: Request, answer: Response, value: str, seconds: int) -> None:
    answer.set_cookie(
        cookie_name(request),
        value,
        max_age=seconds,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
