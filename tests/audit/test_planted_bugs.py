"""Each planted bug is found, and the right mechanism is not."""

import pytest

from fedq.audit import Effort
from fedq.audit.findings import LEVEL
from tests.audit.bugs import BUGS, NEW, NONE, OLD
from tests.audit.planted import SETTINGS, applies, audited

pytestmark = pytest.mark.integration

DEFAULT = SETTINGS["discrete"]
QUICK = Effort(canaries=400, pairs=60)
# In seconds, by a whole audit; all of them are in the slow tests, and most in the tests of the check that finds them.
FEW = ("clip forgotten", "masks of 32 bits")


def flagged(bug, setting, examples, folder, *, seed, effort=QUICK):
    findings = audited(setting, bug, examples, folder, seed=seed, effort=effort).findings
    assert all(check.p_value < LEVEL for check in findings)
    return [check.name for check in findings]


def test_every_bug_of_the_list_is_planted():
    assert (len(OLD), len(NEW)) == (11, 18)


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.parametrize("bug", FEW)
def test_a_planted_bug_is_found(examples, folder, bug):
    assert flagged(BUGS[bug], DEFAULT, examples, folder, seed=0)


def test_nothing_is_found_in_the_right_mechanism(examples, folder):
    assert flagged(NONE, DEFAULT, examples, folder, seed=0) == []


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_with_three_seeds_of_three(examples, folder, bug, seed):
    assert flagged(BUGS[bug], DEFAULT, examples, folder, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "discrete"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_in_every_setting_in_which_it_is_one(examples, folder, bug, setting):
    if bug == "padding and probe removed" and SETTINGS[setting].noise == "gaussian":
        pytest.skip("sums of floats depend on the whole batch, and no exact claim is made of them")
    if applies(BUGS[bug], SETTINGS[setting]):
        assert flagged(BUGS[bug], SETTINGS[setting], examples, folder, seed=1)


@pytest.mark.slow
def test_the_right_mechanism_is_flagged_in_at_most_one_of_twenty_audits(examples, folder):
    """Each is flagged with probability 0.01 at most: two of twenty with 0.017."""
    effort = Effort(canaries=2000, pairs=100)
    runs = [flagged(NONE, DEFAULT, examples, folder, seed=seed, effort=effort) for seed in range(20)]
    assert sum(map(bool, runs)) <= 1
