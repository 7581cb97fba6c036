"""Whether a client may take part, decided before its data is opened; a refusal carries a code alone.
Knows budgets and what was spent; not data, models, messages or the network.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from fedq.privacy.accounting import epsilon
from fedq.privacy.chain import Row
from fedq.privacy.ledger import Ledger, LedgerError, check_same_data
from fedq.privacy.plan import DPPlan

Reason = Literal["budget", "ledger", "policy"]
# The closed set that may reach the server. Each is a function of public configuration and of the client's own
# history of public requests, never of its data.
REASONS: Final[dict[Reason, str]] = {
    "budget": "the spend would take this client's data beyond its epsilon",
    "ledger": "this client's ledger cannot be read, trusted or written",
    "policy": "this client's owner does not accept what is asked",
}


class Declined(Exception):  # noqa: N818  a decision, not an error
    """The client will not take part. Only `reason` may leave it; the text is for its own operator."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r}: must be one of {', '.join(REASONS)}")
        super().__init__(f"{reason}: {detail or REASONS[reason]}")
        self.reason: Reason = reason
        self.identity = ""  # whose refusal it is, where nobody else can say; it may leave, as in a hello


def admit(ledger: Ledger, plan: DPPlan, *, data: str | None = None, counts: bool = False) -> None:
    """Return if the plan fits into what is left of the budget, else raise Declined.

    With `data`, a ledger that holds spends of other data is refused too.

    An early answer, so that no data is opened in vain; DPSGD asks again under the ledger's lock.
    """
    try:
        rows = ledger.rows()
        if data is not None:
            check_same_data(ledger.path, rows, data)
    except LedgerError as error:
        raise Declined("ledger", str(error)) from error
    budget_guard(plan, counts=counts)(rows)


def budget_guard(plan: DPPlan, *, counts: bool = False) -> Callable[[Sequence[Row]], None]:
    """The same check as a guard for `Ledger.spend`; `counts`: of an evaluation, not of a round of training."""
    cost = plan.evaluation if counts else plan.mechanism
    if cost is None:
        raise ValueError("evaluation_epsilon=None: this plan has no evaluation; use evaluate=dp")

    def guard(before: Sequence[Row]) -> None:
        if plan.target_epsilon == math.inf:  # no budget to check
            return
        after = epsilon([*(row.spend.as_mechanism() for row in before), cost], plan.delta, accountant=plan.accountant)
        # Written so that a NaN declines.
        if not after <= plan.target_epsilon:
            raise Declined("budget", f"epsilon would be {after:.4g} of {plan.target_epsilon:g} at delta {plan.delta:g}")

    return guard
