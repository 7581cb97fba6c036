"""A client that opens its owner's data only after a request was admitted and its spend recorded.
Knows clients; not messages.

Whether data can be read and trained on depends on the data. If such an answer cost nothing, a server could repeat the
request and read values from the answers. So a handshake is answered from public configuration alone. Every failure
after the spend gets the same answer, and costs the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from fedq.client import Client, ClientState, Privacy, accept_round, check_account, check_holdout
from fedq.flower import wire
from fedq.privacy import Ledger, budget_guard


class FailedAfterAdmissionError(RuntimeError):
    """The client's data, model or training failed. The cause of this error stays with the owner."""


@dataclass
class OwnedClient:
    """A stand-in for a `Client` with DP. The client and its data are loaded when it first trains or evaluates.

    `privacy`: the client's own DP; None if only the server adds noise, and this client spends nothing.
    """

    identity: str
    state: ClientState
    build: Callable[[], Client]
    privacy: Privacy | None
    on_training: Callable[[int], None] = field(default_factory=lambda: accept_round, init=False)  # may raise Declined
    private: bool = field(default=True, init=False)
    layout_digest: bytes = field(default=b"", init=False)  # the model is not known before the data are opened

    def check_account(self) -> None:
        """Raise Declined or LedgerError if this client cannot take part in one more round."""
        check_account(self.privacy)

    def note_declined(self, why: str) -> None:
        """Does nothing here: the app records it for the owner."""

    def train(self, request: wire.Request) -> wire.Reply:
        """The update for one request. Raises Declined, LedgerError or MalformedReply before any data are opened."""
        self.on_training(request.round)
        paid = self._paid(request, counts=False)
        return self._after_admission(lambda client: client.train(request, paid=paid))

    def evaluate(self, request: wire.Request) -> wire.Reply:
        """Noisy counts on the client's held-out examples; PermissionError if its plan has no evaluation."""
        if self.privacy is None or self.privacy.plan.evaluation_epsilon is None:
            raise PermissionError("an evaluation is not covered by this client's privacy plan")
        paid = self._paid(request, counts=True)
        return self._after_admission(lambda client: client.evaluate(request, paid=paid))

    def _paid(self, request: wire.Request, *, counts: bool) -> int | None:
        """Write the spend of the request; returns the ledger's row, or None if only the server adds noise."""
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
        except (Exception, SystemExit) as error:  # the code of a loader or a model may call sys.exit
            raise FailedAfterAdmissionError("the data, the model or its training failed") from error

    @cached_property
    def _client(self) -> Client:
        return self.build()
