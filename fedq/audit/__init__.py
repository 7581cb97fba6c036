"""Audits: what a mechanism that claims privacy can be caught at, from the outside. Knows clients and their experiments.

Not bugs: no check here is made for one, and which mechanism is the right one is nowhere in this room.
"""

from fedq.audit.audit import Effort, audit_mechanism, audit_model, audit_subject
from fedq.audit.findings import Audit, Bounds, Check
from fedq.audit.subject import Answer, AuditError, Subject, subject_of, workplace

__all__ = [
    "Answer",
    "Audit",
    "AuditError",
    "Bounds",
    "Check",
    "Effort",
    "Subject",
    "audit_mechanism",
    "audit_model",
    "audit_subject",
    "subject_of",
    "workplace",
]
