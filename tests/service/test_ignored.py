"""What `.gitignore` leaves out of an upload: as git itself says, and never at the price of the hub."""

from __future__ import annotations

import subprocess

import pytest

from suture_service.hf.errors import BadRequest
from suture_service.hf.ignored import Ignored

RULES = """\
# a comment
*.log
!keep.log
/only-here.txt
build/
docs/*.html
**/cache/*.bin
deep/**/end
logs/**
a?c
[!x]1
[a-c-]2
\\#hash
\\!bang
star\\*
trailing\\ \x20
spaced   \x20
bad[
ends\\
x**y
[]-]3
a//b
mid*dle*end
"""
LISTED = """
x.log keep.log sub/x.log sub/keep.log only-here.txt sub/only-here.txt build build/x sub/build/x docs/x.html
docs/deep/x.html docs/x.htm cache/x.bin sub/cache/x.bin sub/cache/deep/x.bin deep/end deep/a/b/end deep/a/b/ends end
logs logs/x logs/x/y sub/logs/x abc ac a/c x1 y1 a2 d2 -2 #hash !bang star* starx spaced bad[ ends ends\\ xy xzzy ]3 -3
a/b middleend mid-dle-end mid-dlxe-end middleendx build.log/x keep.log/x sub/keep.log/y.log x/keep.log a/b/c/keep.log
"""


@pytest.mark.parametrize("rules", [RULES, "*\n!*/\n!*.md\n", "/*\n!/kept/\n/kept/*\n!/kept/x.log\n", "**\n!x.log\r\n"])
def test_a_file_is_left_out_where_git_leaves_it_out(tmp_path, rules):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_bytes(rules.encode())
    command = ["git", "-c", "core.ignorecase=false", "check-ignore", "-z", "--stdin", "--no-index"]
    paths = [*LISTED.split(), "trailing ", "kept/x.log", "kept/y.log", "README.md", "docs/README.md"]
    told = subprocess.run(command, cwd=tmp_path, input="\0".join(paths).encode(), capture_output=True, check=False)
    expected = {path for path in told.stdout.decode().split("\0") if path}
    ignored = Ignored(rules)
    assert {path for path in paths if ignored(path)} == expected
    assert expected
    assert len(expected) < len(paths)


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ("*a" * 60 + "*b", "a" * 250),
        ("**/a/" * 60 + "b", "a/" * 200 + "c"),
        ("?*" * 100 + "x", "y" * 250),
        ("[a-z]*[a-z]*" * 40 + "1", "q" * 250),
    ],
)
def test_no_pattern_is_slow(rules, path):
    """With a regular expression each of these takes longer than the universe is old."""
    ignored = Ignored(rules)
    assert not ignored(path)
    assert ignored._steps < 1_000_000


@pytest.mark.parametrize("rule", ["?" * 100 + "*" + "a" * 120 + "b*", "*a" * 100 + "b", "**/" * 60 + "b", "b/c"])
def test_patterns_that_take_long_all_in_all_are_refused(rule):
    """Each with each takes long, too, where the first look says that they do not fit."""
    ignored = Ignored("\n".join([rule] * 300))
    paths = ["a" * 240 + str(index) for index in range(1000)]
    with pytest.raises(BadRequest, match="too many patterns"):
        list(map(ignored, paths))
