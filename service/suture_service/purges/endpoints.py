"""`/v1/models/{party}/{name}/purge`."""

from __future__ import annotations

from suture_service.auth import CallerDep
from suture_service.errors import answers
from suture_service.hub import HubDep
from suture_service.purges import service
from suture_service.purges.schemas import PurgeIn, PurgeOut
from suture_service.purges.service import PurgeTarget
from suture_service.route import room

router = room("/v1", tag="models")


@router.post("/models/{party}/{name}/purge", responses=answers(403, 404, 422))
def purge(hub: HubDep, caller: CallerDep, party: str, name: str, body: PurgeIn) -> PurgeOut:
    """Take content out of all models of your party for good, with every revision that holds it (role `publisher`).

    What was made of them is flagged, and jobs that need them end. Repeating it is harmless, and finishes what was
    broken off. What another party has published stays: only the hub's operator can take that away.
    """
    caller.require_own(party, "publisher")
    target = PurgeTarget(f"{party}/{name}", path=body.path, revision=body.revision)
    if body.dry_run:
        with hub.database.reading() as session:
            return service.plan(session, target, "party", caller.party_id)
    return service.purge(hub, target, "party", by=caller.name, reason=body.reason, reader=caller.party_id)
