"""Commands of a site's operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suture_contract.console.plain import inert
from suture_contract.console.terminal import Format, FormatOption, notes, print_json, print_table, prints
from suture_contract.console.terminal import console as terminal
from suture_contract.errors import SutureError
from suture_worker import faults
from suture_worker.check import Check
from suture_worker.commands.config import HERE, ConfigArgument, load

EXAMPLE = """\
# A site: an installation of Suture beside your data. Relative paths start at this file's folder.
# Unknown keys are refused, so that a typo never passes silently.

[hub]
url = "http://127.0.0.1:8420"
token_file = "token"            # what `suture hub site add` printed; chmod 600

[site]
state = "state"                 # queue, cache and the log of everything that left
party = "north"                 # your own party: its models need no signature
device = "auto"                 # auto, cpu or cuda:0

# A Redis of your own; without this the site starts one that listens on a socket in its state folder.
# [broker]
# url = "redis://127.0.0.1:6379/0"

# A dataset has a name that others may ask for; its path is known here alone.
[datasets.digits]
path = "data/digits.npz"        # image_folder: <path>/<class>/*.png; npz: images, labels; csv, parquet: a label column
format = "npz"
task = "classification"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]   # class names, in the order of their index
split = { validation = 0.2, test = 0.3, seed = 0 }            # used where the data say nothing of splits

# Public keys by which you know other parties' models, from their owners: the hub is not believed here.
# [keys]
# south = "south.pub"

# Nobody may do anything that is not allowed here: not even your own party. A network that somebody built for it carries
# single patients out. So each rule says one of two things, or it is not in force:
#   members_from, signed_by   trust: models of these parties, signed with their keys; results are exact
#   epsilon, delta            noise: models of anybody; no result tells more of one patient than these allow
# An edited file is in force at once; while it is not in order, nothing is leased and nothing leaves.
[policy]
min_patients = 11               # fewer patients than this in a split and no number leaves

[[policy.allow]]
parties = ["north"]             # who asks
actions = ["fit", "evaluate"]   # fit: learn stitches here (for your own party); evaluate: measure candidates here
datasets = ["digits"]
members_from = ["north"]        # your own models alone. With those of others: ["north", "south"], and below
# signed_by = ["south"]
# epsilon = 8                   # or noise: for one patient, and each job
# delta = 1e-5                  # well below one in the number of your patients

# [[policy.allow]]
# parties = ["south"]
# actions = ["evaluate"]
# datasets = ["digits"]
# members_from = ["north", "south"]
# signed_by = ["south"]
# max_model_mib = 500
# evaluations_per_month = 5     # 20 where a rule does not say
# fits_per_month = 5            # with epsilon and delta; 20 where a rule does not say
# approval = "ask"              # a person is asked first: `suture site inbox`
# release = "manual"            # a person looks at the result before it leaves: `suture site outbox`

# [[policy.allow]]
# parties = ["south"]
# actions = ["contribute"]      # sums over samples, for another party's fit: means and second moments of features
# datasets = ["digits"]
# min_patients = 100            # of each split; few patients show through sums
# contributions_per_month = 2
# epsilon = 4                   # for one patient, and each contribution
# delta = 1e-5
"""


def init(path: ConfigArgument = HERE) -> None:
    """Write a commented site.toml to start from.

    An existing file is left alone.

    \b
    Example:
      suture site init site.toml
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise SutureError("site.exists", "the file is there already", where=str(path), hint="name another") from None
    except OSError as error:
        raise SutureError("site.unwritable", error.strerror or "it cannot be written", where=str(path)) from None
    notes.print(f"wrote {path}; edit it, save the site's token in the token file beside it, then:")
    notes.print(f"next:  suture site check {path}")


def run(path: ConfigArgument = HERE) -> None:
    """Run the whole site until it is told to stop.

    Agent, Celery worker and, unless site.toml names one, a Redis of its own.

    \b
    Example:
      suture site run site.toml
    """
    from suture_worker import run_site

    run_site(load(path))


def agent(path: ConfigArgument = HERE) -> None:
    """Run only the agent, which talks to the hub.

    It holds the site's token and computes nothing.

    \b
    Example:
      suture site agent site.toml
    """
    from suture_worker import run_agent

    run_agent(load(path))


def worker(
    path: ConfigArgument = HERE,
    drain: Annotated[
        float, typer.Option(min=0, max=86400, help="seconds that work under way may still take when it is told to stop")
    ] = 0.0,
) -> None:
    """Run only the Celery worker, which computes.

    It has no token and talks to its broker alone. Told to stop (SIGTERM), it takes no more work; what has not ended
    in the seconds of --drain is handed back, and another worker goes on with it.

    \b
    Example:
      suture site worker site.toml --drain 300
    """
    from suture_worker import run_worker

    run_worker(load(path), drain)


def console(
    path: ConfigArgument = HERE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 for any free one")] = 8430,
) -> None:
    """Decide and look up in a browser on this machine: inbox, outbox, what left, data sets, health.

    It listens on the loopback address alone. The link that it prints opens it once, and is in state/console.link, too.

    \b
    Example:
      suture site console site.toml
    """
    from suture_worker.console.app import run_console

    run_console(path, port, lambda link: notes.print(f"open in a browser on this machine:  {link}", soft_wrap=True))


@prints(list[Check])
def check(path: ConfigArgument = HERE, format: FormatOption = Format.text) -> None:
    """Check that the site can work.

    Configuration, token, hub, broker, datasets and device; says what to do about each problem. Ends with 5 when
    something would keep the site from working.

    \b
    Example:
      suture site check site.toml
    """
    from suture_worker import check_site

    checks = check_site(load(path))
    if format is Format.json:
        print_json(checks)
    else:
        rows = [(item.name, item.status, item.detail, item.hint or "") for item in checks]
        print_table(("check", "result", "found", "what to do"), rows, empty="", prose=("found", "what to do"))
    if not all(item.ok for item in checks):
        raise typer.Exit(5)


@prints(list[faults.Failure])
def failure(
    id: Annotated[str, typer.Argument(metavar="ID", help="the id that `suture jobs show` names, or a task's")],
    path: ConfigArgument = HERE,
    config: Annotated[Path | None, typer.Option("--config", hidden=True)] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show what went wrong at this site, in full. Others were told no more than a code and this id.

    \b
    Example:
      suture site failure 0123456789abcdef
      suture site failure 0123456789abcdef /etc/suture/site.toml
    """
    failures = faults.find(load(config or path).state, id)
    if format is Format.json:
        print_json(failures)
        return
    if not failures:
        raise SutureError(
            "site.no_failure",
            "nothing is noted under this id",
            where=id,
            hint="look at the site that `suture jobs show` names; the log keeps the newest entries only",
        )
    for entry in failures:
        terminal.print(f"{entry.time}  {entry.code}  task {entry.task}  id {entry.correlation_id}")
        terminal.print(inert(entry.text), markup=False)
