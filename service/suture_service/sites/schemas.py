"""What the API says about sites."""

from __future__ import annotations

from pydantic import BaseModel, Field

from suture_contract.model.metadata import Name
from suture_service.parties.schemas import RequestBody


class SiteIn(RequestBody):
    """A new site."""

    name: Name = Field(examples=["north-gpu"])


class DatasetsIn(RequestBody):
    """What the party's own jobs may name as `dataset`; it takes the place of what the site told before."""

    datasets: list[Name] | None = Field(
        max_length=1000, description="Null: the site does not tell them any more.", examples=[["digits"]]
    )


class DatasetOut(BaseModel):
    """A dataset that a site of one's own party has told of."""

    name: str = Field(examples=["digits"])
    site: str = Field(examples=["north-gpu"])


class SiteMade(BaseModel):
    """The only answer that ever holds the site's token."""

    site: str = Field(examples=["north-gpu"])
    token: str = Field(description="Shown once; the hub keeps a digest.", examples=["suture_site_…"])
