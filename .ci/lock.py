"""Write lock.txt: the versions that both images install, as they were resolved and tested.

    make lock

`make images` installs these and fails where an image would hold anything else. Needs a package index.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "lock.txt"
_HEADER = """\
# The versions that both images install. Written by `make lock`; what torch pins itself is not listed.
"""


def resolved() -> dict[str, str]:
    """Return name and version of everything that a hub and a site install today, less Suture itself."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    command += ["--constraint", "constraints.txt", "torch", ".[service,worker]"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=900, check=False
    )
    if ended.returncode:
        sys.exit(ended.stderr[-4000:])
    packages = [item["metadata"] for item in json.loads(ended.stdout)["install"]]
    return {
        package["name"].lower(): Version(package["version"]).public
        for package in packages
        if package["name"] != "suture" and not package["name"].startswith(("nvidia-", "cuda-", "triton"))
    }


def main() -> None:
    """Resolve, and write the file in place of the last one."""
    lines = [f"{name}=={version}\n" for name, version in sorted(resolved().items())]
    temporary = LOCK.with_suffix(".new")
    temporary.write_text(_HEADER + "".join(lines), encoding="utf-8")
    temporary.replace(LOCK)
    print(f"{len(lines)} versions in {LOCK.name}")


if __name__ == "__main__":
    main()
