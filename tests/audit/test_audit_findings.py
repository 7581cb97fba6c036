"""When a p-value counts."""

from fedq.audit import Audit, Check


def check(p, *, chance=True):
    return Check("name", "claim", p, "seen", chance)


def test_the_risk_is_shared_by_the_checks_that_chance_can_fail():
    audit = Audit("x", [check(0.004), check(0.9), check(1.0, chance=False)])
    assert audit.threshold == 0.005
    assert [found.p_value for found in audit.findings] == [0.004]


def test_what_is_impossible_under_the_claim_is_always_a_finding():
    assert len(Audit("x", [check(0.0, chance=False)]).findings) == 1
    assert Audit("x", []).findings == []
