"""How little is missing for the noise checks to see it."""

import numpy as np
import pytest

from fedq.audit import AuditError
from fedq.audit.noise import noise_checks
from fedq.privacy import DPSGD, SeededRandom
from tests.audit.bugs import NoiseOfOneStep, OtherNoise, drawing_from


class FivePercentLess(OtherNoise):
    def noise(self, sigma, count):
        return 0.95 * self.right(sigma, count)


class OneValueWithout(OtherNoise):
    """No noise on the first value of each layer's flat sum: what no size over all values can show."""

    def noise(self, sigma, count):
        values = self.right(sigma, count)
        values[0] = 0.0
        return values


FivePercentLess, OneValueWithout, SameNoiseInEachStep = map(
    drawing_from, (FivePercentLess, OneValueWithout, NoiseOfOneStep)
)


class Broken(DPSGD):
    def run(self, *arguments, **named):
        raise RuntimeError("nothing works")


def p_values(subject, examples):
    return {check.name: check.p_value for check in noise_checks(subject, examples)}


def test_five_percent_less_noise_is_seen(make_subject, examples):
    """Over 20,000 values the standard deviation is known to 0.5 %: ten of them."""
    assert p_values(make_subject(mechanism=FivePercentLess), examples)["noise size"] < 1e-9


def test_a_value_without_noise_is_seen(make_subject, examples):
    assert p_values(make_subject(mechanism=OneValueWithout), examples)["noise everywhere"] < 1e-3


def test_noise_that_repeats_from_step_to_step_is_seen(make_subject, examples):
    assert p_values(make_subject(mechanism=SameNoiseInEachStep), examples)["noise fresh"] < 1e-9


def test_noise_as_planned_is_as_likely_as_not(make_subject, examples):
    from dataclasses import replace

    subject = replace(make_subject(), make_random=iter([SeededRandom(seed) for seed in range(60)]).__next__)
    assert min(p_values(subject, examples).values()) > 0.01


def test_a_client_that_never_answers_is_no_finding(make_subject, examples):
    with pytest.raises(AuditError, match="does not answer, with examples or without: RuntimeError: nothing works"):
        noise_checks(make_subject(mechanism=Broken), examples)


def test_the_size_is_told_as_a_share_of_the_claim(make_subject, examples):
    seen = next(
        c.seen for c in noise_checks(make_subject(mechanism=FivePercentLess), examples) if c.name == "noise size"
    )
    assert float(seen.split()[0]) == pytest.approx(0.95, abs=0.02)
    assert np.isfinite(float(seen.split()[0]))
