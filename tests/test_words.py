"""One word for one thing: names that others took the place of do not come back."""

import ast
import re
from collections import defaultdict

from tests.sources import ROOT, sources, tree

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
#: The same for words in texts, in code and on pages.
REPLACED_PHRASES = {r"signs? of\s+life": "heartbeat"}
#: What says nothing of the thing that it is the name of. A document's field may be called so: it is read within one.
EMPTY = {"found", "given", "one", "said", "told"}


def names(path):
    yield path.stem, 1
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def fields(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            yield from ((line.target.id, line.lineno) for line in node.body if isinstance(line, ast.AnnAssign))


def words(name):
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def test_replaced_words_name_nothing():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}: say {REPLACED[word]}"
        for path in sources()
        for name, line in names(path)
        for word in words(name)
        if word in REPLACED
    ]
    assert not found, "\n".join(found)


def test_replaced_words_stand_in_no_text():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [
        f"{path.relative_to(ROOT)}: {phrase[0]}: say {word}"
        for path in [*sources(), *pages]
        for pattern, word in REPLACED_PHRASES.items()
        for phrase in re.finditer(pattern, path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_names_say_what_they_hold():
    empty = [
        f"{path.relative_to(ROOT)}:{line}: {name}: say what it is"
        for path in sources()
        for name, line in sorted({*names(path)} - {*fields(path)}, key=lambda named: named[1])
        if name.strip("_").lower() in EMPTY
    ]
    assert not empty, f"{len(empty)} names:\n" + "\n".join(empty)


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
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    new = {name: where for name, where in doubled.items() if name not in DOUBLED}
    assert not new, "\n".join(f"{name}: {', '.join(where)}" for name, where in new.items())
    assert doubled.keys() >= DOUBLED, f"these are single now, take them out: {DOUBLED - doubled.keys()}"
