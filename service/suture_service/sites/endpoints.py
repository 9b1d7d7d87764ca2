"""`/v1/parties/{party}/sites`."""

from __future__ import annotations

from suture_service.auth import CallerDep, SiteDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.paging import Cursor, Limit, Page, decode, page
from suture_service.parties.service import add_site_token, get_party
from suture_service.route import room
from suture_service.sites import repository, service
from suture_service.sites.schemas import DatasetOut, DatasetsIn, SiteIn, SiteMade

router = room("/v1", tag="sites")


@router.put("/site/datasets", status_code=204, responses=answers(403, 422))
def tell_datasets(hub: HubDep, site: SiteDep, body: DatasetsIn) -> None:
    """Tell which datasets the site's own party may fit on, so that a job with another name is refused at once.

    Only tokens of that party are told of them.
    """
    assert site.site_id is not None
    with hub.database.writing() as session:
        repository.tell_datasets(session, site.site_id, body.datasets)


@router.get("/datasets", responses=answers(422))
def list_datasets(hub: HubDep, caller: CallerDep, limit: Limit = 50, cursor: Cursor = None) -> Page[DatasetOut]:
    """List the datasets that the sites of one's own party have told of; a job may name one as `dataset`."""
    with hub.database.reading() as session:
        after = decode(cursor, str, str)
        by_site = repository.told_by_site(session, caller.party_id)
        pairs = sorted((name, site) for site, names in by_site for name in names)
        rows = [pair for pair in pairs if not after or pair > (str(after[0]), str(after[1]))][: limit + 1]
        return page(rows, limit, lambda row: DatasetOut(name=row[0], site=row[1]), lambda row: row)


@router.post("/parties/{party}/sites", status_code=201, responses=answers(403, 404, 409, 422))
def add_site(hub: HubDep, caller: CallerDep, party: str, body: SiteIn) -> SiteMade:
    """Add a site and make its token (role `admin` of the party, or `operator`). The token is shown here only."""
    with hub.database.writing() as session:
        caller.require_rule_over(party)
        site = service.add_site(session, get_party(session, party), body.name, hub.now(), by=caller.name)
        _, secret = add_site_token(session, site, hub.now(), by=caller.name)
        return SiteMade(site=site.name, token=secret)
