"""Each planted bug is found, and the right mechanism is not."""

import pytest

from fedq.audit import Audit, Effort, audit_subject
from fedq.audit.findings import LEVEL
from tests.audit.bugs import BUGS

QUICK = Effort(canaries=400, pairs=60)


def audited(subject, examples, seed, effort=QUICK):
    checks, _ = audit_subject(subject, examples, effort, rounds=2, first_seed=seed, tell=lambda text: None)
    return Audit("test", checks)


def test_every_bug_of_the_list_is_planted():
    assert len(BUGS) == 11


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(make_subject, examples, bug):
    found = audited(make_subject(**BUGS[bug]), examples, seed=0)
    assert min(check.p_value for check in found.findings) < LEVEL


def test_nothing_is_found_in_the_right_mechanism(make_subject, examples):
    assert audited(make_subject(), examples, seed=0).findings == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_with_three_seeds_of_three(make_subject, examples, bug, seed):
    found = audited(make_subject(**BUGS[bug]), examples, seed=seed, effort=Effort(canaries=2000, pairs=200))
    assert min(check.p_value for check in found.findings) < LEVEL


@pytest.mark.slow
def test_the_right_mechanism_is_flagged_in_at_most_one_of_twenty_audits(make_subject, examples):
    """Each is flagged with probability 0.01 at most: two of twenty with 0.017."""
    effort = Effort(canaries=2000, pairs=100)
    flagged = [seed for seed in range(20) if audited(make_subject(), examples, seed=seed, effort=effort).findings]
    assert len(flagged) <= 1
