"""What the official client sends and expects; names as it spells them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

from suture_contract.model.metadata import Sha256
from suture_contract.unseen import legible_lines
from suture_service.keys.schemas import FlagOut
from suture_service.tables import Json

Moment = Annotated[datetime, PlainSerializer(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))]
Path = Annotated[str, Field(min_length=1, max_length=1024)]
#: What others read on pages and terminals.
Lines = Annotated[str, AfterValidator(legible_lines)]
Size = Annotated[int, Field(ge=0, lt=2**53)]


class _FromClient(BaseModel):
    """What the client sends: fields that only some of its versions know are passed over."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class RepoIn(_FromClient):
    """A repository to create or delete; without an organisation it is the caller's own."""

    name: str = Field(max_length=300)
    organization: str | None = Field(default=None, max_length=300)
    type: str | None = None
    private: bool | None = None
    visibility: Literal["private", "public"] | None = None


class MoveIn(_FromClient):
    """A repository's new name."""

    from_repo: str = Field(max_length=300)
    to_repo: str = Field(max_length=300)
    type: str | None = None


class SettingsIn(_FromClient):
    """What an owner changes; what is left out stays."""

    private: bool | None = None
    visibility: Literal["private", "public"] | None = None
    gated: Literal["auto", "manual", False] | None = None


HubAccessState = Literal["pending", "accepted", "rejected"]


class AccessUser(_FromClient):
    """Who asks: a party. What the hub knows of its people is told to nobody."""

    user: str
    fullname: str
    email: str | None = None


class AccessListed(_FromClient):
    """A request for a repository's files."""

    request_id: str
    user: AccessUser
    status: str
    timestamp: Moment
    fields: dict[str, str]


class AccessHandled(_FromClient):
    """What becomes of a request."""

    user: str | None = Field(default=None, max_length=300)
    request_id: str | None = Field(default=None, max_length=300)
    status: HubAccessState
    rejection_reason: Lines | None = Field(default=None, max_length=1000)


class AccessGrant(_FromClient):
    """A party that gets a repository's files."""

    user: str = Field(max_length=300)


class BranchIn(_FromClient):
    """Where a branch starts; at `main` if nothing is said."""

    starting_point: str | None = Field(default=None, max_length=1000)


class TagIn(_FromClient):
    """A tag's name; its message is not kept."""

    tag: str = Field(max_length=255)
    message: str | None = None


class YamlIn(_FromClient):
    """A model card to check."""

    content: str
    repo_type: str | None = None


class NewFile(_FromClient):
    """A file that the client is about to upload."""

    path: Path
    size: Size
    sample: str = ""


class PreuploadIn(_FromClient):
    """Files whose way of upload the hub decides."""

    files: list[NewFile] = Field(max_length=1000)
    git_ignore: str | None = Field(default=None, max_length=2**17)


class PreuploadFile(_FromClient):
    """How one file is to be sent; `oid` is what is there now."""

    path: str
    upload_mode: Literal["regular", "lfs"]
    should_ignore: bool
    oid: str | None


class Preupload(_FromClient):
    """One entry per file."""

    files: list[PreuploadFile]


class LfsObject(_FromClient):
    """A file by digest and size."""

    oid: Sha256
    size: Size


class SquashIn(_FromClient):
    """What the one commit says about itself."""

    message: Lines = Field(default="Squash the history", max_length=500)


class LfsDeletions(_FromClient):
    """Digests of files; with `rewrite_history`, the commits that hold them go, too."""

    sha: list[Sha256] = Field(min_length=1, max_length=1000)
    rewrite_history: bool = True


class LfsDeletion(_FromClient):
    """Files to be deleted for good."""

    deletions: LfsDeletions


class LfsFileOut(_FromClient):
    """A large file that some revision holds; `filename` is one of the paths that it has had."""

    file_oid: str
    oid: str
    filename: str
    size: int
    pushed_at: Moment
    ref: str | None = None


class LfsBatchIn(_FromClient):
    """Files that the client wants to send by Git LFS."""

    operation: Literal["upload", "download"]
    objects: list[LfsObject] = Field(max_length=1000)
    transfers: list[str] = []
    hash_algo: str = "sha256"


class Header(_FromClient):
    """What a commit says about itself."""

    summary: Lines = Field(max_length=500)
    description: Lines = Field(default="", max_length=100_000)
    parent_commit: str | None = Field(default=None, pattern=r"^[0-9a-f]{7,40}$")


class RegularFile(_FromClient):
    """A small file, content included."""

    path: Path
    content: str
    encoding: Literal["base64", "utf-8"] = "base64"


class LfsFile(_FromClient):
    """A file whose content has been sent before."""

    path: Path
    algo: Literal["sha256"] = "sha256"
    oid: Sha256
    size: Size | None = None


class DeletedPath(_FromClient):
    """A file or folder that the commit removes."""

    path: Path


class Committed(_FromClient):
    """Where the commit is."""

    commit_url: str
    commit_oid: str
    success: bool = True


class Lfs(_FromClient):
    """A large file by the digest of its content, and by the size of the pointer that git would keep."""

    oid: str
    size: int
    pointer_size: int


class CommitRef(_FromClient):
    """The commit that last changed something."""

    id: str
    title: str
    date: Moment


class TreeEntry(_FromClient):
    """A file or folder in a listing."""

    type: Literal["file", "directory"]
    path: str
    oid: str
    size: int
    lfs: Lfs | None = None
    last_commit: CommitRef | None = None


class SiblingLfs(_FromClient):
    """As `Lfs`, spelt as in a model's description."""

    sha256: str
    size: int
    pointer_size: int


class Sibling(_FromClient):
    """A file of a model."""

    rfilename: str
    size: int | None = None
    blob_id: str | None = None
    lfs: SiblingLfs | None = None


class RepoOut(_FromClient):
    """A repository at a commit. Nobody counts downloads here."""

    id: str
    model_id: str
    author: str
    sha: str
    private: bool
    gated: Literal["auto", "manual", False]
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    tags: list[str]
    pipeline_tag: str | None = Field(default=None, alias="pipeline_tag")
    library_name: str | None = Field(default=None, alias="library_name")
    last_modified: Moment
    created_at: Moment
    card_data: Json | None = None
    safetensors: Json | None = None
    siblings: list[Sibling] | None = None
    used_storage: int | None = None
    flags: list[FlagOut] | None = None


class CommitOut(_FromClient):
    """A step in a branch's history."""

    id: str
    title: str
    message: str
    date: Moment
    authors: list[dict[str, Any]]


class RefOut(_FromClient):
    """A branch or a tag."""

    name: str
    ref: str
    target_commit: str


class RefsOut(_FromClient):
    """All branches and tags; there are no conversions and no pull requests."""

    branches: list[RefOut]
    converts: list[RefOut] = []
    tags: list[RefOut]
    pull_requests: list[RefOut] | None = None
