"""Admission: whether a client may take part, decided before its data are opened. A refusal sends a code alone.
Knows budgets and earlier spends; not data, models, messages or the network.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from fedq.privacy.accounting import epsilon
from fedq.privacy.chain import Row
from fedq.privacy.ledger import Ledger, LedgerError, check_same_data
from fedq.privacy.plan import DPPlan

Reason = Literal["budget", "ledger", "policy"]
# The codes that may reach the server. Each depends on public configuration and on the client's history of public
# requests, never on its data.
REASONS: Final[dict[Reason, str]] = {
    "budget": "the spend would take this client's data beyond its epsilon",
    "ledger": "this client's ledger cannot be read, trusted or written",
    "policy": "this client's owner does not accept the request",
}


class Declined(Exception):  # noqa: N818  a decision, not an error
    """The client will not take part. Only `reason` may leave the client; the text is for its own operator."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r}: must be one of {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail or REASONS[reason]}")
        self.reason: Reason = reason
        self.identity = ""  # the client's name, where only the refusal can carry it; it may leave, as in a handshake


def admit(ledger: Ledger, plan: DPPlan, *, data: str | None = None, counts: bool = False) -> None:
    """Raise Declined unless the plan fits into the rest of the budget.

    With `data`, a ledger that holds spends of other data is refused too. `counts`: check the noisy counts of an
    evaluation instead of a round of training.

    This early check saves opening the data for nothing; DPSGD checks again under the ledger's lock.
    """
    try:
        rows = ledger.rows()
        if data is not None:
            check_same_data(ledger.path, rows, data)
    except LedgerError as error:
        raise Declined("ledger", str(error)) from error
    budget_guard(plan, counts=counts)(rows)


def budget_guard(plan: DPPlan, *, counts: bool = False) -> Callable[[Sequence[Row]], None]:
    """The same check as a guard for `Ledger.spend`; ValueError if `counts` and the plan has no evaluation."""
    cost = plan.evaluation if counts else plan.mechanism
    if cost is None:
        raise ValueError("evaluation_epsilon=None: this plan has no evaluation; use evaluate=dp")

    def guard(before: Sequence[Row]) -> None:
        if plan.target_epsilon == math.inf:  # no budget to check
            return
        after = epsilon([*(row.spend.as_mechanism() for row in before), cost], plan.delta, accountant=plan.accountant)
        # With this form of the comparison, a NaN declines.
        if not after <= plan.target_epsilon:
            raise Declined("budget", f"epsilon would be {after:.4g} of {plan.target_epsilon:g} at delta {plan.delta:g}")

    return guard
