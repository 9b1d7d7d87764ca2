"""All pages under one router."""

from __future__ import annotations

from fastapi import APIRouter

from suture_service.pages import account, api, compare, jobs, repository, sign_in, start

router = APIRouter()
# Last those whose paths start with names that callers choose; no party is called `-`.
for part in (sign_in.router, api.router, account.router, compare.router, jobs.router, start.router, repository.router):
    router.include_router(part)
