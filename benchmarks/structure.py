"""The figures of how the code lies: `python benchmarks/structure.py [ROOT]`, for another checkout's ROOT, too.

A folder is a directory of modules, an arrow an import from a module of one folder to one of another at run time.
"""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

#: Runs of `suture --help`, of which the quickest counts.
RUNS = 3


def modules(root: Path) -> dict[str, Path]:
    """Return all modules of the packages in the folders of `root`, by their dotted names."""
    found = {}
    for start in sorted(root.glob("*/suture*/__init__.py")):
        base = start.parents[1]
        for path in sorted(start.parent.rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """Yield what a tree imports by full names, but for what only types need."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def arrows(found: dict[str, Path]) -> set[tuple[str, str]]:
    """Return which folder imports which other one."""
    folders = {name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in found.items()}
    result = set()
    for name, path in found.items():
        for target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            module = target if target in folders else target.rpartition(".")[0]
            if module in folders and folders[module] != folders[name]:
                result.add((folders[name], folders[module]))
    return result


def beside(one: str, other: str) -> bool:
    """Whether neither of two folders lies within the other."""
    return not f"{one}.".startswith(f"{other}.") and not f"{other}.".startswith(f"{one}.")


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    found = modules(root)
    between = arrows(found)
    both = [pair for pair in combinations(sorted({one for one, _ in between}), 2) if {pair, pair[::-1]} <= between]
    classes: Counter[tuple[str, str]] = Counter()
    for name, path in found.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")
        classes.update((own, name.partition(".")[0]) for own in set(named))
    twice = Counter(name for name, _ in classes)
    kinds = Counter(path.stem for name, path in found.items() if ".kinds." in name)
    print(f"modules in the packages: {len(found)}")
    print(f"arrows between folders: {len(between)}, from {len({one for one, _ in between})} folders")
    print(f"folders beside each other that import each other: {[' - '.join(pair) for pair in both if beside(*pair)]}")
    print(f"classes of one name in two packages: {sum(count > 1 for count in twice.values())}")
    if "contribute" in kinds:
        print(f"files of a kind of task: {kinds['contribute'] + 1}, its lines in suture_contract.kinds among them")
    if root == Path(__file__).parents[1]:
        print(f"suture --help, processor seconds: {min(help_seconds() for _ in range(RUNS)):.2f}")


def help_seconds() -> float:
    """Return the processor seconds of `suture --help` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([Path(sys.executable).with_name("suture"), "--help"], check=True, capture_output=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
