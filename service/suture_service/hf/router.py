"""All endpoints of the protocol under one router."""

from __future__ import annotations

from fastapi import APIRouter

from suture_service.hf import account, commits, files, lfs, repos
from suture_service.hf.xet.endpoints import router as xet

router = APIRouter()
for part in (account.router, repos.router, files.router, commits.router, lfs.router, xet):
    router.include_router(part)
