"""The command inspect: what a portable model is, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from suture_contract.console.terminal import Format, FormatOption, console, notes, print_json, print_table, prints

if TYPE_CHECKING:
    from suture_contract.inspection import Inspection

_SHOWN = 12


@prints("suture_contract.inspection:Inspection")
def inspect(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", exists=True, help="model.safetensors, or a folder that holds one")
    ],
    metadata: Annotated[
        Path | None, typer.Option(exists=True, help="suture.json; by default the one beside the model")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="H,W", help="spatial size of the input to count costs at; repeatable")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT", help="draw the network with its stitch points to a .svg or .html")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="how long looking at it may take")] = 60,
    memory: Annotated[float, typer.Option(min=0.125, metavar="GIB", help="how much memory that may take")] = 2,
    every: Annotated[bool, typer.Option("--all", help="all stitch points and operators, not only the first")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Show what a portable model is: sizes, costs, operators, stitch points, and what is published with it.

    Reads the file's header alone and runs nothing of it, in a process with limits, so that a stranger's file may be
    looked at.

    \b
    Examples:
      suture inspect out
      suture inspect model.safetensors --size 96,96,96 --size 128,128,128
      suture inspect out --plot network.html --format json
    """
    from suture.inspecting import inspect_apart

    if plot is not None and plot.suffix not in (".svg", ".html"):
        raise typer.BadParameter("name a file that ends in .svg or .html", param_hint="--plot")
    shapes = [_size(text) for text in size or ()]
    inspection = inspect_apart(model, metadata=metadata, sizes=shapes, seconds=seconds, memory=int(memory * 2**30))
    if plot is not None:
        from suture_contract.files import replacing
        from suture_contract.model.format import check_file, find_model
        from suture_contract.report.network import draw, page

        svg = draw(check_file(find_model(model)).graph, inspection.points, title=Path(inspection.file).name)
        with replacing(plot) as temporary:
            temporary.write_text(svg if plot.suffix == ".svg" else page(svg, title=inspection.file), encoding="utf-8")
        notes.print(f"wrote {plot}")
    if format is Format.json:
        print_json(inspection)
    else:
        _show(inspection, every=every)


def _size(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size < 2**31 for size in sizes):
        raise typer.BadParameter("whole numbers separated by commas are expected", param_hint="--size")
    return sizes


def _show(inspection: Inspection, *, every: bool) -> None:
    console.print(
        f"{inspection.file}  {inspection.size:,} bytes, format {inspection.version}, torch {inspection.torch}"
    )
    if inspection.task is not None:
        console.print(f"task        {inspection.task}, license {inspection.license}")
    for what, tensors in (("input", inspection.inputs), ("output", inspection.outputs)):
        for tensor in tensors:
            console.print(f"{what:<10}  {tensor.name} {tensor.dtype} ({_sizes(tensor.shape)})".replace("   ", "  "))
    if inspection.labels:
        console.print(f"labels      {', '.join(inspection.labels)}")
    console.print(
        f"parameters  {inspection.parameters:,} in {inspection.tensors} tensors, {inspection.weight_bytes:,} bytes\n"
    )
    costs = [
        (
            "; ".join(" x ".join(map(str, shape[1:])) for shape in cost.inputs),
            f"{cost.flops:,}",
            _bytes(cost.peak_bytes),
            _bytes(cost.bound_bytes),
        )
        for cost in inspection.costs
    ]
    print_table(("one sample of", "FLOPs", "peak memory", "at most, with workspace"), costs, empty="")
    console.print()
    operators = list(inspection.operators.items())
    shown = operators if every else operators[:_SHOWN]
    print_table((f"operators ({len(operators)})", "times"), shown, empty="no operators")
    _rest(len(operators) - len(shown))
    clean = sum(point.clean for point in inspection.points)
    console.print(f"\n{len(inspection.points)} stitch points, {clean} of them clean cuts")
    points = inspection.points if every else inspection.points[:_SHOWN]
    rows = [
        (
            point.name,
            point.module,
            " x ".join(map(str, point.shape)),
            f"{point.depth:.2f}",
            "clean cut" if point.clean else f"bypassed by {len(point.bypassed)} skip{'s'[: len(point.bypassed) > 1]}",
        )
        for point in points
    ]
    print_table(("point", "module", "shape", "depth", "cut"), rows, empty="", prose=("cut",), spare=("depth", "cut"))
    _rest(len(inspection.points) - len(points))
    console.print("\nleaves this machine when it is published")
    for item in inspection.leaves:
        console.print(f"  {item.what:<18}  {item.how_much}")
    console.print("does not leave")
    for line in inspection.stays:
        console.print(f"  {line}")


def _rest(count: int) -> None:
    if count > 0:
        console.print(f"... and {count} more: --all")


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _sizes(shape: tuple[int | None, ...]) -> str:
    return ", ".join(["N", *("any" if size is None else str(size) for size in shape[1:])]) if shape else ""
