"""All endpoints of the protocol under one router."""

from __future__ import annotations

from fastapi import APIRouter

from suture_service.hf import access, account, commits, files, history, lfs, missing, repos
from suture_service.hf.xet.endpoints import router as xet

router = APIRouter()
for part in (
    missing.router,
    account.router,
    repos.router,
    access.router,
    files.router,
    commits.router,
    history.router,
    lfs.router,
    xet,
):
    router.include_router(part)
