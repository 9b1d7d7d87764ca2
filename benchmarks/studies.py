"""The studies that the benchmarks know: digits, heart disease, white blood cells."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from networks import PlainNetwork
from torch import nn

from suture_local import digits, heart
from suture_local.study.data import PartySamples, Study
from suture_local.study.reading import image_files
from suture_local.study.tables import TableColumns, table_files
from suture_local.training import untrained

LABORATORIES = {"tecom": "wbc_tecom", "cellavision": "wbc_cellavision"}


def digits_study() -> Study:
    """Return the digits that scikit-learn carries, divided between two parties with other scanners."""

    def divide(seed: int) -> dict[str, PartySamples]:
        divided_digits = digits.parties(seed)
        return {party: PartySamples(own.inputs, own.labels, own.split) for party, own in divided_digits.items()}

    def networks(design: int, seed: int) -> nn.Module:
        return untrained((PlainNetwork, digits.ResidualNetwork)[design], seed)

    return Study("digits", "classification", digits.LABELS, digits.PARTIES, divide, networks=networks)


def heart_study() -> Study:
    """Return heart disease (0, 1) at four hospitals, from the tables of the second demo."""
    return table_files(
        "heart",
        {party: heart.table(party) for party in heart.PARTIES},
        TableColumns(
            "disease", categories=("cp", "restecg", "slope", "thal"), ignored=("num",), zero_is_missing=("chol",)
        ),
    )


def cells_study(folder: Path) -> Study:
    """Return white blood cells (background, cytoplasm, nucleus) at two laboratories."""
    files = {party: folder / f"{file}.npz" for party, file in LABORATORIES.items()}
    return image_files("cells", "segmentation", files, masks="masks3", labels=("background", "cytoplasm", "nucleus"))


#: The studies whose data the packages carry, by name.
CARRIED = {"digits": digits_study, "heart": heart_study}


def asked_for(description: str | None, *, least_seeds: int = 1) -> argparse.Namespace:
    """Return what a benchmark of the choice is asked for: `studies`, `data`, `seeds`, `epochs`, `kept`, `json`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=[*CARRIED, "cells"])
    parser.add_argument("--data", type=Path, help="folder with the cells' images")
    parser.add_argument("--seeds", type=int, default=5, help=f"{least_seeds} at least")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--epochs", type=int, help="of each training, by default those of the kind of data")
    parser.add_argument("--kept", type=Path, required=True, help="evaluations are kept in this folder")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.data is None and "cells" in options.studies:
        parser.error("cells need --data FOLDER")
    if options.seeds < least_seeds:
        parser.error(f"--seeds: {least_seeds} are needed at least, for an interval over them")
    return options


def studies_of(options: argparse.Namespace) -> Iterator[tuple[str, Study, range]]:
    """Yield each study that was `asked_for`, by its name, with its seeds."""
    for name in options.studies:
        study = cells_study(options.data) if name == "cells" else CARRIED[name]()
        yield name, study, range(options.first, options.first + options.seeds)
