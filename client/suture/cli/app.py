"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from suture_contract.console.tree import Joined, Lazy, group
from suture_contract.exit_codes import EXIT_CODES

JOBS = group(
    "Follow, wait for, cancel and retry stitch jobs.",
    {
        "list": Lazy("suture.cli.jobs:list_jobs", "List your party's jobs, and those it takes part in, newest first."),
        "show": Lazy("suture.cli.jobs:show", "Show a job with its tasks."),
        "wait": Lazy("suture.cli.jobs:wait", "Wait until a job has ended."),
        "cancel": Lazy("suture.cli.jobs:cancel", "Cancel a job; the sites working on it stop."),
        "retry": Lazy("suture.cli.jobs:retry", "Try a failed job again, or ask those again that a partial one lacks."),
    },
)
ACCESS = group(
    "Gated models: everyone sees what they are, their owner decides who gets the files.\n\n"
    "\b\n"
    "Example:\n"
    "  suture access request north/polyps --reason 'to stitch it with our own'\n"
    "  suture access list --state pending                  (at north)\n"
    "  suture access accept north/polyps south --days 365  (at north)",
    {
        "request": Lazy("suture.cli.access:request", "Ask for the files of a gated model, for your party."),
        "list": Lazy("suture.cli.access:list_requests", "List who asked for your party's gated models."),
        "accept": Lazy("suture.cli.access:accept", "Give a party the files of a gated model."),
        "refuse": Lazy("suture.cli.access:refuse", "Refuse a party's request, or take back what was granted."),
    },
)
DATA = group(
    "Data on this machine, as a site reads them; nothing is sent.\n\n"
    "\b\n"
    "Example:\n"
    "  suture data split site.toml --dataset digits --out splits.csv",
    {
        "check": Lazy("suture.cli.data:check", "Show what Suture reads from a dataset, in numbers a person can judge."),
        "split": Lazy("suture.cli.data:split", "Show how a site divides a dataset into train, validation and test."),
        "suggest": Lazy("suture.cli.data:suggest", "Look at data and write the section that describes them."),
    },
)
KEYS = group(
    "Keys: a party signs its models with its own, readers verify them with the public one they got from it.\n\n"
    "\b\n"
    "Example:\n"
    "  suture keys create north                            (at north; north.pem stays there)\n"
    "  suture keys register north.pub                      (at north)\n"
    "  suture publish out north/digits --key north.pem --everyone      (at north)\n"
    "  suture keys trust north north.pub                   (at south, with the file that north handed over)",
    {
        "create": Lazy("suture.cli.keys:create", "Make a pair of keys on the curve P-256."),
        "register": Lazy("suture.cli.keys:register", "Register a public key of your party at the hub."),
        "list": Lazy("suture.cli.keys:list_keys", "List a party's public keys."),
        "revoke": Lazy("suture.cli.keys:revoke", "Revoke a key of your party for good."),
        "trust": Lazy("suture.cli.keys:trust", "Use models that are signed with this key, and from now on no others."),
    },
)

TOKENS = group(
    "Tokens of your party and of its sites, for its admin.\n\n"
    "\b\n"
    "Example:\n"
    "  suture tokens list\n"
    "  suture tokens revoke tok_5f0c2a9be1d34c77",
    {
        "list": Lazy("suture.cli.tokens:list_tokens", "List the tokens of your party and of its sites"),
        "revoke": Lazy("suture.cli.tokens:revoke", "End a token of your party, or of one of its sites, at once"),
    },
)

app = group(
    "Publish trained models, never data, and stitch models of several parties into one better ensemble.\n\n"
    "The hub and its token come from `suture login`, or from SUTURE_HUB and SUTURE_TOKEN. "
    "With several hubs, name one: `suture --hub NAME` or SUTURE_PROFILE.\n\n"
    "\b\n"
    "Examples:\n"
    "  suture demo                                 the whole story on this machine, in about a minute\n"
    "  suture login --hub https://hub.example      keep your party's token\n"
    "  suture publish out north/digits --everyone  publish what `suture export` wrote\n"
    "  suture stitch north/digits south/digits --dataset digits --evaluate-at south\n"
    "  suture report north/stitched\n"
    "  suture fit north.safetensors south.safetensors --data scans/ --out joint      without a hub\n\n" + EXIT_CODES,
    {
        "demo": Joined("Play the whole story on this machine.", extra="service,worker,demo"),
        "up": Joined("Keep a hub and sites running on this machine.", extra="service,worker,demo"),
        "simulate": Joined("Play several parties on this machine: what would stitching bring?", extra="torch"),
        "login": Lazy("suture.cli.login:login", "Keep a hub's address and your token."),
        "hubs": Lazy("suture.cli.login:hubs", "List the hubs that you are signed in at, and which one is used."),
        "export": Lazy("suture.cli.export:export", "Turn a PyTorch model into a portable model."),
        "export-onnx": Lazy("suture.cli.formats:export_onnx", "Write a portable model, stitched or not, as ONNX."),
        "export-mlflow": Lazy(
            "suture.cli.formats:export_mlflow", "Write a portable model, stitched or not, as an MLflow model."
        ),
        "export-bundle": Lazy(
            "suture.cli.formats:export_bundle", "Write a portable model, stitched or not, as a MONAI bundle."
        ),
        "inspect": Lazy("suture.cli.inspect:inspect", "Show what a portable model is."),
        "publish": Lazy("suture.cli.models:publish", "Publish a portable model."),
        "models": Lazy("suture.cli.models:models", "List the models you may read."),
        "stitch": Lazy("suture.cli.jobs:stitch", "Ask for a stitched ensemble of several models."),
        "data": DATA,
        "fit": Lazy("suture.cli.fit:fit", "Stitch models on this machine, without a hub."),
        "jobs": JOBS,
        "access": ACCESS,
        "pull": Lazy("suture.cli.models:pull", "Download a model with metadata, card and report."),
        "share": Lazy("suture.cli.models:share", "Let other parties read a model of yours."),
        "report": Lazy("suture.cli.models:report", "Show the party report of a stitched ensemble."),
        "keys": KEYS,
        "sign": Lazy("suture.cli.keys:sign", "Sign the newest revision of an own model."),
        "verify": Lazy("suture.cli.keys:verify", "Check the signature over all files of a folder."),
        "withdraw": Lazy("suture.cli.keys:withdraw", "Withdraw a revision of an own model for good."),
        "tokens": TOKENS,
        "purge": Lazy("suture.cli.purge:purge", "Take content out of all models of your party for good."),
        "hub": Joined("Run a hub and decide who takes part.", extra="service"),
        "site": Joined("Run a site beside your data.", extra="worker"),
    },
    completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"suture {version('suture')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="NAME|URL", help="the profile of a login (SUTURE_PROFILE), or a hub's address"),
    ] = None,
    _wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and end")
    ] = False,
) -> None:
    if hub is not None:
        from suture.credentials import choosing

        context.with_resource(choosing(hub))
