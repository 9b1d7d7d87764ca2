"""Commands that write a portable model for other tools: export-onnx, export-mlflow, export-bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, print_json, prints
from suture_contract.model.format import METADATA, find_model
from suture_contract.model.metadata import ModelMetadata


@prints("suture_stitching.formats.onnx:OnnxExported")
def export_onnx(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, help="model.safetensors, or a folder that holds one")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="the file to write")],
    metadata: Annotated[
        Path | None,
        typer.Option(exists=True, help="suture.json, for names and labels; by default the one beside the model"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="largest difference allowed, relative to the size of the outputs")
    ] = 1e-4,
    format: FormatOption = Format.text,
) -> None:
    """Write a portable model, stitched or not, as ONNX.

    The ONNX model is run in onnxruntime beside the portable one, with other batch sizes and wherever sizes are free
    with other sizes, and is written only if both give the same. Labels and suture.json go along as its metadata.
    What the model expects its caller to do before it (preprocessing in suture.json) is not part of it.

    Needs the extra onnx: pip install '.[torch,onnx]' in a checkout

    \b
    Examples:
      suture export-onnx stitched/model.safetensors stitched.onnx
      suture export-onnx out model.onnx --tolerance 1e-5 --format json
    """
    from suture_stitching.formats.onnx import export_onnx
    from suture_stitching.portable.runtime import load

    path = find_model(model)
    beside = metadata or path.with_name(METADATA)
    described = ModelMetadata.read(beside) if metadata or beside.exists() else None
    written = export_onnx(load(path), out, metadata=described, tolerance=tolerance)
    if format is Format.json:
        print_json(written)
        return
    console.print(f"wrote {written.path}, ONNX opset {written.opset}")
    for what, values in (("reads", written.inputs), ("gives", written.outputs)):
        for name, shape in values.items():
            console.print(f"  {what} {name} ({', '.join(map(str, shape))})")
    console.print(f"  onnxruntime's outputs differ by at most {written.difference:.1g} of their size")


ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", exists=True, help="a folder with model.safetensors and suture.json"),
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="the folder to write; it must be new")]


@prints("suture_stitching.formats.mlflow:MlflowExported")
def export_mlflow(model: ModelArgument, folder: FolderArgument, format: FormatOption = Format.text) -> None:
    """Write a portable model, stitched or not, as an MLflow model.

    mlflow.pyfunc loads and serves it: predict takes a batch as it is before preprocessing, or a data frame with a
    table's columns, and gives probabilities or values. Nothing is pickled; the code that runs it goes along. It is
    loaded by MLflow and compared before the folder gets its name.

    Needs the extra mlflow: pip install '.[torch,mlflow]' in a checkout

    \b
    Examples:
      suture export-mlflow stitched stitched-mlflow
      mlflow models serve -m stitched-mlflow --env-manager local
    """
    from suture_stitching.formats.mlflow import export_mlflow

    written = export_mlflow(model, folder)
    if format is Format.json:
        print_json(written)
        return
    console.print(f"wrote {written.path}: mlflow.pyfunc.load_model({str(written.path)!r}).predict(batch)")
    console.print(f"  reads {written.inputs}\n  gives {written.outputs}")
    console.print(f"  outputs differ by at most {written.difference:.1g} of their size")


@prints("suture_stitching.formats.monai_bundle:BundleExported")
def export_bundle(model: ModelArgument, folder: FolderArgument, format: FormatOption = Format.text) -> None:
    """Write a portable model, stitched or not, as a MONAI bundle.

    It runs wherever MONAI does, without Suture: models/model.ts holds the network, configs/ what it reads and gives and
    how an image is prepared, as far as suture.json says. The network is read back and compared first.

    Needs the extra imaging: pip install '.[torch,imaging]' in a checkout

    \b
    Examples:
      suture export-bundle stitched stitched-bundle
      python -m monai.bundle run evaluating --config_file stitched-bundle/configs/inference.json \\
        --bundle_root stitched-bundle --dataset_dir scans
    """
    from suture_stitching.formats.monai_bundle import export_bundle

    written = export_bundle(model, folder)
    if format is Format.json:
        print_json(written)
        return
    console.print(
        f"wrote {written.path}; its network's outputs differ by at most {written.difference:.1g} of their size"
    )
