"""All endpoints of the protocol under one router."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
