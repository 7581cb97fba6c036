"""Audits: tests, from outside, of a mechanism that claims privacy. Depends on clients and their experiments.

No check here is written for a particular bug, and no code here knows the right mechanism.
"""

from fedq.audit.audit import Effort, audit_mechanism, audit_subject
from fedq.audit.findings import Audit, Bounds, Check
from fedq.audit.report import audit_table
from fedq.audit.run import account_check, membership_scores
from fedq.audit.subject import Answer, AuditError, Subject, subject_of, workplace

__all__ = [
    "Answer",
    "Audit",
    "AuditError",
    "Bounds",
    "Check",
    "Effort",
    "Subject",
    "account_check",
    "audit_mechanism",
    "audit_subject",
    "audit_table",
    "membership_scores",
    "subject_of",
    "workplace",
]
