"""The plan: public numbers, checked where they enter."""

import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from fedq.privacy import DPPlan, Mechanism


def test_divisor_and_noise_follow_from_public_numbers_alone(plan):
    assert plan.divisor == 0.5 * 20
    assert plan.noise_std == 4.0 * 1.0
    assert replace(plan, clip_norm=0.25).noise_std == 1.0
    assert plan.mechanism == Mechanism(4.0, 0.5, 2)


def test_a_plan_has_no_place_for_what_depends_on_the_data():
    assert [field.name for field in fields(DPPlan)] == [
        "noise_multiplier",
        "clip_norm",
        "sample_rate",
        "steps",
        "nominal_examples",
        "target_epsilon",
        "delta",
        "accountant",
        "noise",
        "evaluation_epsilon",
    ]


def test_a_plan_cannot_be_changed(plan):
    with pytest.raises(FrozenInstanceError, match="steps"):
        plan.steps = 1


def test_no_limit_is_a_target_of_infinity(plan):
    assert replace(plan, target_epsilon=math.inf).target_epsilon == math.inf


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan),
        ("clip_norm", 0.0),
        ("clip_norm", math.inf),
        ("clip_norm", math.nan),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("steps", 0),
        ("nominal_examples", 0),
        ("target_epsilon", 0.0),
        ("target_epsilon", -1.0),
        ("target_epsilon", math.nan),
        ("delta", 0.0),
        ("delta", 1.0),
        ("accountant", "moments"),
        ("noise", "laplace"),
    ],
)
def test_a_plan_out_of_range_is_refused_by_name(plan, field, value):
    with pytest.raises(ValueError, match=field):
        replace(plan, **{field: value})


@pytest.mark.parametrize("noise_multiplier", [2.0**-17, 2.0**23])
def test_noise_that_the_grid_does_not_hold_is_refused_before_anything_is_spent(plan, noise_multiplier):
    with pytest.raises(ValueError, match=r"noise_multiplier.*grid of noise=discrete.*use noise=gaussian"):
        replace(plan, noise="discrete", noise_multiplier=noise_multiplier)
