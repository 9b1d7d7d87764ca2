"""Whether a leased task is done here: the rules, the month's budget, and where a rule says so, a person."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime
from functools import partial

import structlog

from suture_contract.errors import SutureError
from suture_contract.files import sha256_of
from suture_contract.kinds import FILES
from suture_worker.agent.signed import Signers
from suture_worker.compute.checking import check_model
from suture_worker.compute.preview import estimate
from suture_worker.config import SiteConfig
from suture_worker.folder import DOCUMENT, TaskFolder, Terms
from suture_worker.leased_task import LeasedMember, LeasedTask
from suture_worker.rules.inbox import AskedModel, Inbox, Request
from suture_worker.rules.ledger import Ledger, spent_by
from suture_worker.rules.policy import DENIED, ROLLED_BACK, Allow, Decline, asked_by, decide, terms_of

#: More questions of one party than anybody answers are not kept; those of others have room of their own.
MAX_ASKED = 50

log = structlog.get_logger(__name__)


class Admission:
    """The site's decisions about tasks."""

    def __init__(self, config: SiteConfig) -> None:
        self.use(config)
        self._ledger = Ledger(config.state / "ledger.jsonl")
        self.inbox = Inbox(config.state / "inbox")
        self._turn = threading.Lock()

    def use(self, config: SiteConfig) -> None:
        """Decide by these rules from now on; raises `SutureError` (`key.*`) where one of their keys cannot be used."""
        self.signers = Signers(config)
        self._config = config

    def decide(
        self,
        task: LeasedTask,
        operators: tuple[frozenset[str], ...] | None = None,
        signers: tuple[str | None, ...] | None = None,
    ) -> Allow | Decline:
        """Say what the rules and the budget say; when nobody knows what was spent, no."""

        used = partial(self._ledger.used, action=task.action, apart_from=spent_by(task))

        try:
            return decide(task, self._config, used=used, operators=operators, signers=signers)
        except SutureError as error:
            return Decline(DENIED, str(error))

    def admit(self, task: LeasedTask, folder: TaskFolder) -> Allow | Decline | None:
        """Decide about a task whose files have come; None while it waits for a person. What is allowed is charged."""
        operators, signers = _operators(task, folder), self._signers_of(task, folder)
        decision = self.decide(task, operators, signers)
        if isinstance(decision, Decline):
            return decision
        older = _older(task, folder)
        if older and (decision.dataset is None or decision.rule.approval != "ask"):
            return Decline(ROLLED_BACK, f'{"; ".join(older)}. A rule with approval = "ask" lets a person allow it')
        if decision.dataset is None:
            return decision
        if decision.rule.approval == "ask":
            if older and not self.inbox.asked(task, decision.dataset):
                return self._ask(task, decision, decision.dataset, folder)  # no standing approval is meant for this
            answer = self.inbox.answer(task, decision.dataset)
            if answer is None:
                return self._ask(task, decision, decision.dataset, folder)
            if not answer.approved:
                code = f"policy.{answer.told}" if answer.told else DENIED
                return Decline(code, f"declined by {answer.by}: {answer.reason or 'no reason given'}")
        with self._turn:
            # Once more: another task may have been charged meanwhile.
            decision = self.decide(task, operators, signers)
            if isinstance(decision, Allow) and decision.dataset is not None:
                terms = self._terms(task, decision, folder)
                if folder.outcome is not None and terms != _noted(folder):
                    return Decline(DENIED, "the work was done on other terms than the rule in force asks for")
                if task.action != "fit":
                    self._ledger.charge(task, decision.dataset, terms if task.action == "contribute" else None)
                folder.note_terms(terms)
                self.signers.begun.note(task.job.id, task.spec.members)
        return decision

    def spend(self, task: LeasedTask, folder: TaskFolder) -> Decline | None:
        """Enter what a result that is about to leave spends of its job's account; say so if it is too much."""
        dataset = folder.assignment.dataset
        if task.action == "contribute" or dataset is None or not folder.private:
            return None
        with self._turn:
            # Once more: another job's result may have left meanwhile.
            decision = self.decide(task, _operators(task, folder), self._signers_of(task, folder))
            if isinstance(decision, Decline):
                return decision
            try:
                self._ledger.spend(task, dataset, folder.terms, _digest_of_results(task, folder))
            except SutureError as error:
                return Decline(DENIED, str(error))
        return None

    def _terms(self, task: LeasedTask, allowed: Allow, folder: TaskFolder) -> Terms:
        fingerprints = [folder.signer(index) for index in range(len(task.spec.members))]
        return terms_of(allowed, asked_by(task), self._config, fingerprints)

    def manual_release(self, task: LeasedTask, folder: TaskFolder) -> bool:
        """Whether a person looks at the result before it leaves; a composition holds nothing that has not left."""
        if not task.side.reads_data:
            return False
        decision = self.decide(task, _operators(task, folder), self._signers_of(task, folder))
        return not isinstance(decision, Allow) or decision.rule.release == "manual"

    def _signers_of(self, task: LeasedTask, folder: TaskFolder) -> tuple[str | None, ...]:
        return tuple(self.signers.name(folder.signer(index)) for index in range(len(task.spec.members)))

    def _ask(self, task: LeasedTask, decision: Allow, dataset: str, folder: TaskFolder) -> Decline | None:
        if self.inbox.asked(task, dataset):
            return None
        if sum(request.party == task.job.requester for request in self.inbox.requests()) >= MAX_ASKED:
            return Decline(DENIED, f"{MAX_ASKED} questions of {task.job.requester} are waiting for the operator")
        takes = estimate(folder)
        request = Request(
            task=task.id,
            digest=task.digest,
            asked_at=datetime.now(UTC),
            party=task.job.requester,
            action=task.action,
            dataset=dataset,
            job=task.job.id,
            models=tuple(
                AskedModel(**member.ref.model_dump(), party=member.party, size=member.size, signed_by=signer)
                for member, signer in zip(task.spec.members, self._signers_of(task, folder), strict=True)
            ),
            candidates=task.side.candidates(folder),
            older=_older(task, folder),
            options=task.options,
            leaves=task.side.leaves(takes, self._terms(task, decision, folder)),
            estimate=takes,
        )
        self.inbox.ask(request)
        log.info("waits for approval", task=task.id, requester=request.party, dataset=dataset)
        return None


def _operators(task: LeasedTask, folder: TaskFolder) -> tuple[frozenset[str], ...]:
    return tuple(_operators_of(folder, index, member) for index, member in enumerate(task.spec.members))


def _operators_of(folder: TaskFolder, index: int, member: LeasedMember) -> frozenset[str]:
    operators = folder.operators(index)
    if operators is None:  # it came when sites did not note them
        operators = check_model(folder.member(index), member.metadata)
        folder.note_operators(index, operators)
    return operators


def _older(task: LeasedTask, folder: TaskFolder) -> tuple[str, ...]:
    """Return, in words, which models are older than revisions of them that were seen here."""
    members = enumerate(task.spec.members)
    return tuple(f"{member.repo}: {words}" for index, member in members if (words := folder.older(index)) is not None)


def _noted(folder: TaskFolder) -> Terms | None:
    try:
        return folder.terms
    except OSError:
        return None


def _digest_of_results(task: LeasedTask, folder: TaskFolder) -> str:
    """Return a digest of all that a child has made of patients: the same for the same draw of noise."""
    paths = [folder.results / name for name in (DOCUMENT, *FILES[task.kind])]
    return hashlib.sha256("".join(sha256_of(path) for path in paths if path.is_file()).encode()).hexdigest()
