"""What the official client must be told: it reads the headers `X-Error-Code` and `X-Error-Message`, then the body."""

from __future__ import annotations

from typing import ClassVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from suture_contract.errors import SutureError
from suture_service.errors import Forbidden, HubError, Unauthorized, headers_of
from suture_service.tables import Purge

#: The client shows this text as it is, and calls any other 401 a missing repository.
INVALID_CREDENTIALS = "Invalid credentials in Authorization header"


class ClientError(HubError):
    """A refusal that the client turns into an exception class of its own."""

    client_code: ClassVar[str]


class RepoNotFound(ClientError):
    """Unknown, or private to others: both answer the same."""

    status = 404
    client_code = "RepoNotFound"

    def __init__(self) -> None:
        super().__init__("not_found", "there is no such repository, or it is not shared with you")


class RevisionNotFound(ClientError):
    """No such branch, tag or commit."""

    status = 404
    client_code = "RevisionNotFound"

    def __init__(self, revision: str) -> None:
        super().__init__("revision.not_found", f"there is no branch, tag or commit {revision[:100]!r}")


class RevisionPurged(ClientError):
    """A commit whose content was taken away for good."""

    status = 404
    client_code = "RevisionNotFound"

    def __init__(self, revision: str, purge: Purge) -> None:
        problem = f"{revision[:100]!r} was purged on {purge.at:%Y-%m-%d}: {purge.reason}"
        super().__init__("revision.purged", problem, hint="use another commit: main has what is left")


class EntryNotFound(ClientError):
    """No such file or folder at this commit, which the client remembers."""

    status = 404
    client_code = "EntryNotFound"

    def __init__(self, path: str, commit: str, message: str = "there is no such file or folder") -> None:
        super().__init__("entry.not_found", message, where=path[:200])
        self.commit = commit


class GatedRepo(ClientError):
    """The repository may be seen, but its files only with its owner's consent."""

    status = 403
    client_code = "GatedRepo"

    def __init__(self, repo: str) -> None:
        hint = f"ask for them: suture access request {repo} --reason …"
        super().__init__("model.gated", "its owner must grant you access to its files", where=repo, hint=hint)


class BadRequest(HubError):
    """Input that cannot be what the caller meant."""

    status = 400


class WrongAddress(Forbidden):
    """An address for uploads that never was, or whose time, token or repository has ended."""

    def __init__(self) -> None:
        super().__init__("upload.address", "this address is wrong or no longer valid", hint="start the upload again")


class NotImplementedHere(HubError):
    """A part of the protocol that this hub leaves out."""

    status = 501


def answer(request: Request, error: Exception) -> JSONResponse:
    """Return a refusal in the form that the client understands."""
    headers: dict[str, str] = {}
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        status, message = 400, f"{place}: {first['msg'].removeprefix('Value error, ')}"
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        headers.update(error.headers or {})
    else:
        assert isinstance(error, SutureError)
        status = error.status if isinstance(error, HubError) else 400
        status = 400 if status == 422 else status
        message = ": ".join(part for part in (error.where, error.message) if part)
        message += f" ({error.hint})" if error.hint else ""
        headers = headers_of(error)
    if isinstance(error, ClientError):
        headers["X-Error-Code"] = error.client_code
    if isinstance(error, EntryNotFound):
        headers["X-Repo-Commit"] = error.commit
    body = None
    if isinstance(error, Unauthorized):
        # The client goes by the header's text; what the body says besides, it shows.
        body, message = message, INVALID_CREDENTIALS
        if "authorization" not in request.headers:
            body = message = "a token is needed"
            if "namespace" in request.path_params:
                # Without one nobody sees any repository, whether it exists or not.
                headers["X-Error-Code"] = RepoNotFound.client_code
    headers["X-Error-Message"] = " ".join(message.replace("…", "...").split()).encode("ascii", "replace").decode()
    return JSONResponse({"error": body or message}, status_code=status, headers=headers)
