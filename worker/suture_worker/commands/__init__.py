"""Commands of a site's operator, which `suture` finds as `suture site`. They are imported when they are called."""

from __future__ import annotations

from suture_contract.console.tree import Lazy, group

_HERE = "suture_worker.commands"

app = group(
    "Run a site beside your data. It dials out to the hub; nothing can dial in, and no data leave.\n\n"
    "\b\n"
    "Example of a first start:\n"
    "  suture site init site.toml\n"
    "  suture site check site.toml\n"
    "  suture site run site.toml",
    {
        "init": Lazy(f"{_HERE}.site:init", "Write a commented site.toml to start from."),
        "run": Lazy(f"{_HERE}.site:run", "Run the whole site until it is told to stop."),
        "agent": Lazy(f"{_HERE}.site:agent", "Run only the agent, which talks to the hub."),
        "worker": Lazy(f"{_HERE}.site:worker", "Run only the Celery worker, which computes."),
        "console": Lazy(f"{_HERE}.site:console", "Decide and look up in a browser on this machine."),
        "check": Lazy(f"{_HERE}.site:check", "Check that the site can work."),
        "status": Lazy(f"{_HERE}.status:status", "Show what the site does just now."),
        "failure": Lazy(f"{_HERE}.site:failure", "Show what went wrong at this site, in full."),
        "policy": group(
            "See what the rules in site.toml mean, before anybody asks.\n\n"
            "\b\nExample:\n  suture site policy explain --party north --dataset frames",
            {"explain": Lazy(f"{_HERE}.policy:explain", "Say what would happen if a party asked, and why.")},
        ),
        "inbox": group(
            'Approve or decline what others ask for, where a rule in site.toml says `approval = "ask"`.\n\n'
            "\b\nExample:\n  suture site inbox list",
            {
                "list": Lazy(f"{_HERE}.inbox:list_requests", "List what waits for a decision, oldest first."),
                "show": Lazy(f"{_HERE}.inbox:show", "Show one request: who asks, which models, what would leave."),
                "approve": Lazy(f"{_HERE}.inbox:approve", "Let it be done; the site's other limits still hold."),
                "decline": Lazy(f"{_HERE}.inbox:decline", "Do not let it be done."),
                "standing": Lazy(f"{_HERE}.inbox:standing", "List the approvals that hold for a while."),
                "forget": Lazy(f"{_HERE}.inbox:forget", "Withdraw a standing approval."),
            },
        ),
        "outbox": group(
            'Release or refuse results, where a rule in site.toml says `release = "manual"`.\n\n'
            "\b\nExample:\n  suture site outbox list",
            {
                "list": Lazy(f"{_HERE}.outbox:list_held", "List the results that are held, oldest first."),
                "show": Lazy(f"{_HERE}.outbox:show", "Show what would leave, and what was kept back."),
                "release": Lazy(f"{_HERE}.outbox:release", "Let out exactly what `show` shows."),
                "refuse": Lazy(f"{_HERE}.outbox:refuse", "Let nothing out."),
            },
        ),
        "egress": group(
            "Look into the log of everything that left this site.\n\n\b\nExample:\n  suture site egress verify",
            {
                "verify": Lazy(
                    f"{_HERE}.egress:verify", "Check that no record was edited, removed, reordered or cut off."
                ),
                "list": Lazy(f"{_HERE}.egress:list_records", "List what left, newest last."),
                "show": Lazy(f"{_HERE}.egress:show", "Print the exact bytes of one record."),
            },
        ),
    },
    shows="suture_worker",
)
