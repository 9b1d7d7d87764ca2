"""The hub's settings: keyword arguments, or environment variables that start with `SUTURE_HUB_`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]


class Settings(BaseSettings):
    """Where the hub keeps its state, and its limits. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="SUTURE_HUB_", extra="forbid", frozen=True)

    #: `sqlite:///path` or `postgresql://…`; may hold a password, so it is never shown.
    database_url: str = Field(default="sqlite:///suture-hub.db", repr=False)
    #: A folder, or `s3://bucket/prefix` (credentials from the usual AWS variables).
    store: str = "suture-store"
    #: The address of the S3 server where it is not Amazon's; callers must reach it too if downloads are signed.
    s3_endpoint: str | None = None
    #: How long an address is valid to which a download from a bucket is sent on; 0: everything goes through the hub.
    signed_download_seconds: Annotated[int, Field(ge=0, le=86400)] = 0

    lease_seconds: Seconds = 60
    #: How long the lease of a task lasts that waits for a person at its site.
    waiting_lease_seconds: Seconds = 7 * 86400
    max_attempts: Annotated[int, Field(ge=1)] = 3
    #: A site counts as online for this long after it last asked for work.
    online_seconds: Seconds = 90
    max_wait_seconds: Seconds = 25
    #: How often each hub process looks for lapsed leases and passed deadlines.
    sweep_seconds: Seconds = 1

    max_model_bytes: Bytes = 8 * 2**30
    max_stitches_bytes: Bytes = 2 * 2**30
    max_document_bytes: Bytes = 8 * 2**20
    max_card_bytes: Bytes = 2**20
    #: A commit with the small files that come inside it.
    max_commit_bytes: Bytes = 512 * 2**20
    #: Any request body that is not a file.
    max_request_bytes: Bytes = 8 * 2**20

    #: Of one token, counted by each hub process for itself.
    requests_per_minute: Annotated[int, Field(ge=1)] = 3000
    #: So many tokens that are none, within so many seconds, lock an address out until these are over.
    wrong_tokens: Annotated[int, Field(ge=1)] = 50
    wrong_tokens_seconds: Annotated[int, Field(ge=1)] = 600
    #: What the files of one party may take together, where the party has no limit of its own.
    max_party_bytes: Bytes = 2**40
    #: Jobs of one party that have not ended.
    max_party_jobs: Annotated[int, Field(ge=1)] = 50

    log_level: str = "info"
