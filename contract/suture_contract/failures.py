"""What the codes of failed tasks mean, and what to do next: a site tells others no more of a failure than its code."""

from __future__ import annotations

from collections.abc import Sequence

_AT_SITE = "its operator looks what it was"
_RULES = "its operator sees which rule: suture site policy explain"
#: By code, or by what stands before its dot: what happened, and what to do.
_MEANINGS: dict[str, tuple[str, str]] = {
    "dataset.unknown": ("the site has no dataset of this name", "name one that the site's site.toml has"),
    "dataset.one_class": ("the training data show a single class", "fit on a dataset with two classes or more"),
    "dataset": ("the dataset could not be read, or does not suit the models", _AT_SITE),
    "policy.too_few_samples": ("fewer patients than the site lets numbers leave for", "evaluate on more data"),
    "policy.noise_without_contributions": (
        "the own site's rule adds noise, and a fit with noise uses no contributions of other parties",
        "ask again without contributions, or for a fit by a rule that names whose models it trusts",
    ),
    "policy.older_revision": (
        "the site has seen a newer signed revision of one of the models, and runs no older one by itself",
        "ask again with the newest revisions, or have its operator allow this one: approval by a person",
    ),
    "policy": ("the rules of the site do not allow this", _RULES),
    "signature": (
        "a model is not as a key that the site trusts has signed it",
        "ask its owner whether the hub shows what they published",
    ),
    "outbox": ("the site did not let the result out", _AT_SITE),
    "result": ("the hub refused the result", f"{_AT_SITE}; compare the versions of hub and site"),
    "output.not_finite": (
        "a model gave NaN or infinity on the data",
        "compare the data with value_range in suture.json",
    ),
    "work.out_of_memory": ("the task needed more memory than it gets", "raise limits.memory_gib in site.toml"),
    "work.time_limit": ("the task took longer than it may", "raise limits.seconds in site.toml"),
    "work": ("the computation ended badly", _AT_SITE),
    "site.disk_full": ("the disk of the site is full", "its operator makes room"),
    "task.lease_expired": ("no heartbeat came from the site", "see whether it runs: suture site check"),
    "task.no_answer": ("the party did not answer in time", "ask it, then try again"),
}
#: What another try of the same job would meet again.
_ANEW = ("dataset.unknown", "dataset.one_class", "policy.noise_without_contributions", "policy.older_revision")


def meaning(code: str, id: str | None, job: str, models: Sequence[str] = ()) -> tuple[str, str]:
    """Return what the code of a failed job says in words, and what to do next; `id` leads to the site's details.

    What asking for the same once more cannot mend is asked anew, for the `models` of the job.
    """
    known = _MEANINGS.get(code) or _MEANINGS.get(code.partition(".")[0])
    text, first = known or ("the task could not be done", _AT_SITE)
    details = f" (at the site: suture site failure {id})" if id is not None else ""
    if code in _ANEW:
        option = " --dataset NAME" if code.startswith("dataset.") else " …"
        return text, f"{first}{details}: suture stitch {' '.join(models) or 'MODEL MODEL'}{option}"
    return text, f"{first}{details}; then suture jobs retry {job}"
