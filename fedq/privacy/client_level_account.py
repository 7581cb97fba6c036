"""What one client may have spent by a server's ledger of several runs, and whether one more run fits.
Knows spends and budgets; not which client was in which round, noise, messages or files.
"""

import math
from collections.abc import Iterable, Sequence

from fedq.privacy.accounting import Accountant, AnyMechanism, epsilon
from fedq.privacy.admission import Declined
from fedq.privacy.spend import Spend


def charged(spends: Iterable[Spend], *, clients: int) -> list[AnyMechanism]:
    """The most that one of `clients` has spent in each run, all runs together.

    Under shuffled round-robin sampling (`cohort` of `clients` a round) no client is in more than
    ceil(rounds cohort / clients) rounds. Of secret cohorts all rounds count, at their rate. A ledger does
    not say who was asked, so the busiest client of one run is taken to be the busiest of every run. Two runs of one
    name differ in their attempts.
    """
    runs: dict[tuple[str, int], list[Spend]] = {}
    for spend in spends:
        runs.setdefault((spend.run, spend.attempt), []).append(spend)
    found: list[AnyMechanism] = []
    for own in runs.values():
        # The most costly first; of one run all cost the same.
        dealt = sorted((s for s in own if s.sample_rate == 1), key=lambda s: s.noise_multiplier)
        cohort = max((s.nominal_examples for s in dealt), default=0)
        turns = min(len(dealt), -(-len(dealt) * cohort // clients))
        found += [s.as_mechanism() for s in [*dealt[:turns], *(s for s in own if s.sample_rate < 1)]]
    return found


def require_budget(
    spent: Sequence[AnyMechanism], *, target_epsilon: float, delta: float, accountant: Accountant, what: str
) -> None:
    """Declined("budget") where all of it together, of which `what` comes last, costs more than the target."""
    if target_epsilon == math.inf:
        return
    after = epsilon(spent, delta, accountant=accountant)
    if not after <= target_epsilon:  # a NaN declines
        raise Declined("budget", f"epsilon would be {after:.4g} of {target_epsilon:g} at delta {delta:g} with {what}")
