"""Where random numbers come from: what an auditor sees of secrets, and what it does not call one."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedq.audit.secrecy import _binomial_p, secrecy_checks
from fedq.privacy import DPSGD, SecureRandom
from tests.audit import bugs
from tests.audit.bugs import BUGS, Asked
from tests.audit.planted import SETTINGS, subject_of

RNG = np.random.default_rng(0)


def found(subject, examples):
    return {check.name: check for check in secrecy_checks(subject, examples, rng=np.random.default_rng(0))}


def of_bug(bug, examples, folder):
    return found(subject_of(SETTINGS["discrete"], bug, folder), examples)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_right_mechanism_draws_from_its_source_alone(setting, examples, folder):
    checks = found(subject_of(SETTINGS[setting], bugs.NONE, folder), examples)
    assert list(checks) == ["coins", "secret source", "separate streams"]
    assert checks["secret source"].p_value == checks["separate streams"].p_value == 1.0, checks["secret source"].seen
    assert checks["coins"].p_value > 1e-3


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.parametrize(
    ("bug", "check"),
    [
        ("coins of the call, in the source", "coins"),
        ("coins of the round, in the mechanism", "coins"),
        ("coins of the examples", "coins"),
        ("shuffled batches of one size, in the source", "coins"),
        ("coins of torch's generator, in the source", "secret source"),
        ("masks of torch's generator", "secret source"),
        ("masks of 32 bits", "secret source"),
        ("views of torch's generator", "secret source"),
        ("noise of 32 bits", "secret source"),
        ("noise of 32 bits from elsewhere", "secret source"),
        ("noise of torch's generator", "secret source"),
        ("a constant key", "separate streams"),
        ("one key for all uses", "separate streams"),
    ],
)
def test_random_numbers_that_others_can_compute_are_seen(bug, check, examples, folder):
    """None of these was: the rate is right and the noise is normal."""
    checks = of_bug(BUGS[bug], examples, folder)
    assert checks[check].p_value < 1e-6, checks[check].seen


GLOBAL = {
    "torch": lambda count: torch.rand(count).numpy(),
    "numpy": lambda count: np.random.random(count),
    "python": lambda count: np.array([random.random() for _ in range(count)]),
}


@pytest.mark.integration
@pytest.mark.hostile
@pytest.mark.parametrize("name", GLOBAL)
def test_a_generator_of_the_process_is_named(name, examples, folder):
    class Touched(DPSGD):
        def run(self, *arguments, **named):
            GLOBAL[name](1)
            return super().run(*arguments, **named)

    seen = of_bug(replace(bugs.NONE, mechanism=Touched), examples, folder)["secret source"]
    assert seen.p_value == 0.0
    assert name in seen.seen


@pytest.mark.integration
def test_the_generators_of_the_process_are_put_back(examples, folder):
    subject = subject_of(SETTINGS["discrete"], bugs.NONE, folder)
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found(subject, examples)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.integration
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
def test_coins_of_any_rate_are_coins(rate, examples, folder):
    setting = replace(SETTINGS["discrete"], sample_rate=rate)
    assert found(subject_of(setting, bugs.NONE, folder), examples)["coins"].p_value > 1e-3


@pytest.mark.integration
def test_half_of_the_rate_is_no_rate(examples, folder):
    class Rare(Asked):
        def bernoulli(self, q, n):
            return self._asked.bernoulli(q / 2, n)

    bug = replace(bugs.NONE, make_random=lambda: Rare(SecureRandom()))
    assert of_bug(bug, examples, folder)["coins"].p_value < 1e-9


def test_a_binomial_count_is_as_likely_as_it_is():
    """Of 4 fair coins: 0 or 4 heads with 1/8, and no two-sided p-value is above 1."""
    assert _binomial_p(4, 4, 0.5) == pytest.approx(1 / 8)
    assert _binomial_p(0, 4, 0.5) == pytest.approx(1 / 8)
    assert _binomial_p(2, 4, 0.5) == 1.0
