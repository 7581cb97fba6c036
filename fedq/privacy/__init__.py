"""Differential privacy: noise, accounting, the ledger, admission, DP-SGD, client-level DP, and checks of evidence.
Depends on models, tensors and the ledger file; does not know quantization, codecs, messages, servers or configs.
"""

from fedq.privacy.accounting import (
    MOST_EXACT,
    Accountant,
    AnyMechanism,
    Mechanism,
    PureDP,
    calibrate,
    epsilon,
    is_coarse,
)
from fedq.privacy.admission import REASONS, Declined, admit, budget_guard
from fedq.privacy.chain import Row
from fedq.privacy.client_level import ClientLevelEvidence, ClientLevelMechanism, ClientLevelPlan, clipped, l2_norm
from fedq.privacy.client_level_account import charged
from fedq.privacy.client_level_evidence import ServerEvidence, ServerRound, is_client_private, spent_by_one_client
from fedq.privacy.counts import noisy_counts, standard_error
from fedq.privacy.dpsgd import DPSGD, MAX_BATCH, DPEvidence
from fedq.privacy.evidence import MAX_EPSILON, ClientRound, RunEvidence, is_private
from fedq.privacy.ledger import Ledger, LedgerError, is_begun, tip_in
from fedq.privacy.model_validation import refuse_cross_example_layers, refuse_mixing
from fedq.privacy.noise import RandomSource, SecureRandom, SeededRandom
from fedq.privacy.plan import DPPlan, SpendContext
from fedq.privacy.policy import Asked, Policy, PolicyError, limits, read_policy, require, tip_of, unaccounted_units
from fedq.privacy.spend import Spend

__all__ = [
    "DPSGD",
    "MAX_BATCH",
    "MAX_EPSILON",
    "MOST_EXACT",
    "REASONS",
    "Accountant",
    "AnyMechanism",
    "Asked",
    "ClientLevelEvidence",
    "ClientLevelMechanism",
    "ClientLevelPlan",
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
    "ServerEvidence",
    "ServerRound",
    "Spend",
    "SpendContext",
    "admit",
    "budget_guard",
    "calibrate",
    "charged",
    "clipped",
    "epsilon",
    "is_begun",
    "is_client_private",
    "is_coarse",
    "is_private",
    "l2_norm",
    "limits",
    "noisy_counts",
    "read_policy",
    "refuse_cross_example_layers",
    "refuse_mixing",
    "require",
    "spent_by_one_client",
    "standard_error",
    "tip_in",
    "tip_of",
    "unaccounted_units",
]
