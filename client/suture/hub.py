"""A hub as seen from Python: publish, list, stitch, load.

import suture

hub = suture.Hub("https://hub.example", token)          # or what `suture login` stored
hub.publish(network, example, "north/digits", labels=["0", "1"], license="CC-BY-4.0")
job = hub.stitch(["north/digits", "south/digits"], dataset="digits", evaluate_at=["south"])
job.wait()
model = hub.load(job.status.result.repo)                 # a torch.nn.Module
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, Self, Unpack, get_args

from suture.arguments import (
    check_description,
    check_network,
    checked_path,
    checked_repo,
    checked_revision,
    listed,
    one_of,
)
from suture.asking import ask, model_at
from suture.bundle import Bundle, Description, export_model, files_beside, pack
from suture.content import cached, place
from suture.credentials import resolve
from suture.http import Connection, model_path, segment
from suture.job import Job
from suture.keys import Keys
from suture.listing import Listing
from suture.publishing import Visibility, send
from suture.responses import (
    AccessRequest,
    Compared,
    JobStatus,
    Model,
    PartyInfo,
    Purged,
    Revision,
    SiteDataset,
    read_report,
)
from suture.revisions import check_signature, find, reading, report_file, unseen_members, usable
from suture.seen import Seen
from suture.signing import Trust, check_flags, signature_of
from suture.tokens import Tokens
from suture.transfers import OnBytes
from suture_contract.documents import Report
from suture_contract.extras import needs
from suture_contract.fit_options import FitOptions, Recipe
from suture_contract.measures import ClinicalMetric
from suture_contract.model.format import check_against, check_file
from suture_contract.model.metadata import MemberRef, ModelMetadata
from suture_contract.model.signature import SIGNATURE, Signed, sign
from suture_contract.windows import check_path

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from suture_stitching.predict import LoadedModel


class Hub:
    """One hub, as one party. Opens no connection until the first call.

    `url` may also be the profile of a login. Without arguments: SUTURE_PROFILE, or SUTURE_HUB and SUTURE_TOKEN, then
    what `suture login` stored. `trust` says whose models are used; without it, what `suture keys trust` stored. Every
    method may raise `SutureError`; its subclasses in `suture.errors` say whether the token, the name or
    the network is at fault.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, trust: Trust | None = None) -> None:
        credentials = resolve(url, token)
        self.connection = Connection(credentials.url, credentials.token)
        self._trust = trust

    def __repr__(self) -> str:
        return f"Hub({self.connection.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    @property
    def url(self) -> str:
        """The hub's address."""
        return self.connection.url

    @property
    def keys(self) -> Keys:
        """The public keys of parties."""
        return Keys(self.connection)

    @property
    def tokens(self) -> Tokens:
        """The tokens of your party, for its admin."""
        return Tokens(self.connection)

    @property
    def trust(self) -> Trust:
        """Whose models are used."""
        if self._trust is None:
            self._trust = Trust.stored()
        return self._trust

    def whoami(self) -> dict[str, Any]:
        """Return whose token this is: `party`, `kind`, `roles`."""
        answer: dict[str, Any] = self.connection.get("/v1/whoami")
        return answer

    def parties(self) -> Listing[PartyInfo]:
        """Return all parties at the hub by name, with their sites, and whether these asked for work lately."""
        return Listing(PartyInfo.of(item, "/v1/parties") for item in self.connection.pages("/v1/parties"))

    def datasets(self) -> Listing[SiteDataset]:
        """Return the datasets that your party's own sites have told of: what `stitch` may name as `dataset`.

        A site that tells none has none here; its operator knows them (`suture site check`).
        """
        return Listing(SiteDataset.of(item, "/v1/datasets") for item in self.connection.pages("/v1/datasets"))

    # Models

    def publish(
        self,
        model: Module,
        example: Tensor,
        repo: str,
        *,
        card: str | None = None,
        visibility: Visibility = "private",
        key: str | Path | None = None,
        password: str | None = None,
        show: Callable[[Bundle], None] | None = None,
        output_name: str | None = None,
        **description: Unpack[Description],
    ) -> Revision:
        """Export `model`, check that the file alone computes the same, and publish it as `repo` (`party/name`).

        `example` is a batch of inputs `(N, C, *spatial)` with N >= 2. What leaves is handed to `show` first, which may
        raise to stop; without it, a line per file is printed. The same content again gives the same revision. A new
        model is for your party alone unless `visibility` is "all"; an existing one stays as it is: see `share`.
        With `key`, the file of a private key or a `pkcs11:` URI, the model is signed; `password` opens the file.
        Of several outputs of the network, `output_name` says which is published.
        """
        one_of(visibility, get_args(Visibility), "visibility")
        checked_repo(repo)
        check_network(model, example)
        check_description(description, Description.__annotations__)
        with tempfile.TemporaryDirectory(prefix="suture-") as folder:
            path = Path(folder) / "model.safetensors"
            metadata = export_model(model, example, path, output_name=output_name, **description)
            bundle = pack(path, metadata, repo=repo, card=card, hashed=key is not None)
            signed = bundle if key is None else bundle.signed(key, password, repo=repo)
            return send(self.connection, repo, signed, visibility, show)

    def publish_file(
        self,
        path: str | Path,
        repo: str,
        *,
        metadata: ModelMetadata | str | Path | None = None,
        card: str | None = None,
        visibility: Visibility = "private",
        key: str | Path | None = None,
        password: str | None = None,
        show: Callable[[Bundle], None] | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Revision:
        """Publish a portable model that was exported before.

        `metadata`, `card`, `key` and `password` as in `pack_file`; `show` as in `publish`.
        """
        one_of(visibility, get_args(Visibility), "visibility")
        bundle = self.pack_file(path, repo, metadata=metadata, card=card, key=key, password=password)
        return send(self.connection, repo, bundle, visibility, show, on_bytes)

    def pack_file(
        self,
        path: str | Path,
        repo: str,
        *,
        metadata: ModelMetadata | str | Path | None = None,
        card: str | None = None,
        key: str | Path | None = None,
        password: str | None = None,
    ) -> Bundle:
        """Return what `publish_file` would send, checked here and, with `key`, signed; the hub is not asked.

        `metadata` is a `suture.json`, by default the one beside the model; a `README.md` beside it is the card. What
        is not named itself must not be a link out of the folder (`file.outside`). `key` and `password` as in `publish`.
        """
        checked_repo(repo)
        model, metadata, card = files_beside(Path(checked_path(path)), metadata, card)
        bundle = pack(model, metadata, repo=repo, card=card, hashed=key is not None)
        return bundle if key is None else bundle.signed(key, password, repo=repo)

    def sign(self, repo: str, revision: str | None = None, *, key: str | Path, password: str | None = None) -> Revision:
        """Sign the newest revision of an own model, such as a stitched ensemble, and return the signed revision.

        Its files are fetched and checked first: only what is there as the hub says is signed, for this name alone.
        """
        resolved = self.revision(repo, revision)
        check_flags(resolved)
        check_signature(self.connection, self.trust, resolved, newest=checked_revision(revision) is None)
        self.verify_lineage(resolved)
        files = {file.name: cached(self.connection, resolved, file) for file in resolved.files}
        check_against(check_file(files[resolved.model_file.name]), resolved.metadata, where=f"{repo} at {resolved.id}")
        digests = {file.name: file.sha256 for file in resolved.files if file.name != SIGNATURE}
        signature = sign(digests, repo, key, password=password)
        path = f"{model_path(repo)}/revisions/{resolved.id}/signature"
        return Revision.of(self.connection.upload(path, signature), path)

    def withdraw(self, repo: str, revision: str, reason: str) -> Revision:
        """Withdraw a revision of an own model for good: it and all that was made of it is flagged, with the reason."""
        path = f"{model_path(repo)}/revisions/{segment(self.revision(repo, revision).id)}/withdraw"
        return Revision.of(self.connection.post(path, {"reason": reason}, idempotent=True), path)

    def purge(
        self,
        repo: str,
        *,
        path: str | None = None,
        revision: str | None = None,
        reason: str,
        dry_run: bool = False,
    ) -> Purged:
        """Take content out of all models of your party for good, with every revision that holds it.

        Either all that was ever under `path` in `repo`, or one `revision` with the content that no other one holds.
        What was made of these revisions is flagged with the `reason`. With `dry_run`, only say what would go. Repeating
        it is harmless, and finishes what was broken off.
        """
        checked_repo(repo)
        body = {"path": path, "revision": checked_revision(revision), "reason": reason, "dry_run": dry_run}
        where = f"{model_path(repo)}/purge"
        return Purged.of(self.connection.post(where, body, idempotent=True), where)

    def models(
        self,
        search: str | None = None,
        *,
        party: str | None = None,
        task: str | None = None,
        modality: str | None = None,
        license: str | None = None,
        labels: Sequence[str] = (),
        format: str | None = None,
        num_channels: int | None = None,
        spatial_dims: int | None = None,
        min_n: int | None = None,
        sort: Literal["name", "newest", "updated"] = "name",
        limit: int | None = None,
    ) -> Listing[Model]:
        """Return the models this token may read that have all that is asked for, at most `limit`.

        `search` is part of a name or description; `labels` must all be among a model's. `format`, `num_channels` and
        `spatial_dims` (its axes) are those of the input, `min_n` the least number of training samples. In any case.
        """
        pages = self.connection.pages(
            "/v1/models",
            search=search,
            party=party,
            task=task,
            modality=modality,
            license=license,
            label=listed(labels, "labels") or None,
            format=format,
            num_channels=num_channels,
            spatial_dims=spatial_dims,
            min_n=min_n,
            sort=sort,
            limit=limit,
        )
        return Listing(Model.of(item, "/v1/models") for item in pages)

    def revisions(self, repo: str, *, limit: int | None = None) -> Listing[Revision]:
        """Return a model's revisions, newest first, at most `limit`."""
        checked_repo(repo)
        path = f"{model_path(repo)}/revisions"
        return Listing(Revision.of(item, path) for item in self.connection.pages(path, limit=limit))

    def revision(self, repo: str, revision: str | None = None) -> Revision:
        """Return what is known of a revision: its metadata and files; by default the newest.

        `revision` is its id, or the first digits of it, 7 at least, where no other one begins so.
        """
        return find(self.connection, repo, revision)

    def load(
        self,
        repo: str,
        revision: str | None = None,
        *,
        device: str = "cpu",
        allow_flagged: bool = False,
        memory_gib: float | None = None,
        label_prior: Mapping[str, float] | None = None,
    ) -> LoadedModel:
        """Return the model as a `torch.nn.Module`, in evaluation mode, from the cache where it is there already.

        It knows its `labels` and what it reads (`input`), and `predict` names what is in files, arrays or tables.

        Signature, digests and lineage are verified; nothing in the file is executed but the graph's allowed operators.
        What was withdrawn, or made of it, is refused unless `allow_flagged`. A pass that would take much more memory
        than networks of its size do is refused (`model.over_budget`); `memory_gib` says how much it may take instead.

        `label_prior` are the shares of labels where a classifier is used: its probabilities then assume these (raises
        `prior.unknown` where it does not declare its own). That is what a report's "own shares of labels" stands for.
        """
        with needs("torch"):
            from suture_stitching.portable.dry_run import stranger
            from suture_stitching.portable.runtime import load
            from suture_stitching.predict import LoadedModel
            from suture_stitching.prior import AtPrior
            from suture_stitching.running.device import usable as usable_device

        where = usable_device(device)
        resolved = usable(self.connection, self.trust, repo, revision, allow_flagged=allow_flagged)
        path = cached(self.connection, resolved, resolved.model_file)
        check_against(check_file(path), resolved.metadata, where=f"{repo} at {resolved.id}")
        model = load(path, device=where, budget=stranger(path.stat().st_size, memory_gib))
        used = model if label_prior is None else AtPrior(model, resolved.metadata, label_prior).to(where)
        return LoadedModel(used, model, resolved.metadata).eval()

    def pull(
        self,
        repo: str,
        folder: str | Path,
        revision: str | None = None,
        *,
        allow_flagged: bool = False,
        on_bytes: OnBytes | None = None,
    ) -> Revision:
        """Write all files of a revision into `folder`, each verified; files that are there already are left alone.

        A revision that is named may be older than the newest that was seen here; the newest may not. They come from the
        cache as far as it holds them, and are not added to it. What was withdrawn, or made of it, is refused unless
        `allow_flagged`. `on_bytes` is told how much more has come.
        """
        resolved = usable(self.connection, self.trust, repo, revision, allow_flagged=allow_flagged)
        for file in resolved.files:
            place(self.connection, resolved, file, Path(folder) / check_path(file.name), on_bytes=on_bytes)
        return resolved

    def report(self, repo: str, revision: str | None = None) -> Report:
        """Return the party report of a stitched ensemble; what a trusted key has signed must be as it was signed."""
        resolved = self.revision(repo, revision)
        check_signature(self.connection, self.trust, resolved, newest=checked_revision(revision) is None)
        return read_report(
            cached(self.connection, resolved, report_file(resolved)).read_bytes(), where=f"{repo} at {resolved.id}"
        )

    def compare(self, repos: Sequence[str]) -> Listing[Compared]:
        """Return the reports of several stitched ensembles side by side: a line for each ensemble and party.

        Test samples and divisions are compared only if both jobs used the same; `n` tells where they did not.
        """
        return Listing(
            Compared(repo=repo, party=name, verdict=party.verdict, metric=party.metric, n=party.n, rows=party.rows)
            for repo in listed(repos, "repos")
            for name, party in self.report(repo).parties.items()
        )

    def signature(self, revision: Revision) -> Signed | None:
        """Return what the signature of a revision by a trusted key says: whose, for which name, and when.

        None if none of the trusted keys made it. Raises `SutureError` (`signature.*`) where it does not hold.
        """
        keys = self.trust.keys
        return signature_of(revision, reading(self.connection, revision), keys) if keys else None

    def older(self, revision: Revision) -> str | None:
        """Say how a revision is older than the newest signed one of the model that was seen here; None if it is not."""
        signed = self.signature(revision)
        return None if signed is None else Seen.stored().older(revision.repo, signed, self.trust.keys)

    def verify_lineage(self, revision: Revision) -> list[MemberRef]:
        """Check that the members a model says it is made of are what the hub holds under those names.

        Returns the members that this token cannot see and that are therefore unverified. Raises `SutureError`
        `lineage.contradiction` when one is visible and differs.
        """
        return unseen_members(self.connection, revision)

    # Gated models

    def request_access(self, repo: str, reason: str) -> AccessRequest:
        """Ask the owner of a gated model for its files, for your party; `reason` is what the owner reads."""
        path = f"{model_path(repo)}/access"
        return AccessRequest.of(self.connection.post(path, {"reason": reason}), path)

    def access_requests(self, state: str | None = None) -> list[AccessRequest]:
        """Return who asked for your party's gated models (role `steward` or `admin`)."""
        return [AccessRequest.of(item, "/v1/access") for item in self.connection.pages("/v1/access", state=state)]

    def decide_access(
        self, repo: str, party: str, *, accept: bool, answer: str = "", days: int | None = None
    ) -> AccessRequest:
        """Accept a party's request, for good or for some days, or refuse it, now or later."""
        path = f"{model_path(repo)}/access/{segment(party)}"
        body = {"state": "accepted" if accept else "refused", "answer": answer, "days": days}
        return AccessRequest.of(self.connection.request("PUT", path, body=body), path)

    def share(self, repo: str, parties: Sequence[str] = (), *, everyone: bool = False, stop: bool = False) -> Model:
        """Let `parties`, or `everyone` at the hub, read an own model; with `stop`, no longer. Return it as it is then.

        Who reads it already, stays. Copies that others have made are theirs.
        """
        path = model_path(repo)
        # What changes alone: another owner may change the list meanwhile.
        body: dict[str, Any] = {"stop_sharing_with" if stop else "share_with": listed(parties, "parties")}
        if everyone:
            body["visibility"] = "private" if stop else "all"
        return Model.of(self.connection.request("PATCH", path, body=body), path)

    def set_visibility(self, repo: str, visibility: Visibility) -> Model:
        """Let every party read an own model (`all`), or only yours and whom it is shared with (`private`)."""
        one_of(visibility, get_args(Visibility), "visibility")
        path = model_path(repo)
        return Model.of(self.connection.request("PATCH", path, body={"visibility": visibility}), path)

    # Jobs

    def stitch(
        self,
        models: Sequence[str],
        dataset: str,
        evaluate_at: Sequence[str] = (),
        *,
        contribute_from: Sequence[str] = (),
        publish_as: str | None = None,
        evaluate_within: int = 86400,
        seed: int | None = None,
        recipe: Recipe | None = None,
        alphas: Sequence[float] | None = None,
        max_matches: int | None = None,
        refine: bool | None = None,
        refine_steps: int | None = None,
        refine_candidates: int | None = None,
        metrics: Sequence[ClinicalMetric] | None = None,
        **unknown: Never,
    ) -> Job:
        """Ask for a stitched ensemble of `models` (`party/name` or `party/name@revision`), fitted on `dataset`.

        `dataset` is the name your own site gave it; the parties in `evaluate_at` are asked to evaluate (`party` or
        `party/dataset`) and have `evaluate_within` seconds. So have, before the fit, those in `contribute_from`: they
        are asked for moments of the models' features on their data. The result appears as `<your party>/<publish_as>`.
        `seed` and what follows are options of the fit (docs/fit-options.md); None leaves one at its default. One that
        is unknown or ill-typed is refused before anything is sent (`SutureError` `job.options`). So is a model that is
        not shown as a trusted key has signed it, and a newest revision that is older than one seen before.
        """
        stated = {
            "seed": seed,
            "recipe": recipe,
            "alphas": alphas,
            "max_matches": max_matches,
            "refine": refine,
            "refine_steps": refine_steps,
            "refine_candidates": refine_candidates,
            "metrics": metrics,
            **unknown,
        }
        options = FitOptions.read({name: value for name, value in stated.items() if value is not None})
        named = [model_at(self.connection, self.trust, name) for name in listed(models, "models")]
        body = {
            "dataset": dataset,
            "evaluate_at": listed(evaluate_at, "evaluate_at"),
            "contribute_from": listed(contribute_from, "contribute_from") or None,
            "publish_as": publish_as,
            "evaluate_within": evaluate_within,
            "options": options.stated(),
        }
        return Job(self.connection, ask(self.connection, named, body))

    def job(self, job: str) -> Job:
        """Return a job by its id."""
        path = f"/v1/jobs/{segment(job)}"
        return Job(self.connection, JobStatus.of(self.connection.get(path), path))

    def jobs(self, state: str | None = None, *, limit: int = 50) -> Listing[JobStatus]:
        """Return your party's newest jobs."""
        pages = self.connection.pages("/v1/jobs", state=state, limit=limit)
        return Listing(JobStatus.of(item, "/v1/jobs") for item in pages)
