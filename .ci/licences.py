"""The licences of all that an installed Suture needs, as packages state them; fails where one is not known to fit.

`make licences`. What only develops and tests Suture is left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

EXTRAS = {"torch", "service", "worker", "imaging", "onnx", "mlflow", "signing", "demo"}
#: All go with Apache-2.0. MPL-2.0 asks for the source of changes to its own files, and we make none.
FIT = r"apache|\bmit\b|bsd|\bisc\b|python software|\bpsf|mpl|mozilla|unlicense|zlib|hpnd|0bsd|cc0"
#: See CONTRIBUTING.md.
EXCEPTIONS = {"moocore", "psycopg", "psycopg-binary", "sigstore-models"}


def stated(package: Distribution) -> str:
    """Return what a package says its licence is."""
    about = package.metadata
    kinds = [kind.rpartition(" :: ")[2] for kind in about.get_all("Classifier", []) if kind.startswith("License ::")]
    texts = (about["License-Expression"], ", ".join(kinds), about["License"])
    return next((text.strip().partition("\n")[0][:70] for text in texts if text and text.strip()), "not stated")


def collect(name: str, extras: Iterable[str], found: dict[str, tuple[Distribution, set[str]]]) -> None:
    """Add a package to those found, and all that it needs with these extras."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return  # for another system
    wanted = {"", *extras}
    if wanted <= found.setdefault(package.name.lower(), (package, set()))[1]:
        return
    found[package.name.lower()][1].update(wanted)
    for need in map(Requirement, package.requires or ()):
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted):
            collect(need.name, EXTRAS if need.name == "suture" else need.extras, found)


packages: dict[str, tuple[Distribution, set[str]]] = {}
collect("suture", EXTRAS, packages)
unknown = []
for name, (package, _) in sorted(packages.items()):
    licence = stated(package)
    fits = re.search(FIT, licence, re.IGNORECASE) or name in EXCEPTIONS
    print(f"{'' if fits else '?':2}{name:34}{package.version:16}{licence}")
    unknown += [] if fits else [name]
sys.exit(f"not known to fit: {', '.join(unknown)}" if unknown else 0)
