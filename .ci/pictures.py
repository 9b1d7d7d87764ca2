"""Take the pictures of the first run anew that README.md shows: `make pictures`.

The test that walks through the first run in Chromium keeps what it sees; long pages are cut where a screen or two end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
TEST = "tests/flow/test_commands.py::test_a_stranger_comes_from_the_address_to_the_report"
#: In pixels.
_MOST = 1440


def main() -> None:
    """Walk, and write each picture that there is under the same name, in 256 colours."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "SUTURE_SCREENSHOTS": folder, "SUTURE_BROWSER": "required"}
        subprocess.run([sys.executable, "-m", "pytest", "-q", TEST], cwd=ROOT, env=env, check=True)
        for old in sorted(FOLDER.glob("*.png")):
            with Image.open(Path(folder) / f"first-run-{old.name}") as seen:
                cut = seen.convert("RGB").crop((0, 0, seen.width, min(seen.height, _MOST)))
            cut.quantize(256, dither=Image.Dither.NONE).save(old, optimize=True)
            print(f"{old.relative_to(ROOT)}: {old.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
