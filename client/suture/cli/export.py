"""The command export: a network of yours, or one that a usual tool keeps, becomes a portable model."""

from __future__ import annotations

import importlib
import math
import operator
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from suture.bundle import Description
from suture_contract.console.terminal import notes
from suture_contract.errors import SutureError
from suture_contract.extras import needs
from suture_contract.files import telling, write_text
from suture_contract.model.metadata import Task, TrainedOn
from suture_contract.naming import did_you_mean
from suture_contract.own_code import own_line

if TYPE_CHECKING:
    from suture_stitching.sources import NetworkSource

#: What is said of a class that draws its weights by chance.
_UNTRAINED = "is it trained? A function that makes it and loads its weights can be named in its place"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="your code, MODULE:NAME: a torch module, or a function that returns one; or a MONAI bundle, a results "
            "folder of nnU-Net, a TorchScript file",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where to write the three files to publish")],
    shape: Annotated[
        str | None, typer.Option(help="one input without its batch, such as 1,28,28 or 17; needed for code of yours")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="such as CC-BY-4.0: what others may do with it; needed unless a bundle says so"),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="names of the output channels in order: cat,dog")] = None,
    task: Annotated[
        Task | None, typer.Option(help="what the model does; classification, where the source says nothing")
    ] = None,
    output: Annotated[
        Literal["logits", "probabilities", "values"] | None,
        typer.Option(help="what the model gives; by default what the end of the network and its outputs show"),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="which of several outputs: logits, 0 or heads.1; by default the plain one"),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|TABLE", help="the input's channels in order; for a table its columns, or the training table"
        ),
    ] = None,
    value_range: Annotated[str | None, typer.Option(help="range of the input values, such as 0,1")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "float64", "int64"],
        typer.Option(help="the type of the input's numbers: int64 for whole numbers, such as tokens"),
    ] = "float32",
    mean: Annotated[str | None, typer.Option(help="what you subtract before the model, per channel")] = None,
    std: Annotated[str | None, typer.Option(help="what you divide by then, per channel")] = None,
    description: Annotated[str | None, typer.Option(help="what the model is")] = None,
    modality: Annotated[str | None, typer.Option(help="a DICOM code such as CT, MR or US, or a word")] = None,
    intended_use: Annotated[str | None, typer.Option(help="what it may be used for")] = None,
    limitations: Annotated[str | None, typer.Option(help="what it cannot do, or was not tried on")] = None,
    training_data: Annotated[str | None, typer.Option(help="what it learnt from, in words")] = None,
    n: Annotated[int | None, typer.Option(help="number of training samples")] = None,
    trained_on: Annotated[
        TrainedOn | None, typer.Option(help="the part of your site's data that training used: train, or all")
    ] = None,
    label_prior: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES", help="share of each label among the training samples, in their order, such as 0.64,0.36"
        ),
    ] = None,
    split_digest: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="of that split, as `suture data split` prints it")
    ] = None,
    citation: Annotated[str | None, typer.Option(help="how to cite it")] = None,
    doi: Annotated[str | None, typer.Option(help="its DOI, such as 10.5281/zenodo.1234")] = None,
) -> None:
    """Turn a PyTorch model into a portable model.

    Your own code is imported here, on your own machine, from the current folder; the written file holds the weights
    and a list of allowed operations, and is verified by computing with it. Nothing is sent.

    Of a MONAI bundle (folder or zip), a results folder or fold of nnU-Net v2, and a TorchScript file, no code is run.
    What they say about inputs, labels and preprocessing goes into suture.json, as does what modules of timm and
    TorchXRayVision and weights of torchvision say; options stand above it. What there are no words for is refused.

    \b
    Examples:
      suture export lesions:trained out --shape 3,224,224 --labels benign,malignant --license CC-BY-4.0
      suture export risk:model out --shape 3 --channels age,bp,hr --task regression --license CC-BY-4.0
      suture export ill:model out --shape 17 --channels train.csv --labels no,yes --output logits --license CC0-1.0
      suture export spleen_ct_segmentation out --license Apache-2.0
      suture export nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0 out --license CC-BY-4.0
      suture export scripted.pt out --shape 1,224,224 --labels no,yes --license CC-BY-4.0
    """
    from suture.bundle import export_model
    from suture_contract.card import write_card

    with needs("torch"):
        import torch
    sizes = [int(size) for size in _numbers(shape, "--shape")] if shape else None
    opened = _opened(source, sizes)
    bounds = tuple(_numbers(value_range, "--value-range")) if value_range else None
    if bounds is not None:
        opened = replace(opened, description={**opened.description, "value_range": _ends(bounds)})
    example = opened.example(sizes, getattr(torch, dtype))
    fields = opened.described(
        license=license,
        task=task,
        labels=[label.strip() for label in labels.split(",")] if labels is not None else None,
        output=output,
        channels=_channels(channels, example.shape[1]) if channels is not None else None,
        value_range=bounds,
        mean=_numbers(mean, "--mean") if mean else None,
        std=_numbers(std, "--std") if std else None,
        description=description,
        modality=modality,
        intended_use=intended_use,
        limitations=limitations,
        training_data=training_data,
        n=n,
        trained_on=trained_on,
        label_prior=_numbers(label_prior, "--label-prior") if label_prior else None,
        split_digest=split_digest,
        citation=citation,
        doi=doi,
    )
    for note in opened.notes:
        notes.print(note)
    with _folder_for_a_model(folder) as path:
        metadata = export_model(
            opened.module, example, path, output_name=output_name, tell=notes.print, **cast(Description, fields)
        )
    write_text(folder / "suture.json", metadata.to_json())
    write_text(folder / "README.md", write_card(_named(source), metadata))
    notes.print(f"wrote {folder}/model.safetensors, suture.json and README.md; the file alone computes the same")
    notes.print(f"next:  suture publish {folder} PARTY/NAME")


