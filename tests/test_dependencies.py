"""What a package imports is declared where it is installed; no index is asked for Suture; what is missing is named."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
BASE = [Requirement(text) for text in PROJECT["dependencies"]]
#: Package -> the extras it may count on, and those of which single functions make use where they are installed.
PACKAGES = {
    "contract/suture_contract": ((), ("signing", "tables", "service")),
    "client/suture": ((), ("torch", "tables")),
    "stitching/suture_stitching": (("torch",), ("imaging", "tables", "onnx", "mlflow")),
    "service/suture_service": (("service",), ()),
    "worker/suture_worker": (("worker",), ("demo",)),
    "local/suture_local": (("service", "worker", "demo"), ()),
}
#: Declared though no line imports them: who does.
USED_BY = {
    "httptools": "uvicorn, by default where it is there",
    "uvloop": "uvicorn, by default where it is there",
    "psycopg": "SQLAlchemy, for postgresql://",
    "pyopenssl": "model-signing, which imports it without declaring it",
    "onnxscript": "torch.onnx",
    "openpyxl": "pandas, for .xlsx",
    "python-gdcm": "pydicom, for compressed images",
    "scikit-learn": "suture_local.digits, for the images in it",
    "pydantic-core": "pydantic, which pins it",
}
CALLED = {"mlflow": "mlflow-skinny"}
OWN = {path.split("/")[1] for path in PACKAGES}


def imports(path: Path) -> set[tuple[str, bool]]:
    """The modules that a package imports, and whether only when a function is called."""
    found = set()

    def look(node: ast.AST, later: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update((alias.name, later) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and not child.level:
                found.add((str(child.module), later))
            look(child, later or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    for file in path.rglob("*.py"):
        look(ast.parse(file.read_text()), False)
    return {(name, later) for name, later in found if name.partition(".")[0] not in sys.stdlib_module_names | OWN}


#: It reads a list of all files that are installed, and so not in each process that collects tests.
installed = cache(packages_distributions)


def distributions(module: str) -> set[str]:
    top = module.partition(".")[0]
    # One that is not installed here, as an extra may be, is mostly called as what is imported.
    return {canonicalize_name(name) for name in installed().get(top, [CALLED.get(top, top)])}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_declared(package):
    counted, used = PACKAGES[package]
    always = names(BASE).union(*(names(EXTRAS[extra]) for extra in counted)) | {"pydantic-core"}
    where_installed = names([*EXTRAS["imaging"]])
    sometimes = always.union(*(names(EXTRAS[extra]) for extra in used))
    assert (ROOT / package).is_dir()
    undeclared = {
        name
        for name, later in imports(ROOT / package)
        if not distributions(name) & (sometimes if later or distributions(name) <= where_installed else always)
    }
    assert undeclared == set()


def test_every_requirement_is_used():
    imported = {name for package in PACKAGES for module, _ in imports(ROOT / package) for name in distributions(module)}
    declared = names(BASE).union(*(names(lines) for extra, lines in EXTRAS.items() if extra != "dev"))
    assert declared - imported - USED_BY.keys() == set()
    assert USED_BY.keys() & imported <= {"pydantic-core"}


def test_a_hub_and_a_client_need_no_torch():
    # Nor does anything else that they install bring it: .ci/images.py starts a hub from a clean installation.
    assert not names([*BASE, *EXTRAS["service"], *EXTRAS["signing"]]) & {"torch", "numpy", "monai", "safetensors"}


def test_a_role_needs_one_extra():
    optional = PROJECT["optional-dependencies"]
    assert set(optional["signing"]) <= set(optional["service"])
    assert {*optional["torch"], *optional["imaging"], *optional["tables"]} <= set(optional["worker"])
    bounds: dict[str, set[str]] = {}
    for requirement in [*BASE, *(line for lines in EXTRAS.values() for line in lines)]:
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_no_requirement_is_suture_itself():
    assert "suture" not in names([*BASE, *(line for lines in EXTRAS.values() for line in lines)])


def texts() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    found = [ROOT / name for name in tracked] or [*ROOT.glob("*"), *ROOT.glob("[a-z]*/**/*")]
    kinds = {".py", ".md", ".toml", ".txt", ".yml", "", ".sh"}
    return [path for path in found if path.suffix in kinds and path.is_file() and path != Path(__file__)]


def test_nobody_is_told_to_look_for_suture_on_an_index():
    asks = re.compile(
        r"(pip3?|uv|pipx)\b[^\n`]*\b(install|add|wheel|download)\b[^\n`]*[ '\"=]suture(\[|['\"\s`=]|$)", re.M
    )
    found = {path: match[0] for path in texts() if (match := asks.search(path.read_text(errors="replace")))}
    assert found == {}
    assert asks.search("hint: pip install 'suture[service]'")
    assert asks.search("pip install --upgrade suture")


def without(*modules: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where these modules are not installed."""
    hidden = "import sys\n" + "".join(f"sys.modules[{module!r}] = None\n" for module in modules)
    return subprocess.run(
        [sys.executable, "-c", hidden + code], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("fit a b --data c --out d", "numpy"),
        ("export a:b out --shape 3 --license MIT --labels a,b", "torch"),
    ],
)
def test_commands_that_need_torch_say_so(line, missing):
    ended = without(missing, code=f"sys.argv = ['suture', *{line.split()!r}]\nfrom suture.cli import main\nmain()")
    assert f"{missing} is not installed" in ended.stderr
    assert "suture.not_installed" in ended.stderr
    assert "'.[torch]'" in ended.stderr


def test_the_sdk_says_so_too():
    code = (
        "import suture\n"
        "try:\n    suture.Hub('http://127.0.0.1:9', token='suture_t').load('a/b')\n"
        "except suture.SutureError as error:\n    print(error.code, error.hint)\n"
    )
    ended = without("torch", code=code)
    assert ended.stdout.startswith("suture.not_installed "), ended.stderr
    assert "'.[torch]'" in ended.stdout


def test_a_fault_of_ours_stays_one():
    code = "from suture_contract.extras import needs\nwith needs('service'):\n    import suture_local.no\n"
    assert "ModuleNotFoundError: No module named 'suture_local.no'" in without(code=code).stderr
