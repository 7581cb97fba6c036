"""Whether a run may be called private: one pure function of the evidence that it left.
Knows evidence; not files, models or messages. Evidence that is missing, unknown or not a number counts against the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedq.core.limits import DELTA_MARGIN, MOST_DELTA
from fedq.privacy.dpsgd import DPEvidence
from fedq.privacy.spend import MECHANISMS, Spend

MAX_EPSILON = 20.0  # e^20 is 500 million: a bound on an odds ratio beyond that has no meaning
# Secret bits behind every random number of the guarantee. Fewer can be searched: 2^32 keys take minutes.
LEAST_SECRET_BITS = 128


@dataclass(frozen=True)
class ClientRound:
    """One training reply: the evidence of the client's mechanism, and the row of its ledger."""

    client: str
    round: int
    done: DPEvidence | None  # None: trained without the mechanism
    spend: Spend | None  # None: no such row
    trained_scalars: int  # values of the reply that training may have changed


@dataclass(frozen=True)
class RunEvidence:
    """The evidence of one run. Every default counts against the run, so a forgotten field cannot make it private."""

    rounds: Sequence[ClientRound] = ()
    epsilon: float = math.inf  # the largest of all clients' ledgers
    target_epsilon: float = 0.0
    accounts: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # client -> (its epsilon, its own budget)
    ledgers_verified: bool = False
    decisions: Sequence[str] = ("unknown",)  # decisions of a person to accept a ledger that failed its checks
    reply_fields_checked: bool = False
    nonpublic_reply_fields: Sequence[str] = ("unknown",)  # names of fields that left beyond the allow-list
    data_fitted_on_private: bool | None = None  # e.g. a scaler fitted on private examples; None: unknown
    activation_ranges_observed: bool = True
    delta: float = math.inf
    nominal_examples: int = 0  # public size of a client's data
    largest_shard: float = math.inf  # true size, in a simulation, where the shards are here; 0: they are not
    run: str = ""


def is_private(evidence: RunEvidence) -> tuple[bool, list[str]]:
    """(True, []) if all the evidence is there and agrees, else (False, the reasons)."""
    reasons: list[str] = []
    if not evidence.rounds:
        reasons.append("no client round is on record")
    reasons += size_faults(evidence.epsilon)
    reasons += delta_faults(evidence.delta, evidence.nominal_examples, of="example")
    if not DELTA_MARGIN * evidence.delta * evidence.largest_shard <= 1:  # the text omits the size: it is protected
        reasons.append(f"delta {evidence.delta:g} allows one example of the largest true shard to leak whole")
    for client_round in evidence.rounds:
        if client_round.spend is not None and client_round.spend.run != evidence.run:
            reasons.append(f"client {client_round.client}: the spend is of run {client_round.spend.run!r}")
        reasons += [f"client {client_round.client}, round {client_round.round}: {why}" for why in _faults(client_round)]
    rows = [(r.client, r.done.spend_row_id) for r in evidence.rounds if r.done is not None]
    if len(set(rows)) != len(rows):
        reasons.append("one row of a ledger stands for several rounds")
    if not evidence.ledgers_verified:
        reasons.append("the ledgers were not verified")
    reasons += decision_faults(evidence.decisions)
    # With this form a NaN fails, and a run without a target (inf) still needs a finite epsilon.
    if not (math.isfinite(evidence.epsilon) and evidence.epsilon <= evidence.target_epsilon):
        reasons.append(f"epsilon {evidence.epsilon:g} is beyond the target {evidence.target_epsilon:g}")
    for client, (spent, budget) in sorted(evidence.accounts.items()):
        if not spent <= budget:
            reasons.append(f"client {client}: epsilon {spent:g} is beyond its own budget {budget:g}")
    if unknown := sorted({r.client for r in evidence.rounds} - set(evidence.accounts)):
        reasons.append(f"client {unknown[0]}: no account is on record")
    if not evidence.reply_fields_checked:
        reasons.append("the fields of the replies were not checked")
    if evidence.nonpublic_reply_fields:
        reasons.append(f"left a client without noise: {', '.join(evidence.nonpublic_reply_fields)}")
    reasons += fitting_faults(evidence.data_fitted_on_private, of="the private examples")
    if evidence.activation_ranges_observed:
        reasons.append("activation ranges were observed on private examples")
    return not reasons, reasons