@contextmanager
def _folder_for_a_model(folder: Path) -> Iterator[Path]:
    """Make the folder and yield where the model goes; where it is refused, a folder that was not there goes again."""
    made = not folder.exists()
    with telling(folder, code="file.unwritable"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder / "model.safetensors"
    except SutureError:
        if made:
            folder.rmdir()
        raise


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter("numbers separated by commas are expected", param_hint=option) from None


def _ends(bounds: Sequence[float]) -> tuple[float, float]:
    if len(bounds) != 2 or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise typer.BadParameter("two numbers are expected, the smaller one first", param_hint="--value-range")
    return bounds[0], bounds[1]


def _channels(text: str, count: int) -> list[str]:
    """Return the names of the channels: as written, or the first columns of a training table, which the model reads."""
    if not Path(text).is_file():
        return [name.strip() for name in text.split(",")]
    from suture_stitching.data.table_files import column_names

    names = column_names(Path(text))
    if len(names) != count:
        raise SutureError(
            "export.channels",
            f"the model reads {count} columns, the table has {len(names)} besides label, split and patient: "
            + ", ".join(names),
            where=text,
            hint="write them in the order in which the model reads them: --channels age,bp,hr",
        )
    return names


def _named(source: str) -> str:
    """Return what a card calls a model that nobody has named: the file, folder or module it came from."""
    return Path(source).resolve().stem if Path(source).exists() else source.rpartition(":")[0]


def _opened(source: str, sizes: list[int] | None) -> NetworkSource:
    """Return the network at a path, or the one that `module:name` is or makes, with what it says about itself."""
    with needs("torch"):
        from suture_stitching.sources import of_module, of_weights, open_source
    module_name, colon, name = source.partition(":")
    if Path(source).exists() or not colon or os.sep in source:
        return open_source(source, sizes)
    made = imported(source, module_name, name)
    if (known := of_weights(made)) is not None:
        return known
    network = _called(made, source) if _makes(made) else made
    opened = of_module(network)
    if isinstance(made, type) and _differ(network.state_dict(), _called(made, source).state_dict()):
        return replace(opened, notes=[*opened.notes, f"{source} has other weights each time it is made: {_UNTRAINED}"])
    return opened


def _makes(made: Any) -> bool:
    """Whether it is a function or class that returns a network, and no network."""
    return callable(made) and (isinstance(made, type) or not hasattr(made, "state_dict"))


def _differ(state: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two networks of a class have other numbers; what is no tensor, or has no size yet, says nothing."""
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    numbers = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)}
    return any(name not in other or not value.equal(other[name]) for name, value in numbers.items())


def _called(function: Any, source: str) -> Any:
    """Return what the user's own function returns."""
    try:
        return function()
    except SutureError:
        raise
    except Exception as error:
        raise _theirs(error, source) from error


def _theirs(error: Exception, source: str) -> SutureError:
    """Return the error for one in the user's own code: what it is and in which of the user's lines."""
    line = own_line(error)
    return SutureError(
        "export.own_code",
        f"{type(error).__name__}: {str(error)[:400]}" + (f" at {line}" if line else ""),
        where=source,
        hint="a function is called without arguments and returns the network: def make(): return Network(size=3)",
    )


def imported(source: str, module_name: str, name: str) -> Any:
    """Return what `module:name` names. It is the user's own code, named on the command line."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # what `python -m` does
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.partition(".")[0])
        if module_name and not missing:
            raise _theirs(error, source) from error
        hint = f"leave .py out: {module_name.removesuffix('.py')}:{name}" if module_name.endswith(".py") else None
        raise SutureError(
            "export.import", str(error), where=source, hint=hint or "run it in the folder of your code"
        ) from None
    except Exception as error:
        raise _theirs(error, source) from error
    try:
        return operator.attrgetter(name)(module)
    except AttributeError as error:
        own = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise SutureError(
            "export.import", str(error), where=source, hint=did_you_mean(name, own) if own else None
        ) from None
