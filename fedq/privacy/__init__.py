"""Differential privacy: noise, accounting, the ledger, admission, DP-SGD, whole clients, and the verdicts.
Knows models, tensors and its ledger file; not quantization, codecs, messages, servers or configuration files.
"""

from fedq.privacy.accounting import ACCOUNTANTS, Accountant, Mechanism, calibrate, epsilon
from fedq.privacy.admission import REASONS, Declined, admit, budget_guard
from fedq.privacy.client_level import ClientLevelEvidence, ClientLevelMechanism, ClientLevelPlan, clipped
from fedq.privacy.client_level_evidence import ServerEvidence, ServerRound, is_client_private, spent_by_one_client
from fedq.privacy.dpsgd import DPSGD, MAX_BATCH, DPEvidence
from fedq.privacy.evidence import MAX_EPSILON, ClientRound, RunEvidence, is_private
from fedq.privacy.ledger import Ledger, LedgerError, Row
from fedq.privacy.noise import RandomSource, SecureRandom, SeededRandom
from fedq.privacy.plan import DPPlan, SpendContext
from fedq.privacy.spend import Spend
from fedq.privacy.suitable import refuse_cross_example_layers, refuse_mixing

__all__ = [
    "ACCOUNTANTS",
    "DPSGD",
    "MAX_BATCH",
    "MAX_EPSILON",
    "REASONS",
    "Accountant",
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
    "clipped",
    "epsilon",
    "is_client_private",
    "is_private",
    "refuse_cross_example_layers",
    "refuse_mixing",
    "spent_by_one_client",
]
