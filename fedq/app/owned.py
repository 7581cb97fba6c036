"""A client that opens its owner's data only once a request was admitted and paid for. Knows clients; not messages.

Whether data can be read and trained on depends on them, and so does an answer that is given before a spend: asked often
enough, a server reads values off it. So a handshake is answered from public configuration alone, and whatever fails
after the spend gets one and the same answer, and costs the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fedq.client import Client, ClientState, Privacy, accept_round, check_account, check_holdout
from fedq.flower import wire
from fedq.privacy import Ledger, budget_guard


class FailedAfterAdmissionError(RuntimeError):
    """The client's data, model or training failed; why stays with its owner (the cause of this error)."""


@dataclass
class OwnedClient:
    """Stands for a `Client` under a privacy unit that is built, with its data, when it first trains or counts.

    `privacy`: the client's own DP; None where the server alone adds noise, and nothing is charged here.
    """

    identity: str
    state: ClientState
    build: Callable[[], Client]
    privacy: Privacy | None
    on_training: Callable[[int], None] = field(default_factory=lambda: accept_round, init=False)  # may decline it
    private: bool = field(default=True, init=False)
    layout_digest: bytes = field(default=b"", init=False)  # of the model: not known before the data are opened

    def check_account(self) -> None:
        """Declined or LedgerError where this client cannot take part in even one round."""
        check_account(self.privacy)

    def note_declined(self, why: str) -> None:
        """Beside the run's other files; the app notes it for the owner too."""

    def train(self, request: wire.Request) -> wire.Reply:
        """The update for one request; Declined, LedgerError or MalformedReply before any data are opened."""
        self.on_training(request.round)
        paid = self._paid(request, counts=False)
        return self._after_admission(lambda client: client.train(request, paid=paid))

    def evaluate(self, request: wire.Request) -> wire.Reply:
        """Noisy counts on the examples that this client holds out, if its plan covers them."""
        if self.privacy is None or self.privacy.plan.evaluation_epsilon is None:
            raise PermissionError("an evaluation is not covered by this client's privacy plan")
        paid = self._paid(request, counts=True)
        return self._after_admission(lambda client: client.evaluate(request, paid=paid))

    def _paid(self, request: wire.Request, *, counts: bool) -> int | None:
        """The row of the ledger that pays for the request; None where the server adds the noise."""
        with self.state.exclusive():
            late = request.round < self.state.round
        if late:
            raise wire.MalformedReply("round", f"round {request.round} after round {self.state.round}")
        if self.privacy is None:
            return None
        check_holdout(request, self.privacy)
        plan, context, source = self.privacy.plan, self.privacy.context(request.round), self.privacy.random.source
        spend = (plan.evaluation_spend if counts else plan.spend)(context, noise_source=source)
        ledger = Ledger(self.privacy.ledger, tip=self.privacy.tip)
        return ledger.spend(spend, guard=budget_guard(plan, counts=counts))

    def _after_admission(self, work: Callable[[Client], wire.Reply]) -> wire.Reply:
        try:
            return work(self._client)
        except (Exception, SystemExit) as error:  # a loader's or a model's own code may end the process
            raise FailedAfterAdmissionError("the data, the model or its training failed") from error

    @cached_property
    def _client(self) -> Client:
        return self.build()
