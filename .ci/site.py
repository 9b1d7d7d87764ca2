"""The documentation as a site, for `make docs`: all pages that README.md leads to, at the places they have here.

Pages keep their relative links, since the site has the layout of the repository. What a page links to is copied along;
a folder without a page of its own becomes a list of its files. Then zensical builds, and any warning fails. Last, no
page may fetch anything from another host: hospitals read it without the internet.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, SITE = ROOT / ".suture/docs/source", ROOT / ".suture/docs/site"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
#: What a browser would load from another host.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel="?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref="?(?:https?:)?//"""
    r"""|@import|url\(["']?(?:https?:)?//"""
)


def pages() -> list[Path]:
    """Return every Markdown page that is reached from the README."""
    reached: dict[Path, None] = {}
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop(0)
        if page not in reached:
            reached[page] = None
            waiting += [target for target in targets(page) if target.suffix == ".md"]
    return list(reached)


def targets(page: Path) -> list[Path]:
    """Return the files and folders that a page links to."""
    links = (link for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link)
    paths = [(page.parent / link).resolve() for link in links]
    return [path / "README.md" if (path / "README.md").is_file() else path for path in paths if path.exists()]


def copy_page(page: Path) -> None:
    """Copy a page; links to folders lead to the page that the folder has on the site."""

    def led(match: re.Match[str]) -> str:
        path = (page.parent / match[2]).resolve()
        if "://" in match[2] or not path.is_dir():
            return match[0]
        name = "README.md" if (path / "README.md").is_file() else "index.md"
        return f"{match[1]}{match[2].rstrip('/')}/{name}{match[3]}"

    target = SOURCE / page.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(LINK.sub(led, page.read_text(encoding="utf-8")), encoding="utf-8")


def copy_linked(path: Path) -> None:
    """Copy a file that a page links to, or a folder with the list of its files."""
    target = SOURCE / path.relative_to(ROOT)
    if path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / file, target / file)
    lines = [f"# {path.relative_to(ROOT)}", "", *(f"- [{file}]({file})" for file in files)]
    (target / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def fetched() -> list[str]:
    """Return what pages and styles of the site would fetch from other hosts."""
    return [
        f"{path.relative_to(SITE)}: {match[0]}"
        for ending in ("html", "css")
        for path in sorted(SITE.rglob(f"*.{ending}"))
        for match in FETCHED.finditer(path.read_text(encoding="utf-8"))
    ]


def main() -> int:
    """Build the site; return 1 where it fetches from elsewhere."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shown = pages()
    for page in shown:
        copy_page(page)
    for path in {target for page in shown for target in targets(page) if target.suffix != ".md"}:
        copy_linked(path)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", "mkdocs.yml"]
    subprocess.run(command, cwd=ROOT, check=True)
    if elsewhere := fetched():
        print("\n".join(elsewhere), file=sys.stderr)
        return 1
    print(f"{len(shown)} pages: open {SITE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
