"""What the Hugging Face Hub has and this hub has not: one table, and one answer that says what to do instead."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

from suture_service.hf import errors
from suture_service.hf.errors import NotImplementedHere
from suture_service.hf.routing import base_url, hub_router

router = hub_router()
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_MODEL = "/api/models/{namespace}/{name}"


@dataclass(frozen=True)
class NotHere:
    """Something that this hub has not: `what`, in words that follow "this hub has no", what to do, and its paths."""

    what: str
    instead: str
    paths: tuple[str, ...]

    def error(self) -> NotImplementedHere:
        """Return the refusal."""
        return NotImplementedHere("hub.not_here", f"this hub has no {self.what}", hint=self.instead)


def _below(*roots: str) -> tuple[str, ...]:
    return tuple(path for root in roots for path in (root, f"{root}/{{rest:path}}"))


PULL_REQUESTS = NotHere(
    "pull requests and discussions",
    "commit to a branch, as with revision='proposal', and tell the owner its name",
    _below(f"{_MODEL}/discussions"),
)
DATASETS = NotHere(
    "datasets",
    "data stay at their sites: a site's own file site.toml names them, and jobs go to them",
    (*_below("/api/datasets", "/datasets"), "/api/datasets-tags-by-type"),
)
SPACES = NotHere("spaces", "run a model where its data are: suture.Hub().load(…)", _below("/api/spaces", "/spaces"))
MISSING = (
    PULL_REQUESTS,
    DATASETS,
    SPACES,
    NotHere(
        "likes",
        "find models by name, tags and fields: list_models, suture models",
        (f"{_MODEL}/like", f"{_MODEL}/likers", "/api/users/{user}/likes"),
    ),
    NotHere("collections", "give models that belong together a tag in their cards", _below("/api/collections")),
    NotHere(
        "webhooks",
        "follow a job with suture jobs wait, or GET /v1/jobs/ID/events?wait=25",
        _below("/api/settings/webhooks"),
    ),
    NotHere(
        "organisations and users",
        "parties take their place: GET /v1/parties, suture hub party list",
        _below("/api/organizations", "/api/users"),
    ),
    NotHere(
        "list of own repositories apart from the models",
        "list_models(author=…) has them all",
        ("/api/settings/repositories",),
    ),
    NotHere(
        "copies between repositories",
        "download the files and upload them: equal content is kept once",
        (f"{_MODEL}/duplicate", f"{_MODEL}/lfs-files/duplicate"),
    ),
    NotHere("papers", "name them in the model's card", _below("/api/papers", "/api/daily_papers")),
    NotHere(
        "computing jobs, endpoints or buckets",
        "ask for a stitched ensemble: suture stitch",
        _below("/api/jobs", "/api/scheduled-jobs", "/api/buckets", "/api/kernels"),
    ),
    NotHere("list of tags by type", "list_models(filter=…) takes any tag", ("/api/models-tags-by-type",)),
    NotHere("signing in by browser here", "hf auth login --token …", _below("/oauth", "/login")),
)
#: Where `git clone`, `git fetch` and `git push` begin.
GIT = ("/{namespace}/{name}/info/refs", "/{namespace}/{name}/git-upload-pack", "/{namespace}/{name}/git-receive-pack")
_BY_PATH = {path: missing for missing in MISSING for path in missing.paths}
PATHS = tuple(_BY_PATH)


def no_such_type(kind: str) -> NotImplementedHere:
    """Return the refusal of a repository that holds no model."""
    known = {"dataset": DATASETS, "space": SPACES}
    return known.get(kind, NotHere(f"{kind[:20]}s", "it keeps models: leave repo_type out", ())).error()


def answer_missing(request: Request) -> Response:
    """Say what this hub has not, and what to do instead. Nothing of it depends on who asks."""
    return errors.answer(request, _BY_PATH[request.scope["route"].path].error())


def answer_git(request: Request) -> Response:
    """Say how files are had without git, in plain text: that is what git shows."""
    repo = f"{request.path_params['namespace']}/{request.path_params['name'].removesuffix('.git')}"
    text = (
        f"This hub speaks no git. To download: HF_ENDPOINT={base_url(request)} hf download {repo}\n"
        f"To upload: HF_ENDPOINT={base_url(request)} hf upload {repo} FOLDER\n"
    )
    return PlainTextResponse(text, status_code=501, headers={"X-Error-Message": "this hub speaks no git"})


for _path in PATHS:
    router.add_api_route(_path, answer_missing, methods=list(METHODS), response_model=None)
for _path in GIT:
    router.add_api_route(_path, answer_git, methods=["GET", "POST"], response_model=None)
