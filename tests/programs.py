"""Programs of the machine that tests run as they are: nginx, Caddy, promtool, docker-compose, systemd-analyze."""

from __future__ import annotations

import os
import shutil

import pytest

#: Set to "required" where one that is not there is a failure, as in CI.
REQUIRED = "SUTURE_PROGRAMS"
#: Servers lie where only the superuser's PATH looks.
PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/sbin")))


def program(name: str) -> str:
    """Return where a program is; skips the test where it is not installed, or fails it where it must be."""
    place = shutil.which(name, path=PATH)
    if place is None:
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(f"{name} is not installed")
    return place
