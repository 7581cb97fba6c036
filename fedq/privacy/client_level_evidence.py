"""Whether a run may say that it protects clients as a whole: one pure function of what the server really did.
Knows evidence; not files, models or messages. Anything missing, unknown or not a number counts against.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedq.privacy.accounting import AnyMechanism, epsilon
from fedq.privacy.client_level import ADJACENCY, UNIT, ClientLevelEvidence, ClientLevelPlan, sum_multiplier
from fedq.privacy.client_level_account import charged
from fedq.privacy.evidence import decision_faults, delta_faults, fitting_faults, size_faults
from fedq.privacy.plan import MECHANISMS
from fedq.privacy.spend import Spend

_KINDS = tuple((UNIT, ADJACENCY, mechanism) for mechanism in MECHANISMS.values())


@dataclass(frozen=True)
class ServerRound:
    """One round as the loop saw it, what the mechanism says it did in it, and the row that the ledger holds."""

    round: int
    asked: Sequence[str]  # clients
    values: int  # averaged values of an update
    done: ClientLevelEvidence | None  # None: the mechanism did not run
    spend: Spend | None  # None: no such row


@dataclass(frozen=True)
class ServerEvidence:
    """What one run is judged by. Every default is the damning one, so a forgotten field cannot help."""

    plan: ClientLevelPlan
    rounds: Sequence[ServerRound] = ()
    unproven: Sequence[int] = (-1,)  # rounds of spends of this run without evidence of their noise
    unfinished: Sequence[Spend] = ()  # of this run, in rounds that did not end
    other_runs: Sequence[Spend] | None = None  # spends of other runs in the ledger; None: unknown
    ledger_verified: bool = False
    decisions: Sequence[str] = ("unknown",)  # of a person, about a ledger that did not check out
    cohorts_from: str = "unknown"  # what the cohorts were drawn from: seed (public), seeded, os
    data_fitted_on_private: bool | None = (
        None  # a scaler or the like, fitted on several clients' examples; None: unknown
    )
    delivered_unnoised: Sequence[str] = ("unknown",)  # arrays of the model that are not averaged
    run: str = ""


def spent_by_one_client(evidence: ServerEvidence) -> float:
    """Epsilon of the client that has spent most, by the ledger's rows; inf where a round has none.

    A round counts against those who were asked in it; where cohorts are secret, and the noise amplified, against all.
    So does one that was spent and did not end. Of other runs the most that one client may have spent in each counts.
    """
    if evidence.other_runs is None:
        return math.inf
    busiest: dict[str, list[AnyMechanism]] = {}
    everybody: list[AnyMechanism] = []
    for round in evidence.rounds:
        if round.spend is None:
            return math.inf
        mechanism = round.spend.as_mechanism()
        everybody.append(mechanism)
        for client in round.asked:
            busiest.setdefault(client, []).append(mechanism)
    if evidence.plan.sampling == "cyclic" and busiest:
        everybody = max(busiest.values(), key=len)
    everybody += [spend.as_mechanism() for spend in evidence.unfinished]
    everybody += charged(evidence.other_runs, clients=evidence.plan.clients)
    return epsilon(everybody, evidence.plan.delta, accountant=evidence.plan.accountant)


def is_client_private(evidence: ServerEvidence) -> tuple[bool, list[str]]:
    """(True, []) if every piece is there, else (False, the reasons)."""
    plan, reasons = evidence.plan, []
    spent = spent_by_one_client(evidence)
    if not evidence.rounds:
        reasons.append("no round is on record")
    reasons += size_faults(spent)
    # Written so that a NaN fails; no target (inf) still needs an epsilon that means something.
    if not spent <= plan.target_epsilon:
        reasons.append(f"epsilon {spent:g} is beyond the target {plan.target_epsilon:g}")
    reasons += delta_faults(plan.delta, plan.clients, of="client")
    if not evidence.ledger_verified:
        reasons.append("the server's ledger was not verified")
    reasons += decision_faults(evidence.decisions)
    if evidence.unproven:
        reasons.append(f"spent without evidence of noise in round {', '.join(map(str, evidence.unproven))}")
    if evidence.other_runs is None:
        reasons.append("what other runs spent from the ledger is not known")
    for kind in sorted({_kind(spend) for spend in evidence.other_runs or ()} - set(_KINDS)):
        reasons.append(f"the ledger holds spends of another kind: {', '.join(kind)}")
    for round in evidence.rounds:
        reasons += [f"round {round.round}: {why}" for why in _faults(round, evidence)]
    numbers = [r.done.spend_row_id for r in evidence.rounds if r.done is not None]
    if len(set(numbers)) != len(numbers):
        reasons.append("one row of the ledger stands for several rounds")
    if [r.round for r in evidence.rounds] != list(range(1, len(evidence.rounds) + 1)):
        reasons.append("the rounds on record are not 1, 2, 3, ...")
    reasons += _cohort_faults(evidence)
    reasons += fitting_faults(evidence.data_fitted_on_private, of="several clients' examples")
    if evidence.delivered_unnoised:
        reasons.append(f"delivered without noise: {', '.join(evidence.delivered_unnoised)}")
    return not reasons, reasons


def _cohort_faults(evidence: ServerEvidence) -> list[str]:
    """Amplification needs secret cohorts; without it the cap on participations must have been kept."""
    plan = evidence.plan
    if plan.sampling == "poisson":
        faults = (
            [] if evidence.cohorts_from == "os" else [f"cohorts that others can reproduce ({evidence.cohorts_from})"]
        )
        most = len(evidence.rounds)
    else:
        faults = []
        most = max(Counter(client for round in evidence.rounds for client in round.asked).values(), default=0)
    if most > plan.charges:
        faults.append(f"one client counted in {most} rounds, the noise is for {plan.charges}")
    return faults


def _faults(r: ServerRound, evidence: ServerEvidence) -> list[str]:
    plan, done, spend = evidence.plan, r.done, r.spend
    if done is None:
        return ["no noise was added"]
    if spend is None:
        return ["no spend in the ledger"]
    faults = []
    if done.noise_source != "os" or spend.noise_source != "os":
        faults.append(f"noise that others can reproduce ({done.noise_source}; ledger: {spend.noise_source})")
    if done.noise_multiplier != spend.noise_multiplier:
        faults.append(f"noise multiplier {done.noise_multiplier}, {spend.noise_multiplier} spent")
    needed = sum_multiplier(done.noise_multiplier, done.count_std)
    if not done.sum_multiplier >= needed * (1 - 1e-9):  # a NaN fails
        faults.append(f"noise of {done.sum_multiplier:g} clips on the sum, {needed:g} needed")
    if plan.quantile is not None and done.count_std is None:
        faults.append("the clip followed a count that no noise was accounted for")
    if done.clip_norm != spend.clip_norm:
        faults.append(f"clip norm {done.clip_norm}, {spend.clip_norm} spent")
    if done.noised_scalars < r.values or r.values < 1:
        faults.append(f"{done.noised_scalars} values noised of {r.values} averaged")
    if done.divisor != plan.cohort:
        faults.append(f"divided by {done.divisor}, a cohort is {plan.cohort}")
    if (spend.sample_rate, spend.steps) != (plan.sample_rate, 1):
        faults.append(f"{spend.steps} steps at rate {spend.sample_rate} spent, 1 at {plan.sample_rate} taken")
    if spend.delta != plan.delta:
        faults.append(f"spent at delta {spend.delta}, reported at {plan.delta}")
    if {spend.round, done.round} != {r.round}:
        faults.append(f"the spend is for round {spend.round}, the noise for {done.round}")
    if spend.run != evidence.run:
        faults.append(f"the spend is of run {spend.run!r}")
    if done.mechanism != spend.mechanism:
        faults.append(f"{done.mechanism} noise, {spend.mechanism} spent")
    if _kind(spend) != (UNIT, ADJACENCY, plan.mechanism_name):
        faults.append(f"the spend is of another kind: {', '.join(_kind(spend))}")
    return faults


def _kind(spend: Spend) -> tuple[str, str, str]:
    return spend.unit, spend.adjacency, spend.mechanism
