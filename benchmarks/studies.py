"""The studies that the benchmarks know: digits, heart disease, white blood cells."""

from __future__ import annotations

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
