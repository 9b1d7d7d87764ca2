"""All tables. Names, states and roles are checked before they get here; the database keeps what must never break."""

from suture_service.tables.audit import AuditEntry
from suture_service.tables.columns import BlobDigest, Json
from suture_service.tables.jobs import Event, Job, JobMember, Task, TaskFile
from suture_service.tables.models import (
    AccessRequest,
    Commit,
    Model,
    ModelFacet,
    ModelShare,
    ModelTag,
    Purge,
    Ref,
    Revision,
    RevisionMember,
)
from suture_service.tables.parties import BrowserSession, FormerName, HubKey, Party, PartyKey, Person, Site, Token
from suture_service.tables.received import ReceivedFile, SentContent, XetEpoch, XetXorb
from suture_service.tables.trees import RevisionPart, TreeFile, TreePart

__all__ = [
    "AccessRequest",
    "AuditEntry",
    "BlobDigest",
    "BrowserSession",
    "Commit",
    "Event",
    "FormerName",
    "HubKey",
    "Job",
    "JobMember",
    "Json",
    "Model",
    "ModelFacet",
    "ModelShare",
    "ModelTag",
    "Party",
    "PartyKey",
    "Person",
    "Purge",
    "ReceivedFile",
    "Ref",
    "Revision",
    "RevisionMember",
    "RevisionPart",
    "SentContent",
    "Site",
    "Task",
    "TaskFile",
    "Token",
    "TreeFile",
    "TreePart",
    "XetEpoch",
    "XetXorb",
]
