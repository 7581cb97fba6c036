"""Differential privacy on the client: noise, accounting, the ledger, admission, DP-SGD and the verdict.
Knows models, tensors and its ledger file; not quantization, codecs, messages, servers or configuration files.
"""

from fedq.privacy.accounting import ACCOUNTANTS, Accountant, AnyMechanism, Mechanism, PureDP, calibrate, epsilon
from fedq.privacy.admission import REASONS, Declined, admit, budget_guard
from fedq.privacy.chain import Row
from fedq.privacy.counts import noisy_counts, standard_error
from fedq.privacy.dpsgd import DPSGD, MAX_BATCH, DPEvidence
from fedq.privacy.evidence import MAX_EPSILON, ClientRound, RunEvidence, is_private
from fedq.privacy.ledger import Ledger, LedgerError
from fedq.privacy.noise import RandomSource, SecureRandom, SeededRandom
from fedq.privacy.plan import DPPlan, SpendContext
from fedq.privacy.policy import Asked, Policy, PolicyError, read_policy, require
from fedq.privacy.spend import Spend
from fedq.privacy.suitable import refuse_cross_example_layers, refuse_mixing

__all__ = [
    "ACCOUNTANTS",
    "DPSGD",
    "MAX_BATCH",
    "MAX_EPSILON",
    "REASONS",
    "Accountant",
    "AnyMechanism",
    "Asked",
    "ClientRound",
    "DPEvidence",
    "DPPlan",
    "Declined",
    "Ledger",
    "LedgerError",
    "Mechanism",
    "Policy",
    "PolicyError",
    "PureDP",
    "RandomSource",
    "Row",
    "RunEvidence",
    "SecureRandom",
    "SeededRandom",
    "Spend",
    "SpendContext",
    "admit",
    "budget_guard",
    "calibrate",
    "epsilon",
    "is_private",
    "noisy_counts",
    "read_policy",
    "refuse_cross_example_layers",
    "refuse_mixing",
    "require",
    "standard_error",
]
