"""Commands of a hub's operator, which `suture` finds as `suture hub`. They are imported when they are called."""

from __future__ import annotations

from suture_contract.console.tree import Lazy, group

_HERE = "suture_service.commands"

app = group(
    "Run a hub and decide who takes part.\n\n"
    "SUTURE_HUB_DATABASE_URL (sqlite:///… or postgresql://…) and SUTURE_HUB_STORE (a folder or s3://…) say where its "
    "state is; these commands work on it directly.\n\n"
    "\b\n"
    "Example of a first start, for this machine alone; with neither variable, its state is in the present folder:\n"
    "  suture hub migrate\n"
    "  suture hub party add north\n"
    "  suture hub token create north --role publisher --role requester\n"
    "  suture hub site add north main\n"
    "  suture hub serve\n\n"
    "How to serve other machines: suture hub serve --help",
    {
        "serve": Lazy(f"{_HERE}.hub:serve", "Run the hub until it is told to stop (SIGTERM, Ctrl-C)."),
        "migrate": Lazy(f"{_HERE}.hub:migrate", "Bring the database to this version's schema."),
        "party": group(
            "Organisations that take part.",
            {
                "add": Lazy(f"{_HERE}.hub:add_party", "Add a party."),
                "list": Lazy(f"{_HERE}.hub:list_parties", "List the parties and their sites."),
                "suspend": Lazy(
                    f"{_HERE}.membership:suspend_party",
                    "Let none of a party's tokens open anything, until it is resumed.",
                ),
                "resume": Lazy(
                    f"{_HERE}.membership:resume_party", "Let a suspended party's tokens, sites and people in again."
                ),
                "rename": Lazy(f"{_HERE}.membership:rename_party", "Call a party otherwise."),
                "remove": Lazy(f"{_HERE}.membership:remove_party", "Let a party go for good"),
                "quota": Lazy(f"{_HERE}.membership:quota", "Show what parties may fill and what they do"),
            },
        ),
        "token": group(
            "Tokens of parties: made, listed, revoked.",
            {
                "create": Lazy(f"{_HERE}.hub:create_token", "Make a token of a party and print it, this once."),
                "list": Lazy(f"{_HERE}.hub:list_tokens", "List a party's tokens and those of its sites."),
                "revoke": Lazy(f"{_HERE}.hub:revoke_token", "End a token at once."),
            },
        ),
        "site": group(
            "Sites of parties: installations beside their data.",
            {
                "add": Lazy(f"{_HERE}.hub:add_site", "Add a site to a party and print its token, this once."),
                "list": Lazy(
                    f"{_HERE}.hub:list_sites", "List all sites, when they last asked for work, and their version."
                ),
                "token": Lazy(f"{_HERE}.hub:renew_site_token", "Make another token of a site and print it, this once."),
                "suspend": Lazy(f"{_HERE}.membership:suspend_site", "Let a site in no more, until it is resumed."),
                "resume": Lazy(f"{_HERE}.membership:resume_site", "Let a suspended site in again."),
                "rename": Lazy(f"{_HERE}.membership:rename_site", "Call a site otherwise."),
                "remove": Lazy(f"{_HERE}.membership:remove_site", "Let a site go: its token ends for good."),
            },
        ),
        "person": group(
            "People who sign in with their organisation's identity provider.\n\n"
            "SUTURE_HUB_OIDC_ISSUER and SUTURE_HUB_OIDC_CLIENT_ID name the provider.\n\n"
            "\b\n"
            "Example:\n"
            "  suture hub person add north a.berg --email a.berg@north.example --role publisher",
            {
                "add": Lazy(f"{_HERE}.people:add", "Let a person sign in for a party."),
                "list": Lazy(f"{_HERE}.people:list_people", "List who may sign in for a party."),
                "roles": Lazy(f"{_HERE}.people:change_roles", "Give a person these roles and no others."),
                "remove": Lazy(f"{_HERE}.people:remove", "Remove a person."),
                "show": Lazy(f"{_HERE}.people:show", "Show what the hub's data hold about a person"),
                "erase": Lazy(f"{_HERE}.people:erase", "Delete what the hub's data hold about a person"),
            },
        ),
        "audit": group(
            "Who did what at the hub: an append-only log, each entry chained to the one before.\n\n"
            "\b\n"
            "Example, once a month:\n"
            "  suture hub audit verify --expect $(cat last-head) > head && mv head last-head",
            {
                "verify": Lazy(f"{_HERE}.audit:verify", "Check that no entry was changed, removed or slipped in."),
                "export": Lazy(f"{_HERE}.audit:export", "Write the log as JSON, one entry per line."),
                "list": Lazy(f"{_HERE}.audit:list_entries", "Show the newest entries, newest last."),
            },
        ),
        "purge": Lazy(f"{_HERE}.purges:purge", "Take content away for good, wherever this hub has it."),
        "purges": Lazy(f"{_HERE}.purges:purges", "List what was purged, and take it out of backups."),
        "gc": Lazy(f"{_HERE}.store:gc", "Remove what the store holds and nothing refers to."),
        "reconcile": Lazy(f"{_HERE}.store:reconcile", "Compare the database with the store, both ways."),
        "backup": Lazy(f"{_HERE}.store:backup", "Back up database and store into a folder."),
        "restore": Lazy(f"{_HERE}.store:restore", "Fill a new, empty hub with a backup."),
    },
    shows="suture_service",
)