def fitting_faults(fitted: bool | None, *, of: str) -> list[str]:
    """Why the inputs may contain a statistic of protected data; [] where the loader states that they do not."""
    if fitted is None:
        return [
            f"the loader does not say whether a statistic of {of} is baked into its inputs; "
            "let it return a fedq.data.Dataset with fitted_on_private_data=False if none is"
        ]
    return [] if fitted is False else [f"the data was scaled by statistics of {of}"]


def size_faults(epsilon: float) -> list[str]:
    """Why an epsilon is too large to have a meaning; a NaN counts as too large."""
    if epsilon <= MAX_EPSILON:
        return []
    return [f"epsilon {epsilon:g} is beyond {MAX_EPSILON:g}, where it bounds next to nothing"]


def decision_faults(decisions: Sequence[str]) -> list[str]:
    """One reason for each decision: a ledger that a person accepted may lack spends, so its epsilon bounds nothing."""
    return [f"spends may be missing, on a person's word: {decision}" for decision in decisions]


def delta_faults(delta: float, protected: int, *, of: str) -> list[str]:
    """Why a delta is too large for the number of protected units; a NaN counts as too large."""
    faults = [] if delta <= MOST_DELTA else [f"delta {delta:g} is beyond {MOST_DELTA:g}, however few are protected"]
    if not (protected >= 1 and DELTA_MARGIN * delta * protected <= 1):
        limit = f"it must be at most 1 / ({DELTA_MARGIN} x {protected})"
        faults.append(f"delta {delta:g} allows one {of} of {protected} to leak whole: {limit}")
    return faults


def _faults(r: ClientRound) -> list[str]:
    if r.done is None:
        return ["no noise was added"]
    if r.spend is None:
        return ["no spend in the ledger"]
    done, spend = r.done, r.spend
    faults = []
    if done.noise_source != "os" or spend.noise_source != "os":
        faults.append(f"noise that others can reproduce ({done.noise_source}; ledger: {spend.noise_source})")
    if not done.secret_bits:
        faults.append("where its random numbers come from is not on record")
    faults += [
        f"{use} rest on {bits} secret bits, fewer than {LEAST_SECRET_BITS}"
        for use, bits in sorted(done.secret_bits.items())
        if not bits >= LEAST_SECRET_BITS
    ]
    if not done.noise_multiplier > 0:
        faults.append(f"noise multiplier {done.noise_multiplier}")
    if done.steps_noised != spend.steps or done.steps_noised < 1:
        faults.append(f"{done.steps_noised} steps noised, {spend.steps} spent")
    if done.noise_multiplier != spend.noise_multiplier:
        faults.append(f"noise multiplier {done.noise_multiplier}, {spend.noise_multiplier} spent")
    if done.sample_rate != spend.sample_rate:
        faults.append(f"sampling rate {done.sample_rate}, {spend.sample_rate} spent")
    if done.clip_norm != spend.clip_norm:
        faults.append(f"clip norm {done.clip_norm}, {spend.clip_norm} spent")
    if done.noised_scalars < r.trained_scalars or r.trained_scalars < 1:
        faults.append(f"{done.noised_scalars} values noised of {r.trained_scalars} trained")
    if spend.round != r.round:
        faults.append(f"the spend is for round {spend.round}")
    if done.mechanism != spend.mechanism:
        faults.append(f"{done.mechanism} noise, {spend.mechanism} spent")
    if (spend.unit, spend.adjacency) != ("example", "add-or-remove-one") or spend.mechanism not in MECHANISMS:
        faults.append(f"the spend is of another kind: {spend.unit}, {spend.adjacency}, {spend.mechanism}")
    return faults
