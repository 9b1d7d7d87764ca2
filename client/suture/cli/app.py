"""The tree of commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from suture.cli import access, fit, hub, inspect, jobs, keys, local, login, models, onnx, site
from suture.cli.terminal import EXIT_CODES, group

app = group(
    "Publish trained models, never data, and stitch models of several parties into one better ensemble.\n\n"
    "The hub and its token come from `suture login`, or from SUTURE_HUB and SUTURE_TOKEN.\n\n"
    "\b\n"
    "Examples:\n"
    "  suture demo                                 the whole story on this machine, in about a minute\n"
    "  suture login --hub https://hub.example      keep your party's token\n"
    "  suture publish out north/digits             publish what `suture export` wrote\n"
    "  suture stitch north/digits south/digits --dataset digits --evaluate-at south\n"
    "  suture report north/stitched\n"
    "  suture fit north.safetensors south.safetensors --data scans/ --out joint      without a hub\n\n" + EXIT_CODES
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"suture {version('suture')}")
        raise typer.Exit


@app.callback()
def _root(
    _wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    pass


app.command()(local.demo)
app.command()(local.up)
app.command()(login.login)
app.command()(models.export)
app.command()(onnx.export_onnx)
app.command()(inspect.inspect)
app.command()(models.publish)
app.command()(models.models)
app.command()(jobs.stitch)
app.command()(fit.fit)
app.add_typer(jobs.app, name="jobs")
app.add_typer(access.app, name="access")
app.command()(models.pull)
app.command()(models.report)
app.add_typer(keys.app, name="keys")
app.command()(keys.sign)
app.command()(keys.verify)
app.command()(keys.withdraw)
app.add_typer(hub.app, name="hub")
app.add_typer(site.app, name="site")
