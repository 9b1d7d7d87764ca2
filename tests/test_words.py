"""One word for one thing: names that others took the place of do not come back."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("contract", "stitching", "client", "service", "worker", "local")
#: What is not said any more, and what is said instead (docs/architecture.md).
REPLACED = {
    "doing": "dispatch",
    "ending": "outcome",
    "endings": "outcomes",
    "familiarity": "ood_gate",
    "leaving": "egress",
    "parcel": "bundle",
    "parcels": "bundles",
    "pulse": "heartbeat",
}


def names(path):
    yield path.stem, 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words(name):
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def test_replaced_words_name_nothing():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}: say {REPLACED[word]}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, line in names(path)
        for word in words(name)
        if word in REPLACED
    ]
    assert not found, "\n".join(found)


def test_the_words_that_are_said_are_in_the_table():
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for word in REPLACED.values():
        assert word.rstrip("s") in table, word


def test_a_word_within_a_name_is_seen():
    assert words("_old_ParcelOf") == ["old", "parcel", "of"]


#: Public classes of one name in several packages: two sides of one thing. None may be added.
DOUBLED = {
    # What a hub does for a kind of task, and what a site does for it; what one sends and the other reads.
    *("Compose", "Contribute", "Evaluate", "Fit", "Match", "TaskKind"),
    *("ComposeSpec", "ContributeSpec", "EvaluateSpec", "FitSpec", "MatchSpec", "JobRef", "Heartbeat"),
    # A row of the hub's database, and what a client is told of it.
    *("AccessRequest", "Event", "Job", "JobError", "Model", "Ref", "Revision", "TaskProgress"),
    # What a hub raises, and what a client makes of it.
    *("Conflict", "HubError", "NotFound", "Unavailable"),
}


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    new = {name: where for name, where in doubled.items() if name not in DOUBLED}
    assert not new, "\n".join(f"{name}: {', '.join(where)}" for name, where in new.items())
    assert doubled.keys() >= DOUBLED, f"these are single now, take them out: {DOUBLED - doubled.keys()}"
